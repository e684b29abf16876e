"""The search for the last kept token of the rows that need it, and the masses of rows.

The cut is that of `_core/_bisection`, from the same weights and the same exact masses. A pass over
the row adds up the weights from several numbers up, which part the bounds evenly: each of them
narrows the bounds to a ninth. Numbers are logits as sortable integers, then minus the ids of equal
logits.
"""

import functools
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
from jaxsample._core._source import CHUNK
from jaxsample._gpu import tiles
from jaxsample._gpu.tiles import Row, Tile

_PIVOTS = 8
"""Numbers between the bounds that a pass looks at: with more of them, it would take longer than the
passes that it saves.
"""

_VECTOR = 128
"""Elements of an array of which each thread has one: a number alone has no bits to look at."""

_MOST = np.iinfo(np.int32).max
_LEAST = int(np.float32(-np.inf).view(np.int32)) ^ _MOST
"""The sortable integer of -inf."""


class Inputs(NamedTuple):
    """The rows and their parameters.

    Attributes:
      logits: `[rows, vocab]`.
      shifts: int32 `[rows, chunks]`, of the weights.
      needed: bool `[rows]`, the rows to look at; the results of the others may be anything.
      beta: float32 `[rows]`, the inverse temperature, or None.
      row_max: float32 `[rows]`, the largest logit, multiplied by beta.
      k: int32 `[rows]`, the number of tokens to keep; not less than the vocabulary: not asked for.
      p: float32 `[rows]`, the share of the mass to keep; 1: not asked for.
      floor: float32 `[rows]`, the least logit to keep; -inf: not asked for.
    """

    logits: Array
    shifts: Array
    needed: Array
    beta: Array | None
    row_max: Array
    k: Array
    p: Array
    floor: Array


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
        cut = before = _everything(tokens)
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
    number, token, *kept = _call(body, inputs, outputs, interpret)
    cut = Cut(from_sortable(number), token)
    return Found(cut, kept[0][:, :chunks], kept[1]) if weighed else Found(cut)


def row_masses(inputs: Inputs, *, interpret: bool) -> Mass:
    """Returns the masses `[rows]` of all tokens."""

    def body(tokens: "_Tokens", high_ref: Any, low_ref: Any) -> None:
        (mass,) = tokens.masses(lambda x, _: [x > _LEAST], counting=False)
        high_ref[tokens.row.number], low_ref[tokens.row.number] = mass

    return Mass(*_call(body, inputs, [((), jnp.uint32), ((), jnp.uint32)], interpret))


class _Tokens(NamedTuple):
    """The tokens of a row, and references to its parameters.

    Attributes:
      row: the row.
      shifts: `[rows, chunks]`, padded.
      beta, row_max, k, p, floor: `[rows]`, as in `Inputs`; the floor is a sortable integer.
      sums: int32 `[_PIVOTS, chunks]` in shared memory.
    """

    row: Row
    shifts: Any
    beta: Any
    row_max: Any
    k: Any
    p: Any
    floor: Any
    sums: Any

    def given(self, ref: Any) -> Array:
        """Returns a parameter of the row."""
        return ref[self.row.number]

    def add_up(self, tests: Callable[[Array, Array], list[Array]], *, counting: bool) -> None:
        """Adds up the weights, or the number, of the tokens of each chunk that pass each test.

        A test takes the sortable logits and the ids.
        """
        row_max = self.given(self.row_max)

        def visit(tile: Tile) -> None:
            if self.beta is not None:
                tile = tile._replace(x=product(tile.x, self.given(self.beta)))
            if counting:
                weights = (tile.x > -jnp.inf).astype(jnp.int32)
            else:
                shifts = tiles.load(self.shifts.at[self.row.number, tile.chunks])
                weights = tiles.weights(tile, row_max, shifts)
            for place, passed in enumerate(tests(_sortable(tile.x), tile.ids)):
                sums = jnp.sum(jnp.where(passed, weights, 0), axis=-1, dtype=jnp.int32)
                self.sums[place, tile.chunks] = sums

        self.row.each(visit)

    def masses(
        self, tests: Callable[[Array, Array], list[Array]], *, counting: bool, number: int = 1
    ) -> list[Mass]:
        """Returns the masses, or the number, of the tokens that pass each of a number of tests."""
        self.add_up(tests, counting=counting)
        shifts = self.shifts[self.row.number]
        shifts = jnp.full_like(shifts, _mass.NO_SHIFT) if counting else shifts
        found = []
        for place in range(number):
            limbs = _mass.limbs(_mass.place(self.sums[place], shifts))
            found.append(_mass.carried([jnp.sum(limb, dtype=jnp.uint32) for limb in limbs]))
        return found

    def least(self, number: Array) -> Mass:
        """Returns a lower bound of the weight of a token, by its sortable logit."""
        x = from_sortable(jnp.full(_VECTOR, number))
        nothing = jnp.zeros(_VECTOR, jnp.int32)
        least = _mass.least(
            _mass.weights(x, nothing, self.given(self.row_max), nothing, floor=tiles.floor)
        )
        return Mass(*map(jnp.max, least))


class _Bounds(NamedTuple):
    """Bounds of the cut.

    Attributes:
      low: the largest number known to reach the target.
      high: the least one known to miss it.
      reached: the mass from `low` up.
    """

    low: Array
    high: Array
    reached: Mass


def _cut_of(tokens: _Tokens, name: str, before: Cut) -> Cut:
    """Returns the cut of a rule among the tokens up to a cut; its logit is a sortable integer."""
    vocab = tokens.row.logits.shape[1]
    if name == "min_p":
        return Cut(tokens.given(tokens.floor), jnp.int32(vocab))
    counting = name == "top_k"
    k, p = tokens.given(tokens.k), tokens.given(tokens.p)
    on = k < vocab if counting else p < 1

    def searched() -> Cut:
        (whole,) = tokens.masses(_up_to(before), counting=counting)
        goal = Mass(jnp.uint32(0), k.astype(jnp.uint32)) if counting else _mass.fraction(whole, p)
        found = lax.cond(
            _mass.reaches(whole, goal),
            lambda: _found(tokens, goal, counting=counting),
            lambda: _everything(tokens),
        )
        return Cut(*found)

    return Cut(*lax.cond(on, searched, lambda: _everything(tokens)))


def _found(tokens: _Tokens, goal: Mass, *, counting: bool) -> Cut:
    """Returns the cut at which the mass reaches a goal."""
    vocab = tokens.row.logits.shape[1]
    number_of, least = functools.partial(tokens.masses, counting=counting), tokens.least
    if counting:
        least = lambda _: Mass(jnp.uint32(0), jnp.uint32(1))
    nothing = Mass(jnp.uint32(0), jnp.uint32(0))
    highest = jnp.max(to_sortable(jnp.full(_VECTOR, tokens.given(tokens.row_max))))
    by_logit = _Bounds(jnp.int32(_LEAST), highest + 1, nothing)
    by_logit = _narrowed(number_of, lambda x, _: x, goal, least, by_logit)
    last = by_logit.low

    def by_id(x: Array, ids: Array) -> Array:
        return jnp.where(x == last, -ids, jnp.where(x > last, _MOST, _LEAST))

    tied = ~_ends(by_logit, goal, least(last))
    low = jnp.where(tied, -vocab, 0)
    bounds = _Bounds(low, jnp.int32(1), by_logit.reached)
    ids = _narrowed(number_of, by_id, goal, lambda _: least(last), bounds)
    return Cut(last, jnp.where(tied, -ids.low, vocab))


def _narrowed(
    masses: Callable[..., list[Mass]],
    number: Callable[[Array, Array], Array],
    goal: Mass,
    least: Callable[[Array], Mass],
    bounds: _Bounds,
) -> _Bounds:
    """Returns the bounds with no number between them, or from which every token is needed.

    Args:
      masses: takes tests of tokens, returns their masses.
      number: the number of tokens, from their sortable logits and ids.
      goal: the mass to reach.
      least: takes a number, returns a lower bound of what its tokens weigh.
      bounds: those to begin with.
    """

    def unfinished(bounds: _Bounds) -> Array:
        return (bounds.high - 1 > bounds.low) & ~_ends(bounds, goal, least(bounds.low))

    def turn(bounds: _Bounds) -> _Bounds:
        low, high, reached = bounds
        # Unsigned, as the distance may be more than a signed number holds.
        step = (high - low).astype(jnp.uint32) // jnp.uint32(_PIVOTS + 1)
        step = jnp.maximum(step.astype(jnp.int32), 1)
        pivots = [jnp.minimum(low + step * i, high - 1) for i in range(1, _PIVOTS + 1)]

        def tests(x: Array, ids: Array) -> list[Array]:
            return [number(x, ids) >= pivot for pivot in pivots]

        for pivot, mass in zip(pivots, masses(tests, number=_PIVOTS), strict=True):
            enough = _mass.reaches(mass, goal)
            low, high = jnp.where(enough, pivot, low), jnp.where(enough, high, jnp.minimum(high, pivot))
            reached = _mass.select(enough, mass, reached)
        return _Bounds(low, high, reached)

    return _Bounds(*lax.while_loop(unfinished, turn, bounds))


def _ends(bounds: _Bounds, goal: Mass, least: Mass) -> Array:
    """Whether the goal would be missed without any one of the tokens from the lower bound up."""
    return _mass.reaches(bounds.reached, goal) & ~_mass.reaches(
        bounds.reached, _mass.add(goal, least)
    )


def _weigh_kept(tokens: _Tokens, cut: Cut, sums_ref: Any, number_ref: Any) -> None:
    """Writes the weights of the tokens up to a cut, by chunk, and their number."""
    row = tokens.row.number
    (count,) = tokens.masses(_up_to(cut), counting=True)
    number_ref[row] = count.low.astype(jnp.int32)
    tokens.add_up(_up_to(cut), counting=False)
    sums_ref[row] = tokens.sums[0]


def _up_to(cut: Cut) -> Callable[[Array, Array], list[Array]]:
    """Returns the test of the tokens up to a cut."""
    return lambda x, ids: [_is_kept(x, ids, cut)]


def _is_kept(x: Array, ids: Array, cut: Cut) -> Array:
    """As in `_ranking`, whose cuts have the axes of rows, which a number alone has not."""
    return (x > cut.logit) | ((x == cut.logit) & (ids <= cut.token))


def _everything(tokens: _Tokens) -> Cut:
    return Cut(jnp.int32(_LEAST), jnp.int32(tokens.row.logits.shape[1]))


def _sortable(x: Array) -> Array:
    """Returns `to_sortable` of logits that are not NaN, with one number for both zeros."""
    bits = lax.bitcast_convert_type(_ranking.unsigned_zero(x), jnp.int32)
    return bits ^ ((bits >> 31) & _MOST)


def _call(
    body: Callable[..., None], inputs: Inputs, outputs: list[Any], interpret: bool
) -> list[Array]:
    """Runs a body for the rows that need it; it takes their tokens and the references of outputs."""
    chunks = inputs.shifts.shape[1]
    missing = tiles.padded(chunks) - chunks
    shifts = jnp.pad(inputs.shifts, [(0, 0), (0, missing)])
    floor = to_sortable(_ranking.unsigned_zero(inputs.floor))
    of_rows = [inputs.row_max, inputs.k, inputs.p, floor]
    needed, beta = inputs.needed.astype(jnp.int32), inputs.beta
    given = [needed, shifts, *of_rows, *([] if beta is None else [beta])]

    def run(row: Row, needed_ref: Any, shifts_ref: Any, *refs: Any) -> None:
        *given_refs, sums = refs[: 4 + (beta is not None)], refs[-1]
        refs_of_rows, output_refs = refs[: len(given) - 2], refs[len(given) - 2 : -1]
        row_max, k, p, floor, *rate = refs_of_rows

        @pl.when(needed_ref[row.number] > 0)
        def _() -> None:
            sums[...] = jnp.zeros(sums.shape, jnp.int32)
            rate_ref = rate[0] if rate else None
            body(_Tokens(row, shifts_ref, rate_ref, row_max, k, p, floor, sums), *output_refs)

    scratch = [plgpu.SMEM((_PIVOTS, tiles.padded(chunks)), jnp.int32)]
    return list(tiles.call(run, inputs.logits, given, outputs, scratch, interpret=interpret))
