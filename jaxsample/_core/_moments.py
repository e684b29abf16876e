"""Entropy, collision probability and standard deviation of rows, from exact sums.

Each is computed from sums of integers, so that rules which depend on it keep the same tokens in
every batch, slot and sharding.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsample._core import _chunks, _elementary, _mass, _ranking, _rows, _source
from jaxsample._core._checks import to_elements
from jaxsample._core._elementary import rounded
from jaxsample._core._mass import Mass, Scale
from jaxsample._core._ranking import Cut
from jaxsample._core._rows import Rows
from jaxsample._core._sortable import from_sortable

_LN_2 = 0.6931471805599453
_STEPS = 2**20
"""The number of steps from the least to the largest logit, the unit of the deviation."""


def log_sum(mass: Mass) -> Array:
    """Returns `log(sum(exp(logits - row_max)))`, `[...]`, from the mass of all tokens.

    It is minus the log-probability of the likeliest token.
    """
    return rounded(_mass.log(mass))


def log_ratio(part: Mass, whole: Mass) -> Array:
    """Returns `log(part / whole)`, `[...]`, precise also if the part is nearly the whole."""
    inside = _mass.reaches(whole, part)  # otherwise they are relative to different maxima
    missing = _mass.subtract(whole, _mass.select(inside, part, whole))
    share, rest = (_mass.to_float(of) / _mass.to_float(whole) for of in (part, missing))
    most = inside & (rest > 0) & (rest < 0.5)
    precise = _elementary.log1m(jnp.where(most, rest, 0))
    return rounded(jnp.where(most, precise, _elementary.log(share)))


def entropy(rows: Rows, scale: Scale, sums: Array, cut: Cut | None = None) -> tuple[Array, Array]:
    """Returns the entropy in nats, `[...]`, and `log_sum`, of the tokens up to a cut, or of all.

    The entropy is the mean distance below the maximum plus `log_sum`. `sums` are the weights of
    these tokens by chunk.
    """
    keep, *ends = (None,) if cut is None else _ranking.up_to(rows, cut)
    rows, sums = _rows.read_again(rows, sums)

    def distance(raw: Array, ids: Array, places: np.ndarray, shift: Array, *end: Array) -> Array:
        row_max = rows.row_max[..., None, None]
        octaves = _mass.weighted_octaves(rows.read(raw), places, row_max, shift)
        if keep is None:
            return octaves
        return jnp.where(keep(rows.read_to_cut(raw), places, *end), octaves, 0)

    # Distances within a chunk are relative to its shift, which is added here.
    distances = _chunks.chunk_sums(rows.source, distance, scale.shifts, *ends)
    further = _mass.place(distances, scale.shifts)
    weights = _mass.place(sums, scale.shifts)
    total = _mass.total(_mass.add(further, _mass.times(weights, scale.shifts)))
    whole = _mass.total(weights)
    mean = rounded(_mass.to_float(total) / _mass.to_float(whole) * _LN_2)
    return rounded(mean + log_sum(whole)), log_sum(whole)


def log_collision(rows: Rows, log_sum: Array) -> Array:
    """Returns `log(sum(p**2))`, `[...]`: the log-probability that two draws are equal."""
    rows, log_sum = _rows.read_again(rows, log_sum)
    zero = jnp.zeros_like(rows.row_max)
    below = _below(rows, _chunks.chunk_max(rows))
    squared = Scale(_mass.shifts(2 * below, jnp.zeros_like(below)), zero)

    def square(raw: Array, ids: Array, places: np.ndarray, shift: Array) -> Array:
        return squared.weights(2 * _below(rows, rows.read(raw)), places, shift)

    sums = _chunks.chunk_sums(rows.source, square, squared.shifts)
    squares = rounded(_mass.log(_mass.total(_mass.place(sums, squared.shifts))))
    return rounded(squares - 2 * log_sum)


def deviation(rows: Rows) -> Array:
    """Returns the standard deviation of the finite logits, `[...]`, as a population."""
    least = _least(rows)
    spread = rounded(0.5 * rows.row_max - 0.5 * least)  # halves cannot overflow
    per_step = jnp.where(spread > 0, jnp.minimum(_STEPS / spread, np.finfo(np.float32).max), 0)
    per_step = rounded(per_step)[..., None, None]

    def mean(element: Callable[[Array], Array]) -> Array:
        """Returns the mean over finite logits of an integer function of their steps."""
        again, _ = _rows.read_again(rows, rows.bad)

        def value(raw: Array, *_: Array) -> Array:
            x = again.read(raw)
            finite = x > -jnp.inf
            halved = 0.5 * rows.row_max[..., None, None] - 0.5 * jnp.where(finite, x, 0)
            return jnp.where(finite, element(jnp.rint(halved * per_step).astype(jnp.int32)), 0)

        sums = _chunks.chunk_sums(again.source, value)
        total = _mass.total(_mass.place(sums, jnp.full_like(sums, _mass.NO_SHIFT)))
        return rounded(_mass.to_float(total) / number)

    number = rounded(_mass.to_float(_chunks.mass(rows, _chunks.tally(rows))))
    centre = jnp.rint(mean(lambda steps: steps)).astype(jnp.int32)[..., None, None]

    # A square has 40 bits. The products of its halves of 10 bits add up within 32 bits.
    def high(steps: Array) -> Array:
        return jnp.abs(steps - centre) >> 10

    def low(steps: Array) -> Array:
        return jnp.abs(steps - centre) & 1023

    squares = mean(lambda steps: high(steps) * high(steps)) * 2.0**20
    squares = squares + mean(lambda steps: high(steps) * low(steps)) * 2.0**11
    squares = squares + mean(lambda steps: low(steps) * low(steps))
    return rounded(jnp.sqrt(rounded(squares)) * (2 / _STEPS) * spread)


def _least(rows: Rows) -> Array:
    """Returns the least finite logit of each row."""

    def element(raw: Array, *_: Array) -> Array:
        x = rows.read(raw)
        return jnp.where(x > -jnp.inf, -x, -jnp.inf)

    keys = _chunks.chunk_maxima(rows.source, element, _source.BLOCK)
    return -from_sortable(jnp.max(keys, axis=-1))


def _below(rows: Rows, x: Array) -> Array:
    """Returns logits `[..., *]` minus the maximum, at most 0."""
    return x - to_elements(rows.row_max, x)
