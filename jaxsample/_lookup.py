"""Elements of short rows by index, and sums into them.

A TPU moves single elements one by one; there, every element is compared with every index.
"""

import jax.numpy as jnp
from jax import Array, lax

_SHORT = 1024
"""Beyond it, to move one element takes less than to compare with all."""


def take(x: Array, index: Array) -> Array:
    """The elements of rows `[..., n]` at indices `[..., m]` from 0, the last beyond the end."""

    def moved(x: Array, index: Array) -> Array:
        return jnp.take_along_axis(x, index, axis=-1, mode="clip")

    def compared(x: Array, index: Array) -> Array:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = lax.bitcast_convert_type(x, unsigned)[..., None, :]
        found = jnp.minimum(index, x.shape[-1] - 1)[..., None] == _indices(x.shape[-1], index)
        bits = jnp.sum(jnp.where(found, bits, 0), axis=-1, dtype=unsigned)
        return lax.bitcast_convert_type(bits, x.dtype)

    if x.shape[-1] > _SHORT or x.dtype == bool:
        return moved(x, index)
    return lax.platform_dependent(x, index, tpu=compared, default=moved)


def add_up(values: Array, index: Array, size: int) -> Array:
    """Integers `[..., m]` added up by index, `[..., size]`."""

    def moved(values: Array, index: Array) -> Array:
        def add(values: Array, index: Array, zeros: Array) -> Array:
            return zeros.at[index].add(values)

        zeros = jnp.zeros((*index.shape[:-1], size), values.dtype)
        return jnp.vectorize(add, signature="(m),(m),(n)->(n)")(values, index, zeros)

    def compared(values: Array, index: Array) -> Array:
        found = index[..., None] == _indices(size, index)
        return jnp.sum(jnp.where(found, values[..., None], 0), axis=-2, dtype=values.dtype)

    return lax.platform_dependent(values, index, tpu=compared, default=moved)


def _indices(number: int, index: Array) -> Array:
    """All indices, to be compared with some of shape `[..., m]`."""
    return jnp.arange(number, dtype=index.dtype).reshape((1,) * index.ndim + (-1,))
