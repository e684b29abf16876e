"""Probability mass as exact integers, so that no sum depends on the order of its terms.

A float sum depends on the order of its terms, so a kept set or a draw computed from it would change
with the sharding or the compiler. Here the weight of a token is `exp(x - row_max)` rounded to an
integer, and a sum of integers is the same in every order.

A weight has 23 bits below the largest weight of its chunk, whose distance to the maximum of the row
is `shift`. Its unit is at least `2**-FRACTION_BITS` of the weight of the likeliest token, so tokens
more than about 30 nats below that weigh nothing. The sum of a chunk fits in 32 bits, that of a row
in two words of 32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsample._core import _elementary
from jaxsample._core._checks import to_elements
from jaxsample._core._elementary import LOG2_E, Multiply, product

_WEIGHT_BITS = 23
"""256 weights of at most 2**23 sum to at most 2**31."""

FRACTION_BITS = 42
"""A mass counts units of 2**-42, so that 2**21 tokens of weight 1 stay below 2**63."""

NO_SHIFT = FRACTION_BITS - _WEIGHT_BITS
"""The shift at which a weight of one unit is a mass of one unit."""

ENTROPY_UNIT = 64
"""An upper bound, in octaves, of the information content of a token whose weight is not 0."""

_NOTHING = -120.0
"""Octaves at which a weight is 0 and its float is still a normal number."""

_LIMB = 0xFFFF


class Mass(NamedTuple):
    """An exact mass: `high * 2**32 + low` units, both uint32 and of one shape."""

    high: Array
    low: Array


class Scale(NamedTuple):
    """The weights of the tokens of a row.

    Attributes:
      shifts: int32 `[..., chunks]`, the distance of each chunk's largest weight from 1 in octaves.
      row_max: float32 `[...]`, the logit of weight 1, or None: every token weighs one unit.
      log_sum: float32 `[...]`, or None: weights are proportional to probabilities. With the
        log-sum-exp of the row relative to `row_max`, they are proportional to the contributions to
        the entropy, divided by `ENTROPY_UNIT`.
      counting: bool, a scalar, whether every token weighs one unit, or None: False.
      table: int32 `[..., vocab]`, the weights of all tokens, or None: they are computed.
    """

    shifts: Array
    row_max: Array | None
    log_sum: Array | None = None
    counting: Array | None = None
    table: Array | None = None

    def or_count(self, counting: Array) -> "Scale":
        """Returns this scale, or if `counting` the one on which every token weighs one unit."""
        return self._replace(shifts=jnp.where(counting, NO_SHIFT, self.shifts), counting=counting)

    def weights(
        self, x: Array, places: Array | np.ndarray, shift: Array, known: Array | None = None
    ) -> Array:
        """Returns the weights of logits, int32 in units of `2**-(23 + shift)`; 0 at -inf.

        Args:
          x: float32 logits.
          places: the tokens' ids modulo the size of a chunk, 256.
          shift: the shift of the tokens' chunks.
          known: the weights from `table`, or None.
        """
        if self.row_max is None:
            return (x > -jnp.inf).astype(jnp.int32)
        if self.counting is not None:
            weighed = self._replace(counting=None).weights(x, places, shift, known)
            return jnp.where(self.counting, (x > -jnp.inf).astype(jnp.int32), weighed)
        if known is not None:
            return known
        row_max = to_elements(self.row_max, x)
        if self.log_sum is None:
            return weights(x, places, row_max, shift)
        octaves = _octaves(x, row_max)
        log_sum = self.log_sum.reshape(row_max.shape) * LOG2_E
        information = (log_sum - octaves) * (1 / ENTROPY_UNIT)
        return _round(_bounded(_power(octaves, shift) * information), places)

    def least(self, x: Array) -> Mass:
        """Returns a lower bound of the mass of a logit `[...]`, whatever its rounding."""
        if self.row_max is None:
            return Mass(jnp.zeros_like(x, jnp.uint32), jnp.ones_like(x, jnp.uint32))
        if self.counting is not None:
            weighed = self._replace(counting=None).least(x)
            return select(
                self.counting,
                Mass(jnp.zeros_like(weighed.high), jnp.ones_like(weighed.low)),
                weighed,
            )
        return least(self.weights(x[..., None], np.zeros(1, np.int32), jnp.int32(0))[..., 0])


def weights(
    x: Array,
    places: Array | np.ndarray,
    row_max: Array,
    shift: Array,
    multiply: Multiply = jnp.multiply,
    floor: Callable[[Array], Array] = jnp.floor,
) -> Array:
    """Returns the weights of logits of rows, by their places in a chunk and its shift.

    With `product` for `multiply` they are equal on every chip. With `jnp.multiply`, which makes a
    pass over the logits up to a third faster, their last bit may differ. `floor` is a parameter
    because Mosaic GPU has no such operation.
    """
    return _round(_power(_octaves(x, row_max), shift, multiply, floor), places, floor)


def least(weight: Array) -> Mass:
    """Returns a lower bound of the mass of a token, from its weight at shift 0."""
    return place(jnp.maximum(weight - (weight >> 16) - 4, 0), jnp.zeros_like(weight))


def shifts(chunk_max: Array, row_max: Array) -> Array:
    """Returns the shifts of chunks, from their largest logits."""
    return jnp.clip((row_max - chunk_max) * LOG2_E, 0, NO_SHIFT).astype(jnp.int32)


def entropy_shifts(chunk_max: Array, row_max: Array, log_sum: Array) -> Array:
    """Returns the shifts `[..., chunks]` for contributions to the entropy."""
    log_sum = (log_sum * LOG2_E)[..., None]
    # `2**-d * (log_sum + d)`, at d octaves below the maximum, decreases from here on.
    octaves = jnp.maximum((row_max[..., None] - chunk_max) * LOG2_E, LOG2_E - log_sum)
    bits = octaves - product(_elementary.log((log_sum + octaves) / ENTROPY_UNIT), LOG2_E)
    return jnp.clip(jnp.nan_to_num(jnp.floor(bits), posinf=NO_SHIFT), 0, NO_SHIFT).astype(jnp.int32)


def weighted_octaves(x: Array, places: np.ndarray, row_max: Array, shift: Array) -> Array:
    """Returns the weights of logits times their octaves below `2**-shift`, int32 as weights are."""
    octaves = _octaves(x, row_max)
    further = jnp.maximum(-octaves - shift.astype(jnp.float32), 0)
    return _round(_bounded(_power(octaves, shift) * further), places)


def _octaves(x: Array, row_max: Array) -> Array:
    """Returns the distance of logits from the maximum in octaves, at most 0."""
    return jnp.maximum((x - row_max) * LOG2_E, _NOTHING)


def _power(
    octaves: Array,
    shift: Array,
    multiply: Multiply = jnp.multiply,
    floor: Callable[[Array], Array] = jnp.floor,
) -> Array:
    """Returns `2**(octaves + 23 + shift)`.

    It replaces `exp`, which would take most of the time of a pass: the shift is added to the
    exponent, and a polynomial accurate to 1e-7 suffices for 23 bits.
    """
    whole = floor(octaves)
    fraction = _elementary.exp2_of_fraction(octaves - whole, multiply)
    mantissa = lax.bitcast_convert_type(fraction, jnp.int32)
    exponent = (whole.astype(jnp.int32) + (_WEIGHT_BITS + shift)) << 23
    return lax.bitcast_convert_type(mantissa + exponent, jnp.float32)


def _bounded(weight: Array) -> Array:
    """Returns a product that is not contracted with the next sum."""
    return jnp.minimum(weight, 2.0**_WEIGHT_BITS)


def _round(
    weight: Array,
    places: Array | np.ndarray,
    floor: Callable[[Array], Array] = jnp.floor,
) -> Array:
    """Returns weights as integers.

    Each eighth of a chunk rounds up from a different fraction, so that the rounding errors of equal
    logits cancel instead of adding up.
    """
    eighth = (places >> 5) * 3 + 4 & 7  # in an order of which every prefix is balanced
    fraction = (eighth.astype(np.float32) + 0.5) / 8
    # Larger weights have 20 accurate bits without it, and the float sum would be rounded.
    weight += jnp.where(weight < 2.0**20, fraction, 0)
    # The conversion alone rounds towards 0, which takes three more operations on a TPU.
    return floor(weight).astype(jnp.int32)


def likeliest(like: Array) -> Mass:
    """Returns the mass of the likeliest token, of rows `[...]`."""
    ones = jnp.ones_like(like, jnp.uint32)
    return Mass(high=ones << (FRACTION_BITS - 32), low=jnp.zeros_like(ones))


def place(sums: Array, shift: Array) -> Mass:
    """Returns the mass of sums of weights, of 32 bits, at some shifts."""
    sums = lax.bitcast_convert_type(sums, jnp.uint32)
    up = (NO_SHIFT - shift).astype(jnp.uint32)
    return Mass(high=(sums >> 1) >> (31 - up), low=sums << up)


def total(mass: Mass) -> Mass:
    """Returns the sum of masses along the last axis."""
    return carried(jnp.sum(jnp.stack(limbs(mass)), axis=-1, dtype=jnp.uint32))


def together(mass: Mass, add_up: Callable[[Array], Array]) -> Mass:
    """Returns the sum of the masses of devices; `add_up` adds integers over the devices."""
    return carried(add_up(jnp.stack(limbs(mass))))


def cumulative(mass: Mass) -> Mass:
    """Returns the running sums of masses along the last axis, each with its own term."""
    return carried(jnp.cumsum(jnp.stack(limbs(mass)), axis=-1, dtype=jnp.uint32))


def add(a: Mass, b: Mass) -> Mass:
    """Returns the sum of two masses."""
    low = a.low + b.low
    return Mass(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def subtract(a: Mass, b: Mass) -> Mass:
    """Returns `a - b`, for `a >= b`."""
    return Mass(a.high - b.high - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def times(mass: Mass, factor: Array) -> Mass:
    """Returns a mass times integers of at most 16 bits."""
    return carried(jnp.stack(limbs(mass)) * factor.astype(jnp.uint32)[None])


def select(which: Array, a: Mass, b: Mass) -> Mass:
    """Returns `a` where `which` holds, else `b`."""
    return Mass(jnp.where(which, a.high, b.high), jnp.where(which, a.low, b.low))


def reaches(a: Mass, b: Mass) -> Array:
    """Whether `a >= b`."""
    return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def fraction(mass: Mass, p: Array) -> Mass:
    """Returns a share `p` in [0, 1] of a mass, at least one unit and at most the mass itself."""
    units = jnp.maximum(to_float(mass) * p, 1)
    high = _whole(units * 2.0**-32)
    share = Mass(_to_unsigned(high), _to_unsigned(units - high * 2.0**32))
    return select(reaches(share, mass), mass, share)


def to_float(mass: Mass) -> Array:
    """Returns the mass in units, float32."""
    return _from_unsigned(mass.high) * 2.0**32 + _from_unsigned(mass.low)


# Pallas in JAX 0.9 cannot convert unsigned integers. Both halves are exact, and so are products
# with powers of two, so that only the last sum is rounded.


def _from_unsigned(x: Array) -> Array:
    high, low = (of.astype(jnp.int32).astype(jnp.float32) for of in (x >> 16, x & _LIMB))
    return high * 2.0**16 + low


def _to_unsigned(x: Array) -> Array:
    high = _whole(x * 2.0**-16)
    high, low = (of.astype(jnp.int32).astype(jnp.uint32) for of in (high, x - high * 2.0**16))
    return high << 16 | low


def _whole(x: Array) -> Array:
    """Returns positive numbers below 2**31 rounded down; Mosaic GPU has no floor."""
    return x.astype(jnp.int32).astype(jnp.float32)


def log(mass: Mass) -> Array:
    """Returns the logarithm of a mass relative to the likeliest token's weight, -inf if empty."""
    return _elementary.log(to_float(mass) * 2.0**-FRACTION_BITS)


def rates(sums: Array, shift: Array) -> Array:
    """Returns the masses of single chunks, float32, relative to the likeliest token's weight."""
    scale = _power_of_two(-_WEIGHT_BITS - shift)
    return lax.bitcast_convert_type(sums, jnp.uint32).astype(jnp.float32) * scale


def _power_of_two(exponent: Array) -> Array:
    """Returns `2.0**exponent`, exact (`exp2` is not)."""
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def limbs(mass: Mass) -> list[Array]:
    """Returns four limbs of 16 bits, lowest first: 2**16 of them add up in 32 bits."""
    return [mass.low & _LIMB, mass.low >> 16, mass.high & _LIMB, mass.high >> 16]


def carried(limbs: Array | list[Array]) -> Mass:
    """Returns the mass of four sums of limbs, lowest first."""
    a, b, c, d = limbs
    b += a >> 16
    c += b >> 16
    d += c >> 16
    return Mass(high=(c & _LIMB) | (d << 16), low=(a & _LIMB) | (b << 16))
