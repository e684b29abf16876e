"""N-gram matches and listed tokens within a history, for penalties.

A history is `tokens [..., L]`, of which the first `length [...]` are valid. Its ids are compared
and never used as an index, so they may have any value.
"""

import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _lookup
from jaxsample._core._vmap import rowwise


def is_bad(tokens: Array, length: Array) -> Array:
    """Returns the rows whose length is outside [0, L]."""
    return (length < 0) | (length > tokens.shape[-1])


def is_listed(tokens: Array, ids: Array) -> Array:
    """Whether each of `tokens [..., L]` is one of `ids [..., n]`; negative ids are padding."""
    equal = tokens[..., None] == ids[..., None, :]
    return jnp.any(equal & (ids >= 0)[..., None, :], axis=-1)


@rowwise
def matches(tokens: Array, length: Array, limit: Array) -> Array:
    """Returns the length of the longest common suffix of `tokens[:i]` and `tokens[:length]`.

    Args:
      tokens: int32 `[..., L]`.
      length: int32 `[...]` in [0, L].
      limit: int32 `[...]`, the largest returned length. The number of steps of a batch is that of
        its longest match, up to the limit.

    Returns:
      int32 `[..., L]`, 0 from `length` on.
    """
    size, place = tokens.shape[-1], _lookup.positions(tokens)
    padded = jnp.concatenate([tokens, tokens], axis=-1)  # the first half is never a match

    def extend(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        steps, going, count = state
        before = lax.dynamic_slice_in_dim(padded, size - 1 - steps, size, axis=-1)
        tail = _lookup.at(tokens, length - 1 - steps)
        same = going & (place > steps) & (before == tail[..., None])
        steps += 1
        return steps, same & (steps < limit)[..., None], count + same.astype(jnp.int32)

    # Inside `shard_map`, the carry of a loop must vary over the same mesh axes as its inputs.
    going = jnp.full_like(tokens, True, jnp.bool_) & (place < length[..., None])
    going &= (limit > 0)[..., None]
    start = (jnp.int32(0), going, jnp.zeros_like(going, jnp.int32))
    return lax.while_loop(lambda state: jnp.any(state[1]), extend, start)[2]
