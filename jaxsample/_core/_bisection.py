"""Bisection over the whole row for the shortest prefix whose mass reaches a target.

Bisects over the values by which tokens are ranked: each pass sums the weights from one value up. It
ends where few enough tokens are left between the bounds to be compared one by one, or where all
that are left are equal. Masses are exact, so the result does not depend on the path.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _mass, _ranking
from jaxsample._core._checks import to_elements
from jaxsample._core._chunks import (
    BLOCK,
    CHUNK,
    Rows,
    at,
    chunk_maxima,
    first_true,
    from_sortable,
    mass,
    read_again,
    take_chunk,
    to_sortable,
    weigh,
)
from jaxsample._core._mass import Mass, Scale
from jaxsample._core._ranking import Cut

_FEW = 19
"""Tokens that are compared one by one: more save a pass, but they move between devices."""

_GROUPS = 16
"""Groups of chunks with separate running sums: each device of a mesh holds whole groups."""

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

    def of(self, key: Array) -> Array:
        """Returns the value of a number's key."""
        return self.read(from_sortable(key, self.dtype))


class _Bounds(NamedTuple):
    """The keys of two numbers, `[...]`, and the mass of the tokens from the value of each up.

    From `low` up the target is reached, or `low` is -inf; from `high` up it is not.
    """

    low: Array
    high: Array
    reached: Mass
    missed: Mass


def by_logit(rows: Rows) -> Order:
    """Returns the order of law 1: values are logits as read, bounds are logits as given."""
    return Order(lambda x: x, lambda value: value, rows.read_to_cut, rows.raw_max, rows.dtype)


def search(rows: Rows, scale: Scale, target: Mass, needed: Array, order: Order) -> Cut:
    """Returns the shortest prefix whose mass reaches a target.

    Args:
      rows: the logits.
      scale: what a token weighs.
      target: `[...]`, more than nothing; one beyond the mass of the row keeps all of it.
      needed: bool `[...]`, the rows to search; the others get any cut.
      order: what the tokens are ranked by, equal values by lower id.

    Returns:
      The cut, in which `logit` is the value of the last token.
    """
    bounds = _narrowed(rows, scale, target, needed, order)
    few = _are_few(scale, bounds, order)
    everything = _ranking.everything(rows)

    def among_few() -> Cut:
        return _among_few(rows, scale, target, bounds, order)

    def among_equals() -> Cut:
        return _among_equals(rows, scale, target, bounds, order)

    found = lax.cond(jnp.any(needed & few), among_few, lambda: everything)
    equal = lax.cond(jnp.any(needed & ~few), among_equals, lambda: everything)
    return _ranking.select(few, found, equal)


def _narrowed(rows: Rows, scale: Scale, target: Mass, needed: Array, order: Order) -> _Bounds:
    """Returns bounds between which few tokens are left, or only equal ones."""

    def unsettled(state: tuple[Array, _Bounds]) -> Array:
        _, bounds = state
        return jnp.any((bounds.high - 1 > bounds.low) & ~_are_few(scale, bounds, order))

    def halve(state: tuple[Array, _Bounds]) -> tuple[Array, _Bounds]:
        turn, (low, high, reached, missed) = state
        again, middle = read_again(rows, _middle(turn, low, high, order))
        value = order.of(middle)[..., None, None]
        found = mass(again, scale, lambda x, _: order.value(x) >= value)
        enough = _mass.reaches(found, target)
        return turn + 1, _Bounds(
            jnp.where(enough, middle, low),
            jnp.where(enough, high, middle),
            _mass.select(enough, found, reached),
            _mass.select(enough, missed, found),
        )

    # Above the largest; and above 0 a normal number, since smaller ones may be flushed to 0.
    info = jnp.finfo(order.dtype)
    above = order.top + 4 * float(info.eps) * jnp.abs(order.top) + float(info.tiny)
    high = to_sortable(above.astype(order.dtype))
    low = jnp.where(needed, to_sortable(jnp.full_like(above, -jnp.inf, order.dtype)), high - 1)
    # Derived from the bounds, so that it varies over the same mesh axes inside `shard_map`.
    nothing = Mass(jnp.zeros_like(low, jnp.uint32), jnp.zeros_like(low, jnp.uint32))
    unknown = jax.tree.map(jnp.invert, nothing)  # the largest mass, so that the tokens are not few
    start = (jnp.int32(0), _Bounds(low, high, unknown, nothing))
    return lax.while_loop(unsettled, halve, start)[1]


def _middle(turn: Array, low: Array, high: Array, order: Order) -> Array:
    """Returns a key between two, from `low + 1` to `high - 1`."""
    least, most = (from_sortable(key, order.dtype).astype(jnp.float32) for key in (low, high))
    most = jnp.minimum(most, order.top)
    # Steps that double find a first value from which the target is reached.
    step = jnp.left_shift(1, jnp.minimum(turn, _TURNS_BY_VALUE)).astype(jnp.float32)
    value = jnp.where(least == -jnp.inf, most - step, 0.5 * least + 0.5 * most)
    by_value = to_sortable(value.astype(order.dtype))
    by_key = (low & high) + ((low ^ high) >> 1)  # their mean, rounded down, without overflow
    return jnp.clip(jnp.where(turn < _TURNS_BY_VALUE, by_value, by_key), low + 1, high - 1)


def _are_few(scale: Scale, bounds: _Bounds, order: Order) -> Array:
    """Whether at most `_FEW` tokens can lie between the bounds, by their least weight."""
    keys = (bounds.low, bounds.high)  # a token's weight is least at one of the bounds
    least, other = (scale.least(order.least_logit(order.of(key))) for key in keys)
    least = _mass.select(_mass.reaches(least, other), other, least)
    most = _mass.times(least, jnp.full_like(least.low, _FEW))
    return _mass.reaches(_mass.add(bounds.missed, most), bounds.reached)


def _among_few(rows: Rows, scale: Scale, target: Mass, bounds: _Bounds, order: Order) -> Cut:
    """Returns the cut among the first tokens below the upper bound."""
    most = order.of(bounds.high)

    def value(x: Array) -> Array:
        value = order.value(x)
        return jnp.where(value < to_elements(most, x), value, -jnp.inf)

    sortable = chunk_maxima(rows.source, lambda raw, *_: value(rows.read(raw)), BLOCK)
    block_max = from_sortable(sortable)
    top, raw = _ranking.first(rows, block_max, _FEW, value)
    weights = _ranking.weights(scale, rows.read(raw), top.token)
    running = _running(bounds.missed, weights, _ranking.shifts(scale, top.token))
    last = first_true(_mass.reaches(running, _expand(target)))
    return jax.tree.map(lambda a: at(a, last), top)


def _among_equals(rows: Rows, scale: Scale, target: Mass, bounds: _Bounds, order: Order) -> Cut:
    """Returns the cut among tokens of the lower bound's value: first its chunk, then its place."""
    value = order.of(bounds.low)
    ties = weigh(rows, scale, lambda x, _: order.value(x) == value[..., None, None])
    groups = 1 if ties.shape[-1] % _GROUPS else _GROUPS
    running = _running(bounds.missed, ties, scale.shifts, groups)
    chunk = first_true(_mass.reaches(running, _expand(target)))

    # Concatenated with the start, a sharded array would be gathered.
    before = jax.tree.map(lambda r: at(r, jnp.maximum(chunk - 1, 0)), running)
    before = _mass.select(chunk > 0, before, bounds.missed)
    shift = at(scale.shifts, chunk)[..., None]
    raw, ids = take_chunk(rows, chunk)
    x = rows.read(raw)
    ties = jnp.where(order.value(x) == value[..., None], scale.weights(x, ids % CHUNK, shift), 0)
    running = _running(before, ties, shift)
    return Cut(value, at(ids, first_true(_mass.reaches(running, _expand(target)))))


def _running(start: Mass, sums: Array, shifts: Array, groups: int = 1) -> Mass:
    """Returns the mass after each of `sums`, `[..., n]`, counted from a start `[...]`."""
    return _mass.add(_expand(start), _mass.cumulative(_mass.place(sums, shifts), groups))


def _expand(mass: Mass) -> Mass:
    return Mass(mass.high[..., None], mass.low[..., None])
