"""The search for the last kept token of the rows that need it, and the masses of rows.

The cut is that of `_core/_bisection`, from the same weights and the same exact masses. A pass over
the row adds up the weights from several numbers up, which part the bounds evenly: each of them
narrows the bounds to a ninth. Numbers are logits as sortable integers, then minus the ids of equal
logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxsample._core import _mass, _ranking
from jaxsample._core._elementary import product
from jaxsample._core._mass import Mass
from jaxsample._core._ranking import Cut
from jaxsample._core._sortable import from_sortable, to_sortable
from jaxsample._gpu import tiles
from jaxsample._gpu.tiles import Row, Tile

_PIVOTS = 8
"""Numbers between the bounds that a pass looks at: with more of them, it would take longer than the
passes that it saves.
"""

_TOGETHER = 8
"""Chunks of a tile: with 16, a thread would have no register left."""

_MOST = np.iinfo(np.int32).max
_LEAST = int(np.float32(-np.inf).view(np.int32)) ^ _MOST
"""The sortable integer of -inf."""


class Inputs(NamedTuple):
    """The rows and their parameters.

    Attributes:
      logits: `[rows, vocab]`.
      shifts: int32 `[rows, chunks]`, of the weights.
      needed: bool `[rows]`, the rows to look at; the results of the others may be anything.
      row_max: float32 `[rows]`, the largest logit, multiplied by beta.
      beta: float32 `[rows]`, the inverse temperature, or None.
      k: int32 `[rows]`, the number of tokens to keep; not less than the vocabulary: not asked for.
      p: float32 `[rows]`, the share of the mass to keep; 1: not asked for.
      floor: float32 `[rows]`, the least logit to keep; -inf: not asked for.
    """

    logits: Array
    shifts: Array
    needed: Array
    row_max: Array
    beta: Array | None
    k: Array | None = None
    p: Array | None = None
    floor: Array | None = None


class Found(NamedTuple):
    """The results of the search for each row.

    Attributes:
      cut: `[rows]`; it lies anywhere between the last kept token and the next one.
      sums: int32 `[rows, chunks]`, the weights of the kept tokens, added up by chunk, or None.
      num_kept: int32 `[rows]`, the number of these tokens, or None.
    """

    cut: Cut
    sums: Array | None = None
    num_kept: Array | None = None


def search(
    inputs: Inputs, order: tuple[tuple[str, ...], ...], *, weighed: bool, interpret: bool
) -> Found:
    """Returns the cut of the tokens that top-k, top-p and min-p keep.

    Args:
      inputs: the rows and their parameters.
      order: the groups of rules.
      weighed: whether to weigh and count the kept tokens, too.
      interpret: whether to run without a GPU.
    """

    def body(tokens: "_Tokens", number_ref: Any, token_ref: Any, *kept_refs: Any) -> None:
        cut = before = tokens.everything()
        for group in order:
            for name in group:
                found = _cut_of(tokens, name, before)
                cut = _ranking.select(_is_kept(*found, cut), found, cut)
            before = cut
        number_ref[tokens.row.number], token_ref[tokens.row.number] = cut
        if weighed:
            _weigh_kept(tokens, cut, *kept_refs)

    chunks = inputs.shifts.shape[1]
    outputs: list[Any] = [((), jnp.int32), ((), jnp.int32)]
    outputs += [((tiles.padded(chunks),), jnp.int32), ((), jnp.int32)] * weighed
    number, token, *kept = _call("search", body, inputs, outputs, interpret)
    cut = Cut(from_sortable(number), token)
    return Found(cut, kept[0][:, :chunks], kept[1]) if weighed else Found(cut)


def row_masses(inputs: Inputs, *, interpret: bool) -> Mass:
    """Returns the masses `[rows]` of all tokens."""

    def body(tokens: "_Tokens", high_ref: Any, low_ref: Any) -> None:
        (mass,) = tokens.masses(_up_to(tokens.everything()))
        high_ref[tokens.row.number], low_ref[tokens.row.number] = mass

    return Mass(*_call("row_masses", body, inputs, [((), jnp.uint32)] * 2, interpret))


Tests = Callable[[Array, Array], list[Array]]
"""Takes the sortable logits and the ids of tokens, returns which of them pass each test."""


class _Tokens(NamedTuple):
    """The tokens of a row.

    Attributes:
      row: the row.
      sums: int32 `[_PIVOTS, chunks]` in shared memory.
      shifts: the reference to the shifts of the weights, padded.
      given: the parameters of the row, of the names in `Inputs`; the floor is a sortable integer.
      counting: whether each token weighs one unit.
    """

    row: Row
    sums: Any
    shifts: Any
    given: dict[str, Array]
    counting: bool = False

    def everything(self) -> Cut:
        """Returns the cut behind the last token."""
        return Cut(jnp.int32(_LEAST), jnp.int32(self.row.vocab))

    def add_up(self, tests: Tests) -> None:
        """Adds up the weights of the tokens of each chunk that pass each test."""

        def visit(tile: Tile) -> None:
            if "beta" in self.given:
                tile = tile._replace(x=product(tile.x, self.given["beta"]))
            if self.counting:
                weights = (tile.x > -jnp.inf).astype(jnp.int32)
            else:
                shifts = tiles.load(self.shifts.at[self.row.number, tile.chunks])
                weights = tile.weights(self.given["row_max"], shifts)
            for place, passed in enumerate(tests(_sortable(tile.x), tile.ids)):
                sums = jnp.sum(jnp.where(passed, weights, 0), axis=-1, dtype=jnp.int32)
                self.sums[place, tile.chunks] = sums

        self.row.each(visit)

    def masses(self, tests: Tests, number: int = 1) -> list[Mass]:
        """Returns the masses of the tokens that pass each of a number of tests."""
        self.add_up(tests)
        shifts = tiles.load_all(self.shifts.at[self.row.number])
        shifts = jnp.full_like(shifts, _mass.NO_SHIFT) if self.counting else shifts
        found = []
        for place in range(number):
            limbs = _mass.limbs(_mass.place(tiles.load_all(self.sums.at[place]), shifts))
            found.append(_mass.carried([jnp.sum(limb, dtype=jnp.uint32) for limb in limbs]))
        return found

    def least(self, number: Array) -> Mass:
        """Returns a lower bound of the weight of a token, by its sortable logit."""
        if self.counting:
            return Mass(jnp.uint32(0), jnp.uint32(1))
        x = from_sortable(tiles.filled(number))
        nothing = tiles.filled(jnp.int32(0))
        least = _mass.least(tiles.weights(x, nothing, self.given["row_max"], nothing))
        return Mass(*map(jnp.max, least))


def _cut_of(tokens: _Tokens, name: str, before: Cut) -> Cut:
    """Returns the cut of a rule among the tokens up to a cut; its logit is a sortable integer."""
    if name == "min_p":
        return tokens.everything()._replace(logit=tokens.given["floor"])
    k, p = tokens.given["k"], tokens.given["p"]
    tokens = tokens._replace(counting=name == "top_k")
    on = k < tokens.row.vocab if tokens.counting else p < 1

    def searched() -> Cut:
        (whole,) = tokens.masses(_up_to(before))
        goal = _mass.fraction(whole, p)
        if tokens.counting:
            goal = Mass(jnp.uint32(0), k.astype(jnp.uint32))
        there = _mass.reaches(whole, goal)
        return Cut(*lax.cond(there, lambda: _reached(tokens, goal), tokens.everything))

    return Cut(*lax.cond(on, searched, tokens.everything))


class _Bounds(NamedTuple):
    """Bounds of the cut.

    Attributes:
      low: the largest number known to reach the goal.
      high: the least one known to miss it.
      reached: the mass from `low` up.
    """

    low: Array
    high: Array
    reached: Mass


def _reached(tokens: _Tokens, goal: Mass) -> Cut:
    """Returns the cut at which the mass reaches a goal."""
    highest = jnp.max(_sortable(tiles.filled(tokens.given["row_max"])))
    bounds = _Bounds(jnp.int32(_LEAST), highest + 1, Mass(jnp.uint32(0), jnp.uint32(0)))
    low, _, reached = found = _narrowed(tokens, lambda x, _: x, goal, tokens.least, bounds)
    least = tokens.least(low)
    tied = ~_ends(found, goal, least)

    def by_id(x: Array, ids: Array) -> Array:
        return jnp.where(x == low, -ids, jnp.where(x > low, _MOST, _LEAST))

    first = jnp.where(tied, -tokens.row.vocab, 0)
    bounds = _Bounds(first, jnp.int32(1), reached)
    ids = _narrowed(tokens, by_id, goal, lambda _: least, bounds)
    return Cut(low, jnp.where(tied, -ids.low, tokens.row.vocab))


def _narrowed(
    tokens: _Tokens,
    number: Callable[[Array, Array], Array],
    goal: Mass,
    least: Callable[[Array], Mass],
    bounds: _Bounds,
) -> _Bounds:
    """Returns the bounds with no number between them, or from which every token is needed.

    Args:
      tokens: the tokens.
      number: their numbers, from their sortable logits and ids.
      goal: the mass to reach.
      least: takes a number, returns a lower bound of what its tokens weigh.
      bounds: those to begin with.
    """

    def unfinished(bounds: _Bounds) -> Array:
        return (bounds.high - 1 > bounds.low) & ~_ends(bounds, goal, least(bounds.low))

    def turn(bounds: _Bounds) -> _Bounds:
        low, high, reached = bounds
        # Unsigned, since the distance may be more than a signed number holds.
        step = (high - low).astype(jnp.uint32) // jnp.uint32(_PIVOTS + 1)
        step = jnp.maximum(step.astype(jnp.int32), 1)
        pivots = [jnp.minimum(low + step * i, high - 1) for i in range(1, _PIVOTS + 1)]

        def tests(x: Array, ids: Array) -> list[Array]:
            return [number(x, ids) >= pivot for pivot in pivots]

        for pivot, mass in zip(pivots, tokens.masses(tests, _PIVOTS), strict=True):
            enough = _mass.reaches(mass, goal)
            low = jnp.where(enough, pivot, low)
            high = jnp.where(enough, high, jnp.minimum(pivot, high))
            reached = _mass.select(enough, mass, reached)
        return _Bounds(low, high, reached)

    return _Bounds(*lax.while_loop(unfinished, turn, bounds))


def _ends(bounds: _Bounds, goal: Mass, least: Mass) -> Array:
    """Whether the goal would be missed without any one of the tokens from the lower bound up."""
    enough = _mass.add(goal, least)
    return _mass.reaches(bounds.reached, goal) & ~_mass.reaches(bounds.reached, enough)


def _weigh_kept(tokens: _Tokens, cut: Cut, sums_ref: Any, number_ref: Any) -> None:
    """Writes the weights of the tokens up to a cut, by chunk, and their number."""
    (count,) = tokens._replace(counting=True).masses(_up_to(cut))
    number_ref[tokens.row.number] = count.low.astype(jnp.int32)
    tokens.add_up(_up_to(cut))
    sums_ref[tokens.row.number] = tokens.sums[0]


def _up_to(cut: Cut) -> Tests:
    """Returns the test of the tokens up to a cut."""
    return lambda x, ids: [_is_kept(x, ids, cut)]


def _is_kept(x: Array, ids: Array, cut: Cut) -> Array:
    """As in `_ranking`, whose cuts have the axes of rows, which a number alone has not."""
    return (x > cut.logit) | ((x == cut.logit) & (ids <= cut.token))


def _sortable(x: Array) -> Array:
    """Returns `to_sortable` of logits that are not NaN, with one number for both zeros."""
    bits = lax.bitcast_convert_type(_ranking.unsigned_zero(x), jnp.int32)
    return bits ^ ((bits >> 31) & _MOST)


def _call(
    name: str, body: Callable[..., None], inputs: Inputs, outputs: list[Any], interpret: bool
) -> tuple[Array, ...]:
    """Runs a body for the rows that need it, with their tokens and the references to outputs."""
    chunks = inputs.shifts.shape[1]
    size = tiles.padded(chunks)
    given = inputs._asdict()
    logits, shifts, needed = (given.pop(name) for name in ("logits", "shifts", "needed"))
    if inputs.floor is not None:
        given["floor"] = to_sortable(_ranking.unsigned_zero(inputs.floor))
    given = {name: x for name, x in given.items() if x is not None}
    arrays = [needed.astype(jnp.int32), jnp.pad(shifts, [(0, 0), (0, size - chunks)])]

    def run(row: Row, refs: list[Any], output_refs: list[Any], sums: Any) -> None:
        needed_ref, shifts_ref, *given_refs = refs

        @pl.when(needed_ref[row.number] > 0)
        def _() -> None:
            sums[...] = jnp.zeros(sums.shape, jnp.int32)
            of_row = {name: ref[row.number] for name, ref in zip(given, given_refs, strict=True)}
            body(_Tokens(row, sums, shifts_ref, of_row), *output_refs)

    return tiles.call(
        name,
        run,
        logits,
        [*arrays, *given.values()],
        outputs,
        {"sums": plgpu.SMEM((_PIVOTS, size), jnp.int32)},
        together=_TOGETHER,
        interpret=interpret,
    )
