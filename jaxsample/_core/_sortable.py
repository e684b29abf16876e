"""Signed integers in the order of floats."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def to_sortable(x: Array) -> Array:
    """Returns signed integers in the order of the values, NaN last, of the width of `x`."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    integer = jnp.dtype(f"int{jnp.finfo(x.dtype).bits}").type
    magnitude = jnp.iinfo(integer).max
    infinity = integer(np.asarray(np.inf, x.dtype).view(integer))
    bits = lax.bitcast_convert_type(x, integer)
    sortable = jnp.where(bits < 0, bits ^ magnitude, bits)
    return jnp.where((bits & magnitude) > infinity, magnitude, sortable)


def from_sortable(sortable: Array, dtype: Any = jnp.float32) -> Array:
    """Returns the values that sortable integers stand for."""
    magnitude = jnp.iinfo(sortable.dtype).max
    return lax.bitcast_convert_type(jnp.where(sortable < 0, sortable ^ magnitude, sortable), dtype)


def mean(a: Array, b: Array) -> Array:
    """Returns the mean of integers, rounded down, without overflow."""
    return (a & b) + ((a ^ b) >> 1)
