"""A vocabulary that is sharded over a mesh axis, inside the caller's `jax.shard_map`.

Each device reads only its local logits, which are whole chunks of consecutive tokens. Its results
by chunk are small, so they are exchanged by a sum of integers over the devices, to which each adds
its own chunks and zeros for all others. From there all devices compute the same, and the same as
one device with the whole row, bit for bit.

Token ids are global. Arrays of shape `[..., vocab]` on one device have shape
`[..., vocab / devices]` here. `shards` is None if one device holds the whole row.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core._checks import to_elements

AxisName = str | tuple[str, ...] | None
"""The mesh axis, or axes, over which a vocabulary is sharded."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Shards:
    """The devices that share a row: a pytree without leaves."""

    axis_names: tuple[str, ...]

    @property
    def number(self) -> int:
        return lax.axis_size(self.axis_names)

    def start(self, size: int) -> Array:
        """Returns the index of this device's first element, if each device has `size` elements."""
        return lax.axis_index(self.axis_names) * size

    def own(self, x: Array) -> Array:
        """Returns this device's part of `x [..., n]`."""
        size = x.shape[-1] // self.number
        return lax.dynamic_slice_in_dim(x, self.start(size), size, axis=-1)

    def whole(self, x: Array) -> Array:
        """Returns the parts `[..., n]` of all devices, `[..., n * devices]`, bit for bit."""
        *lead, size = x.shape
        bits = _to_bits(x)
        row = jnp.zeros((*lead, size * self.number), bits.dtype)
        row = lax.dynamic_update_slice_in_dim(row, bits, self.start(size), axis=-1)
        return _from_bits(self.sum(row), x.dtype)

    def look_up(self, take: Callable[[Array], Array], index: Array, size: int) -> Array:
        """Returns `take(index)` of the device that has the index, bit for bit, on all devices.

        Args:
          take: takes local indices `[...]`, below `size`, and returns `[..., *]`.
          index: global indices; they are clipped.
          size: the number of elements of each device.
        """
        index, own = self._place(index, size)
        found = take(index)
        bits = jnp.where(to_elements(own, found), _to_bits(found), 0)
        return _from_bits(self.sum(bits), found.dtype)

    def sum(self, x: Array) -> Array:
        """Returns the sum over the devices."""
        return lax.psum(x, self.axis_names)

    def _place(self, index: Array, size: int) -> tuple[Array, Array]:
        """Returns the local index of a global one, clipped, and whether this device has it."""
        here = jnp.clip(index, 0, size * self.number - 1) - self.start(size)
        return jnp.clip(here, 0, size - 1), (here >= 0) & (here < size)


def named(axis_name: str | tuple[str, ...]) -> Shards:
    """Returns the devices along a mesh axis, or several."""
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    if not (isinstance(names, tuple) and names and all(isinstance(n, str) for n in names)):
        raise TypeError(
            f"axis_name must be a name of a mesh axis, a tuple of names or None, got {axis_name!r}"
        )
    try:
        lax.axis_size(names)
    except NameError as error:
        raise ValueError(
            f"axis_name must name axes of the mesh of a jax.shard_map around the call, got "
            f"{axis_name!r}"
        ) from error
    return Shards(names)


def vocab(logits: Array, shards: Shards | None) -> int:
    """Returns the number of tokens of the whole vocabulary."""
    return logits.shape[-1] * (1 if shards is None else shards.number)


def ids(logits: Array, shards: Shards | None) -> Array:
    """Returns the ids of the tokens, int32 in the shape of `logits`."""
    place = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return place if shards is None else place + shards.start(logits.shape[-1])


def places(logits: Array, token_ids: Array, shards: Shards | None) -> Array:
    """Returns the local indices of tokens in `logits [..., size]`; `size` on other devices."""
    if shards is None:
        return token_ids
    size = logits.shape[-1]
    here = token_ids - shards.start(size)
    return jnp.where((here >= 0) & (here < size), here, size)


def take(logits: Array, token_ids: Array, shards: Shards | None = None) -> Array:
    """Returns the logits of some tokens, `[..., n]`; ids are clipped."""
    if shards is None:
        return _take(logits, token_ids)
    return _take_shared(logits, token_ids, shards)


def total(x: Array, shards: Shards | None) -> Array:
    """Returns the float sum over the vocabulary from local sums; used only for gradients."""
    return x if shards is None else shards.sum(x)


def softmax(x: Array, shards: Shards | None) -> Array:
    """Returns the float softmax over the whole vocabulary; used only for gradients."""
    if shards is None:
        return jax.nn.softmax(x)
    largest = jnp.max(lax.stop_gradient(x), axis=-1, keepdims=True)
    x = jnp.exp(x - lax.pmax(largest, shards.axis_names))
    return x / shards.sum(jnp.sum(x, axis=-1, keepdims=True))


@jax.custom_jvp
def _take_shared(logits: Array, token_ids: Array, shards: Shards) -> Array:
    return shards.look_up(lambda i: _take(logits, i), token_ids, logits.shape[-1])


@_take_shared.defjvp
def _take_shared_jvp(
    primals: tuple[Array, Array, Shards], tangents: tuple[Array, Array, Shards]
) -> tuple[Array, Array]:
    logits, token_ids, shards = primals
    index, own = shards._place(token_ids, logits.shape[-1])
    tangent = jnp.where(own, _take(tangents[0], index), 0)
    return _take_shared(*primals), shards.sum(tangent)


def _take(logits: Array, index: Array) -> Array:
    return jnp.take_along_axis(logits, index, axis=-1, mode="clip")


def _to_bits(x: Array) -> Array:
    """Returns the bits as int32, so that sums are exact on every platform, even for NaN and -0."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = lax.bitcast_convert_type(x, f"int{jnp.finfo(x.dtype).bits}")
    return x.astype(jnp.int32)


def _from_bits(bits: Array, dtype: jnp.dtype) -> Array:
    if not jnp.issubdtype(dtype, jnp.floating):
        return bits.astype(dtype)
    return lax.bitcast_convert_type(bits.astype(f"int{jnp.finfo(dtype).bits}"), dtype)
