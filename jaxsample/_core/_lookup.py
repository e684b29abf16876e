"""Indices of short rows, and elements and sums by index.

A gather or scatter of single elements is slow on a TPU; there, every element is compared with every
index.
"""

import jax.numpy as jnp
from jax import Array, lax

_SHORT = 1024
"""The largest row for which comparing all elements is faster than a gather."""


def take(x: Array, index: Array) -> Array:
    """Returns the elements of rows `[..., n]` at indices `[..., m]`, clipped at the end."""

    def moved(x: Array, index: Array) -> Array:
        return jnp.take_along_axis(x, index, axis=-1, mode="clip")

    def compared(x: Array, index: Array) -> Array:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = lax.bitcast_convert_type(x, unsigned)[..., None, :]
        places = lax.broadcasted_iota(index.dtype, (*index.shape, x.shape[-1]), index.ndim)
        found = jnp.minimum(index, x.shape[-1] - 1)[..., None] == places
        bits = jnp.sum(jnp.where(found, bits, 0), axis=-1, dtype=unsigned)
        return lax.bitcast_convert_type(bits, x.dtype)

    if x.shape[-1] > _SHORT or x.dtype == bool:
        return moved(x, index)
    return lax.platform_dependent(x, index, tpu=compared, default=moved)


def sums_by_index(x: Array, index: Array, size: int) -> Array:
    """Returns the sums `[..., size]` of the integers `x [..., n]` with each index `[..., n]`."""

    def scattered(x: Array, index: Array) -> Array:
        def add(x: Array, index: Array) -> Array:
            return jnp.zeros(size, x.dtype).at[index].add(x, mode="drop")

        return jnp.vectorize(add, signature="(n),(n)->(s)")(x, index)

    def compared(x: Array, index: Array) -> Array:
        places = lax.broadcasted_iota(index.dtype, (*index.shape, size), index.ndim)
        found = index[..., None] == places
        return jnp.sum(jnp.where(found, x[..., None], 0), axis=-2, dtype=x.dtype)

    # Comparisons take 20 times as long on a CPU. On other platforms a scatter is not fused.
    return lax.platform_dependent(x, index, cpu=scattered, default=compared)


def at(x: Array, index: Array) -> Array:
    """Returns the element of each row `x [..., n]` at an index `[...]`."""
    return take(x, index[..., None])[..., 0]


def positions(x: Array) -> Array:
    """Returns the index of each element along the last axis, int32 in the shape of `x`."""
    return lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)


def first_true(mask: Array) -> Array:
    """Returns the lowest index of a True element of the last axis, int32 `[...]`, or its length."""
    index = jnp.where(mask, positions(mask), mask.shape[-1])
    return jnp.min(index, axis=-1, initial=mask.shape[-1])
