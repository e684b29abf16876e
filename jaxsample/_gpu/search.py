"""The search for the last kept token of rows, in one launch.

The cut equals that of `_core/_bisection`, from the same weights and exact masses. A pass over the
row adds up the weights at or above eight pivots, evenly spaced between the bounds, and so narrows
the bounds to a ninth. Pivots are sortable integers of logits, then ids among equal logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _mass, _ranking
from jaxsample._core._mass import Mass
from jaxsample._core._ranking import Cut, Kept
from jaxsample._core._sortable import from_sortable
from jaxsample._gpu import masses, tiles
from jaxsample._gpu.masses import LEAST, MOST, PIVOTS, Inputs, Tokens
from jaxsample._gpu.tiles import Tile


def search(
    inputs: Inputs, order: tuple[tuple[str, ...], ...], *, weighed: bool, interpret: bool
) -> tuple[Cut, Kept | None]:
    """Returns the cuts of top-k, top-p and min-p, and if `weighed` the weights of the kept tokens.

    A cut may be anywhere between the last kept token and the next one.

    Args:
      inputs: the rows and their parameters.
      order: the groups of rules.
      weighed: whether to also weigh and count the kept tokens.
      interpret: whether to run without a GPU.
    """

    def body(tokens: Tokens, number_ref: Any, token_ref: Any, *kept_refs: Any) -> None:
        cut = before = tokens.everything()
        for group in order:
            for name in group:
                found = _cut_of(tokens, name, before)
                cut = _ranking.select(masses.is_kept(*found, cut), found, cut)
            before = cut
        number_ref[tokens.row.number], token_ref[tokens.row.number] = cut
        if weighed:
            _weigh_kept(tokens, cut, *kept_refs)

    chunks = inputs.shifts.shape[1]
    outputs: list[Any] = [((), jnp.int32), ((), jnp.int32)]
    outputs += [((tiles.padded(chunks),), jnp.int32), ((), jnp.int32)] * weighed
    number, token, *kept = masses.call("search", body, inputs, outputs, interpret)
    cut = Cut(from_sortable(number), token)
    return cut, Kept(kept[0][:, :chunks], kept[1]) if weighed else None


def _cut_of(tokens: Tokens, name: str, before: Cut) -> Cut:
    """Returns the cut of a rule, with a sortable integer, among the tokens up to another cut."""
    if name == "min_p":
        return tokens.everything()._replace(logit=tokens.given["floor"])
    k, p = tokens.given["k"], tokens.given["p"]
    tokens = tokens._replace(counting=name == "top_k")
    on = k < tokens.row.vocab if tokens.counting else p < 1

    def searched() -> Cut:
        (whole,) = tokens.masses(masses.up_to(before))
        goal = _mass.fraction(whole, p)
        if tokens.counting:
            goal = Mass(jnp.uint32(0), k.astype(jnp.uint32))
        there = _mass.reaches(whole, goal)
        return Cut(*lax.cond(there, lambda: _reached(tokens, goal), tokens.everything))

    return Cut(*lax.cond(on, searched, tokens.everything))


class _Bounds(NamedTuple):
    """Bounds of the cut. A number is a sortable integer, or minus an id.

    Attributes:
      low: the largest number known to reach the goal.
      high: the smallest one known to miss it.
      reached: the mass at or above `low`.
    """

    low: Array
    high: Array
    reached: Mass


def _reached(tokens: Tokens, goal: Mass) -> Cut:
    """Returns the cut at which the mass reaches a goal."""
    highest = jnp.max(masses.sortable(tiles.filled(tokens.given["row_max"])))
    bounds = _Bounds(jnp.int32(LEAST), highest + 1, Mass(jnp.uint32(0), jnp.uint32(0)))
    low, _, reached = found = _narrowed(tokens, lambda x, _: x, goal, tokens.least, bounds)
    least = tokens.least(low)
    tied = ~_ends(found, goal, least)

    def by_id(x: Array, ids: Array) -> Array:
        return jnp.where(x == low, -ids, jnp.where(x > low, MOST, LEAST))

    first = jnp.where(tied, jnp.int32(-tokens.row.vocab), 0)
    bounds = _Bounds(first, jnp.int32(1), reached)
    ids = _narrowed(tokens, by_id, goal, lambda _: least, bounds)
    return Cut(low, jnp.where(tied, -ids.low, jnp.int32(tokens.row.vocab)))


def _narrowed(
    tokens: Tokens,
    number: Callable[[Array, Array], Array],
    goal: Mass,
    least: Callable[[Array], Mass],
    bounds: _Bounds,
) -> _Bounds:
    """Narrows bounds until no number is between them, or no token from `low` up can be dropped.

    Args:
      tokens: the tokens.
      number: takes sortable logits and ids, returns the numbers of tokens.
      goal: the mass to reach.
      least: takes a number, returns a lower bound of the mass of a token with that number.
      bounds: the initial bounds.
    """

    def unfinished(bounds: _Bounds) -> Array:
        return (bounds.high - 1 > bounds.low) & ~_ends(bounds, goal, least(bounds.low))

    def turn(bounds: _Bounds) -> _Bounds:
        low, high, reached = bounds
        # Unsigned, since the distance may overflow a signed integer.
        step = (high - low).astype(jnp.uint32) // jnp.uint32(PIVOTS + 1)
        step = jnp.maximum(step.astype(jnp.int32), 1)
        pivots = [jnp.minimum(low + step * i, high - 1) for i in range(1, PIVOTS + 1)]

        def tests(x: Array, ids: Array) -> list[Array]:
            return [number(x, ids) >= pivot for pivot in pivots]

        for pivot, mass in zip(pivots, tokens.masses(tests, PIVOTS), strict=True):
            enough = _mass.reaches(mass, goal)
            low = jnp.where(enough, pivot, low)
            high = jnp.where(enough, high, jnp.minimum(pivot, high))
            reached = _mass.select(enough, mass, reached)
        return _Bounds(low, high, reached)

    return _Bounds(*lax.while_loop(unfinished, turn, bounds))


def _ends(bounds: _Bounds, goal: Mass, least: Mass) -> Array:
    """Whether removing any of the tokens from the lower bound up would miss the goal."""
    enough = _mass.add(goal, least)
    return _mass.reaches(bounds.reached, goal) & ~_mass.reaches(bounds.reached, enough)


def _weigh_kept(tokens: Tokens, cut: Cut, sums_ref: Any, number_ref: Any) -> None:
    """Stores the sums of the weights of the tokens up to a cut, by chunk, and their number."""
    row, sums = tokens.row.number, tokens.sums

    def add_up(tile: Tile, weights: Array) -> None:
        kept = masses.is_kept(masses.sortable(tile.x), tile.ids, cut) & (tile.x > -jnp.inf)
        sums[0, tile.chunks] = tiles.total(jnp.where(kept, weights, 0))
        sums[1, tile.chunks] = tiles.total(kept.astype(jnp.int32))

    tokens.each(add_up)
    sums_ref[row] = sums[0]
    number_ref[row] = jnp.sum(tiles.load_all(sums.at[1]), dtype=jnp.int32)
