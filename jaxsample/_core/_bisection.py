"""Bisection over the whole row for the shortest prefix whose mass reaches a target.

Bisects over the values by which tokens are ranked, then over the ids of the tokens of the last
value unless all of them are needed. Each pass sums the weights of the tokens up to a cut. Masses
are exact, so the result does not depend on the path.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _mass
from jaxsample._core._chunks import Rows, from_sortable, mass, read_again, to_sortable
from jaxsample._core._mass import Mass, Scale
from jaxsample._core._ranking import Cut, select, up_to

_TURNS_BY_VALUE = 12
"""Turns that halve the distance between the bounds. The others halve the number of floats between
them, of which most are close to 0 and which end any search after as many turns as a float has bits.
"""


class Order(NamedTuple):
    """The order in which tokens are ranked.

    Attributes:
      value: of logits `[..., *]`; -inf at -inf.
      least_logit: the least logit of tokens from a value `[...]` up.
      read: the value that a number of `dtype` `[...]` stands for; it rises with the number.
      top: float32 `[...]`, a number which none that stands for a value exceeds.
      dtype: of the numbers. Values that come from bfloat16 logits are told apart in 16 turns.
    """

    value: Callable[[Array], Array]
    least_logit: Callable[[Array], Array]
    read: Callable[[Array], Array]
    top: Array
    dtype: Any

    def of(self, sortable: Array) -> Array:
        """Returns the value of a sortable number."""
        return self.read(from_sortable(sortable, self.dtype))


class _Bounds(NamedTuple):
    """Bounds of the cut, `[...]`.

    Attributes:
      low: the largest sortable number known to reach the target with all tokens of its value.
      high: the least one known to miss it.
      first: the least id at which the cut may lie among tokens of the value of `low`.
      last: the largest one, at which the target is reached.
      reached: the mass from `low` up.
    """

    low: Array
    high: Array
    first: Array
    last: Array
    reached: Mass

    @property
    def by_value(self) -> Array:
        """Whether numbers are left between the bounds."""
        return self.high - 1 > self.low


def by_logit(rows: Rows) -> Order:
    """Returns the order of law 1: values are logits as read, bounds are logits as given."""
    return Order(lambda x: x, lambda value: value, rows.read_to_cut, rows.raw_max, rows.dtype)


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
      before: the cut, by the same order, of the tokens whose mass gives the target.
      target: takes their mass, returns the target `[...]`, above 0. If it exceeds that mass, the
        whole row is kept.
      needed: bool `[...]`, the rows to search; the others get any cut.
      order: the order in which tokens are ranked, equal values by lower id.
      exact: static, whether the cut is the last token itself. Otherwise it may lie anywhere between
        that and the next token.

    Returns:
      The cut, whose `logit` is a value of the order; -inf where the whole row is kept.
    """

    def unfinished(state: tuple[Array, Mass, _Bounds]) -> Array:
        _, _, bounds = state
        return jnp.any(bounds.by_value | (bounds.first < bounds.last))

    def halve(state: tuple[Array, Mass, _Bounds]) -> tuple[Array, Mass, _Bounds]:
        turn, goal, bounds = state
        by_value = bounds.by_value
        middle = jnp.where(by_value, _middle(turn, bounds, order), bounds.low)
        place = jnp.where(by_value, rows.vocab, (bounds.first + bounds.last) >> 1)
        cut = select(turn < 0, before, Cut(order.of(middle), place))
        again, cut = read_again(rows, cut)
        found = mass(again, scale, *up_to(rows, cut, order.value))
        goal = _mass.select(turn < 0, target(found), goal)
        enough = _mass.reaches(found, goal)
        ended = (turn < 0) & ~enough  # the target is out of reach
        # The first turn finds the target and moves no bound.
        by_id = ~by_value & (turn >= 0)
        by_value &= turn >= 0
        low = jnp.where(by_value & enough, middle, bounds.low)
        high = jnp.where(by_value & ~enough, middle, bounds.high)
        first = jnp.where(by_id & ~enough, place + 1, bounds.first)
        last = jnp.where(by_id & enough, place, bounds.last)
        reached = _mass.select(by_value & enough, found, bounds.reached)
        if not exact:
            # Without any one of the tokens from `low` up, the target would be missed.
            least = scale.least(order.least_logit(order.of(low)))
            ended |= _mass.reaches(reached, goal) & ~_mass.reaches(reached, _mass.add(goal, least))
        high, first = jnp.where(ended, low + 1, high), jnp.where(ended, last, first)
        return turn + 1, goal, _Bounds(low, high, first, last, reached)

    # Above the largest; and above 0 a normal number, since smaller ones may be flushed to 0.
    info = jnp.finfo(order.dtype)
    above = order.top + 4 * float(info.eps) * jnp.abs(order.top) + float(info.tiny)
    high = to_sortable(above.astype(order.dtype))
    low = jnp.where(needed, to_sortable(jnp.full_like(above, -jnp.inf, order.dtype)), high - 1)
    # Derived from the bounds, so that it varies over the same mesh axes inside `shard_map`.
    last = jnp.full_like(low, rows.vocab, jnp.int32)
    nothing = Mass(jnp.zeros_like(low, jnp.uint32), jnp.zeros_like(low, jnp.uint32))
    start = _Bounds(low, high, jnp.where(needed, 0, last), last, nothing)
    *_, bounds = lax.while_loop(unfinished, halve, (jnp.int32(-1), nothing, start))
    return Cut(order.of(bounds.low), bounds.last)


def _middle(turn: Array, bounds: _Bounds, order: Order) -> Array:
    """Returns a sortable number between the bounds, from `low + 1` to `high - 1`."""
    low, high = bounds.low, bounds.high
    least, most = (from_sortable(x, order.dtype).astype(jnp.float32) for x in (low, high))
    most = jnp.minimum(most, order.top)
    # Steps that double find a first value from which the target is reached.
    step = jnp.left_shift(1, jnp.clip(turn, 0, _TURNS_BY_VALUE)).astype(jnp.float32)
    value = jnp.where(least == -jnp.inf, most - step, 0.5 * least + 0.5 * most)
    by_value = to_sortable(value.astype(order.dtype))
    by_number = (low & high) + ((low ^ high) >> 1)  # their mean, rounded down, without overflow
    return jnp.clip(jnp.where(turn < _TURNS_BY_VALUE, by_value, by_number), low + 1, high - 1)
