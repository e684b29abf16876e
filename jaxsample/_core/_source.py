"""The opened input of a function: logits with their mask, mesh axes and implementation."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _bits, _shards
from jaxsample._core._bits import WORD
from jaxsample._core._checks import MAX_VOCAB
from jaxsample._core._shards import AxisName, Shards

BLOCK = 64
"""The size of the chunks that the ranking reads."""

CHUNK = 256
"""The size of the chunks of the draw."""

Implementation = Literal["xla", "pallas"] | None
"""No kernels, kernels, or None: kernels on TPUs if they are estimated to be faster."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Source:
    """Logits as given, with their mask, mesh axes and implementation.

    Attributes:
      logits: `[..., vocab]`.
      mask: int32 `[..., words]`, the packed mask of the allowed tokens, padded to whole chunks, or
        None.
      shards: the devices that share each row, or None; `logits` and `mask` are the local shard.
      implementation: the implementation of the first pass.
    """

    logits: Array
    mask: Array | None = None
    shards: Shards | None = None
    implementation: Implementation = dataclasses.field(default=None, metadata={"static": True})

    @property
    def vocab(self) -> int:
        return _shards.vocab(self.logits, self.shards)

    @property
    def ids(self) -> Array:
        """The ids of the tokens, int32 in the shape of `logits`."""
        return _shards.ids(self.logits, self.shards)

    @property
    def axis_name(self) -> AxisName:
        """The mesh axes over which the vocabulary is sharded, or None."""
        return None if self.shards is None else self.shards.axis_names

    def per_row(self, parameter: ArrayLike) -> Array:
        """Returns a parameter broadcast to one value a row."""
        return jnp.broadcast_to(parameter, self.logits.shape[:-1])

    def masked(self) -> Array:
        """Returns the raw values, -inf for masked tokens."""
        if self.mask is None:
            return self.logits
        return _bits.masked(self.logits, _bits.unpacked(self.mask, self.logits.shape[-1]))

    def take(self, tokens: Array) -> Array:
        """Returns the raw values of tokens `[..., n]`, -inf for masked ones."""
        raw = _shards.take(self.logits, tokens, self.shards)
        if self.mask is None:
            return raw
        words = _shards.take(self.mask, tokens // WORD, self.shards)
        return _bits.masked(raw, _bits.is_set(words, tokens % WORD))

    def whole(self) -> Array:
        """Returns `masked()` of the whole row, gathered from all devices."""
        x = self.masked()
        return x if self.shards is None else self.shards.whole(x)


def opened(
    logits: ArrayLike,
    axis_name: AxisName = None,
    implementation: Implementation = None,
    mask: Array | None = None,
) -> Source:
    """Returns the `Source` of logits.

    Args:
      logits: `[..., vocab]`, checked.
      axis_name: the mesh axes over which the vocabulary is sharded, or None.
      implementation: the implementation of the first pass.
      mask: int32 `[..., ceil(vocab / 32)]`, the packed mask of the allowed tokens, or None.
    """
    logits = jnp.asarray(logits)
    if mask is not None:
        missing = -(-logits.shape[-1] // CHUNK) * (CHUNK // WORD) - mask.shape[-1]
        mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)])
    return Source(logits, mask, shards(logits, axis_name), implementation)


def shards(logits: Array, axis_name: AxisName) -> Shards | None:
    """Returns the devices over which a vocabulary is sharded, in whole chunks, or None."""
    if axis_name is None:
        return None
    found = _shards.named(axis_name)
    if logits.shape[-1] % CHUNK or _shards.vocab(logits, found) > MAX_VOCAB:
        raise ValueError(
            f"logits must have shape [..., n] on each device of axis_name, with n a multiple of "
            f"{CHUNK} and at most {MAX_VOCAB} tokens in all, got {logits.shape} on each of "
            f"{found.number}: pad the vocabulary of the model's head with -inf"
        )
    return found
