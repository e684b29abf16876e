"""Logarithm and powers that round in the same way in arrays of every size.

Compilers use one version of `log` and `exp` for full vectors and another one for the remaining
elements of an array. They round differently, so that the logarithm of a number would depend on the
size of the array. The functions here use only sums and products, and `product` prevents their
contraction into fused multiply-adds, which only some chips have.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

LOG2_E = 1.4426950408889634

_LN_2_HIGH, _LN_2_LOW = 0.693359375, -2.12194440e-4
"""ln 2 in two parts; the product of the first one with an exponent is exact."""

# Least-squares fits on Chebyshev nodes, accurate to 1e-9 and 1e-7.
_LOG = (
    0.0680056746,
    -0.11724911,
    0.118901843,
    -0.123967012,
    0.142179232,
    -0.16668502,
    0.200022367,
    -0.250000007,
    0.333333103,
)
_EXP2 = (0.00186503376, 0.00902269781, 0.0557944849, 0.240166605, 0.693151057, 1.0)


def product(a: Array, b: Array | float) -> Array:
    """Returns `a * b`, at most the largest float32, rounded before anything is added to it."""
    # Compilers contract a product with a sum, but not a minimum.
    return jnp.minimum(a * b, np.finfo(np.float32).max)


Multiply = Callable[[Array, Array], Array]
"""`product`, or `jnp.multiply`, which a compiler may contract with a sum."""


@jax.custom_jvp
def log(x: Array) -> Array:
    """Returns the natural logarithm of float32 numbers, -inf at 0 and NaN below."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    # As 2**e * (1 + r), with 1 + r between the roots of 1/2 and 2.
    root = np.float32(np.sqrt(0.5)).view(np.int32)
    shifted = bits - root
    exponent = shifted >> 23
    r = lax.bitcast_convert_type((shifted & 0x7FFFFF) + root, jnp.float32) - 1
    e = exponent.astype(jnp.float32)
    square = product(r * r, product(r, _polynomial(_LOG, r)) - 0.5)
    y = square + (r + product(e, _LN_2_LOW)) + e * _LN_2_HIGH
    y = jnp.where(x == jnp.inf, x, y)
    return jnp.where(x >= np.finfo(np.float32).tiny, y, jnp.where(x >= 0, -jnp.inf, jnp.nan))


log.defjvps(lambda tangent, _, x: tangent / x)


def log1m(x: Array) -> Array:
    """Returns `log(1 - x)` for x in [0, 1), precise for small and large x."""
    rest = 1 - x
    return jnp.where(rest == 1, -x, log(rest) * (x / jnp.where(rest == 1, 1, 1 - rest)))


def exp2(x: Array) -> Array:
    """Returns `2**x` for float32 x up to 127, 0 from -126 down."""
    clipped = jnp.clip(x, -126, 127)
    whole = jnp.floor(clipped)
    exponent = whole.astype(jnp.int32) << 23
    mantissa = lax.bitcast_convert_type(exp2_of_fraction(clipped - whole), jnp.int32)
    power = lax.bitcast_convert_type(mantissa + exponent, jnp.float32)
    return jnp.where(x > -126, power, jnp.where(jnp.isnan(x), x, 0))


def exp2_of_fraction(x: Array, multiply: Multiply = product) -> Array:
    """Returns `2**x` for x in [0, 1], exact at 0."""
    return _polynomial(_EXP2, x, multiply)


def _polynomial(coefficients: tuple[float, ...], x: Array, multiply: Multiply = product) -> Array:
    value = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = multiply(value, x) + coefficient
    return value


def rounded(x: Array) -> Array:
    """Returns computed float32 logits, rounded once, with NaN in place of +inf.

    Every rule that computes new logits ends with it, so that they are equal whether they are
    materialised or fused with the next rule.
    """
    # The minimum, as in `product`, prevents the contraction of a last product with a later sum.
    return jnp.where(x == jnp.inf, jnp.nan, jnp.minimum(x, np.finfo(np.float32).max))
