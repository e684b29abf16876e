"""The search of the whole row for the shortest prefix whose mass reaches a target.

The search narrows bounds on the value by which tokens are ranked, then, unless all tokens of that
value are kept, on their ids. Each pass sums the weights of the tokens up to a cut between the
bounds, which is interpolated from the masses at the bounds. Masses are exact, so the result does
not depend on the choice of cuts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _mass
from jaxsample._core._chunks import mass
from jaxsample._core._mass import Mass, Scale
from jaxsample._core._ranking import Cut, select, up_to
from jaxsample._core._rows import Rows, read_again
from jaxsample._core._sortable import from_sortable, mean, to_sortable

_INTERPOLATIONS = 16
"""The number of iterations that interpolate between the bounds. Later ones halve the number of
floats, or of ids, between them, so that every search ends.
"""

_COARSE = 2**16
"""The number of floats from one bfloat16 number to the next. While bounds are further apart, cuts
are bfloat16 numbers: most models compute logits in bfloat16, so many of them are equal.
"""


class Order(NamedTuple):
    """The order in which tokens are ranked.

    Attributes:
      value: returns the values of logits `[..., *]`; -inf for -inf.
      least_logit: returns the least logit of tokens with at least some value `[...]`.
      read: returns the value of a float32 number `[...]`; monotone.
      top: float32 `[...]`, an upper bound of the numbers.
      spread: float32 `[...]`, the distance from `top` to the first cut. It is doubled until the
        target is reached.
    """

    value: Callable[[Array], Array]
    least_logit: Callable[[Array], Array]
    read: Callable[[Array], Array]
    top: Array
    spread: Array

    def of(self, sortable: Array) -> Array:
        """Returns the value of a sortable integer."""
        return self.read(from_sortable(sortable))


class _Bounds(NamedTuple):
    """Bounds of the cut, `[...]`.

    Attributes:
      low: the largest sortable integer known to reach the target with all tokens of its value.
      high: the smallest one known to miss it.
      first: the smallest id of the cut among tokens of the value of `low`.
      last: the largest id of the cut, at which the target is reached.
      reached: the mass up to `low` and `last`.
      missed: the mass up to `high`, or of the tokens before `first` of the value of `low`.
      repeated: the number of consecutive moves of one bound, negative for `high` or `first`.
    """

    low: Array
    high: Array
    first: Array
    last: Array
    reached: Mass
    missed: Mass
    repeated: Array

    @property
    def by_value(self) -> Array:
        """Whether there are sortable integers between the bounds."""
        return self.high - 1 > self.low


def by_logit(rows: Rows) -> Order:
    """Returns the order of law 1: values are scaled logits, numbers are logits as given."""
    # Half the distance to the least block maximum, where most rows reach a target.
    least = jnp.min(rows.block_max, axis=-1, initial=jnp.inf, where=rows.block_max > -jnp.inf)
    spread = 0.5 * (rows.row_max - least)
    if rows.cut_beta is not None:
        spread /= rows.cut_beta
    return Order(lambda x: x, lambda value: value, rows.read_to_cut, rows.raw_max, spread)


def search(
    rows: Rows,
    scale: Scale,
    before: Cut,
    target: Callable[[Mass], Mass],
    needed: Array,
    order: Order,
    *,
    exact: bool = False,
) -> Cut:
    """Returns the shortest prefix whose mass reaches a target.

    Args:
      rows: the logits.
      scale: the weights of the tokens.
      before: the cut, in the same order, of the tokens whose mass determines the target.
      target: takes their mass and returns the target `[...]`, above 0. If it exceeds that mass, the
        whole row is kept.
      needed: bool `[...]`, the rows to search; the cuts of other rows are undefined.
      order: the order in which tokens are ranked, equal values by lower id.
      exact: static, whether the cut must be the last token itself. Otherwise it may be anywhere
        between that and the next token.

    Returns:
      The cut, whose `logit` is a value of the order; -inf if the whole row is kept.
    """

    def unfinished(state: tuple[Array, Mass, _Bounds]) -> Array:
        _, _, bounds = state
        return jnp.any(bounds.by_value | (bounds.first < bounds.last))

    def narrow(state: tuple[Array, Mass, _Bounds]) -> tuple[Array, Mass, _Bounds]:
        turn, goal, bounds = state
        by_value, share = bounds.by_value, _share(bounds, goal)
        # Whether only tokens are left whose value is the bfloat16 number `low`.
        tied = by_value & (bounds.low == bounds.high - _COARSE)
        middle = jnp.where(by_value & ~tied, _middle(turn, bounds, share, order), bounds.low)
        place = jnp.where(by_value, rows.vocab, _middle_id(turn, bounds, share))
        place = jnp.where(tied, -1, place)
        cut = select(turn < 0, before, Cut(order.of(middle), place))
        again, cut = read_again(rows, cut)
        found = mass(again, scale, *up_to(rows, cut, order.value))
        goal = _mass.select(turn < 0, target(found), goal)
        enough = _mass.reaches(found, goal)
        ended = (turn < 0) & ~enough  # the target exceeds the mass
        # The first iteration computes the target and moves no bound.
        more, less = (turn >= 0) & enough, (turn >= 0) & ~enough
        number = jnp.where(tied, middle + 1, middle)
        low = jnp.where(by_value & more, number, bounds.low)
        high = jnp.where(by_value & less, number, bounds.high)
        first = jnp.where(~by_value & less, place + 1, bounds.first)
        last = jnp.where(~by_value & more, place, bounds.last)
        reached = _mass.select(more & ~tied, found, bounds.reached)
        missed = _mass.select(less, found, bounds.missed)
        moved = jnp.where(more, 1, -1)
        repeated = moved + jnp.where(bounds.repeated * moved > 0, bounds.repeated, 0)
        if not exact:
            # Removing any of the tokens from `low` up would miss the target.
            least = scale.least(order.least_logit(order.of(low)))
            ended |= _mass.reaches(reached, goal) & ~_mass.reaches(reached, _mass.add(goal, least))
        high, first = jnp.where(ended, low + 1, high), jnp.where(ended, last, first)
        return turn + 1, goal, _Bounds(low, high, first, last, reached, missed, repeated)

    # A bfloat16 number above the largest value.
    above = order.top + 2.0**-6 * jnp.abs(order.top) + float(jnp.finfo(jnp.float32).tiny)
    high = to_sortable(_coarse(above))
    low = jnp.where(needed, to_sortable(jnp.full_like(above, -jnp.inf)), high - 1)
    # Derived from the bounds, so that they vary over the same mesh axes inside `shard_map`.
    last = jnp.full_like(low, rows.vocab, jnp.int32)
    nothing = Mass(jnp.zeros_like(low, jnp.uint32), jnp.zeros_like(low, jnp.uint32))
    first, repeated = jnp.where(needed, 0, last), jnp.zeros_like(last)
    start = _Bounds(low, high, first, last, nothing, nothing, repeated)
    *_, bounds = lax.while_loop(unfinished, narrow, (jnp.int32(-1), nothing, start))
    return Cut(order.of(bounds.low), bounds.last)


def _share(bounds: _Bounds, goal: Mass) -> Array:
    """Returns the position of the target between the masses at the bounds: 0 at `high`, 1 at `low`.

    This is the Illinois variant of regula falsi: each time the same bound moves again, the distance
    at the other bound is halved, so that both bounds converge.
    """
    beyond, short = (
        _mass.to_float(_mass.subtract(*of))
        for of in ((bounds.reached, goal), (goal, bounds.missed))
    )
    weight = 0.5 ** jnp.maximum(jnp.abs(bounds.repeated) - 1, 0).astype(jnp.float32)
    short = jnp.where(bounds.repeated > 0, short * weight, short)
    beyond = jnp.where(bounds.repeated < 0, beyond * weight, beyond)
    return short / jnp.maximum(short + beyond, 1)


def _middle(turn: Array, bounds: _Bounds, share: Array, order: Order) -> Array:
    """Returns a sortable integer between the bounds, from `low + 1` to `high - 1`."""
    low, high = bounds.low, bounds.high
    least, most = (from_sortable(x) for x in (low, high))
    most = jnp.minimum(most, order.top)
    steps = jnp.left_shift(1, jnp.clip(turn, 0, 12)).astype(jnp.float32)
    # Without a spread the first cut is `top`, and the next ones are 1, 3, 7, ... nats below.
    step = jnp.where(order.spread > 0, steps * order.spread, steps - 1)
    value = jnp.where(least == -jnp.inf, most - step, most + (least - most) * share)
    wide = (low <= high - 2 * _COARSE) & (turn < _INTERPOLATIONS)
    by_value = to_sortable(jnp.where(wide, _coarse(value), value))
    by_number = mean(low, high)
    distance = jnp.where(wide, _COARSE, 1)
    middle = jnp.where(turn < _INTERPOLATIONS, by_value, by_number)
    return jnp.clip(middle, low + distance, high - distance)


def _coarse(value: Array) -> Array:
    """Returns float32 values rounded to bfloat16 precision."""
    return lax.reduce_precision(value, exponent_bits=8, mantissa_bits=7)


def _middle_id(turn: Array, bounds: _Bounds, share: Array) -> Array:
    """Returns an id between the bounds, from `first` to `last - 1`."""
    first, last = bounds.first, bounds.last
    number = (last - first).astype(jnp.float32)
    by_mass = jnp.clip(first + (number * share).astype(jnp.int32), first, last - 1)
    return jnp.where(turn < _INTERPOLATIONS, by_mass, (first + last) >> 1)
