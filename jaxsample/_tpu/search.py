"""The search for the last kept token of the rows of a block.

The cut equals that of `_core/_bisection`, from the same weights and exact masses. Each iteration
adds up the weights at or above two pivots: first only the coarse words, then both words, and then,
among tokens of equal logits, by id.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl

from jaxsample._core import _mass
from jaxsample._core._mass import Mass
from jaxsample._core._ranking import Cut, Kept, is_kept
from jaxsample._core._sortable import mean
from jaxsample._core._source import CHUNK
from jaxsample._tpu import blocks, masses
from jaxsample._tpu.rows import LANES, weights

_TURNS_BY_VALUE = 24
"""The number of iterations that divide the distance of the bounds. Later ones divide the number of
sortable integers between them."""

_WINDOW, _THIRD = 1 / 8, 1 / 3
"""The distance of two pivots from the expected target, relative to that of the bounds: initially,
and after a miss, when the pivots divide the interval into thirds.
"""

_STEP_DOWN = 2.0
"""The first step, in logits, of the search for a lower bound."""


def search(
    inputs: blocks.Inputs, order: tuple[tuple[str, ...], ...], *, weighed: bool, interpret: bool
) -> tuple[Cut, Kept | None]:
    """Returns the cuts of top-k, top-p and min-p, and if `weighed` the weights of the kept tokens.

    A cut may be anywhere between the last kept token and the next one.

    Args:
      inputs: the rows and their parameters.
      order: the groups of rules.
      weighed: whether to also weigh and count the kept tokens.
      interpret: whether to run without a TPU.
    """
    chunks = pl.cdiv(inputs.logits.shape[1], CHUNK)
    outputs = [(LANES, jnp.float32), (LANES, jnp.int32)]
    outputs += [(blocks.whole_vectors(chunks), jnp.int32), (LANES, jnp.int32)] * weighed
    logit, token, *kept = blocks.call(
        functools.partial(_search_body, order=order, weighed=weighed),
        inputs,
        outputs,
        [jnp.float32, jnp.int32, jnp.int32],
        interpret,
        gathered=True,
    )
    cut = Cut(logit[:, 0], token[:, 0])
    if not weighed:
        return cut, None
    sums, counts = kept
    return cut, Kept(sums[:, :chunks], jnp.sum(counts, axis=1, dtype=jnp.int32))


def _search_body(
    rows: blocks.Rows,
    logit_ref: Any,
    token_ref: Any,
    *refs: Any,
    order: tuple[tuple[str, ...], ...],
    weighed: bool,
) -> None:
    tokens = masses.Tokens(*refs[-3:])
    logit_ref[...] = jnp.full(logit_ref.shape, -jnp.inf, jnp.float32)
    token_ref[...] = jnp.full(token_ref.shape, rows.vocab, jnp.int32)
    by_p = "top_p" in itertools.chain(*order)
    whole = masses.weigh(rows, tokens) if weighed or by_p else None
    for place, group in enumerate(order):
        before = Cut(logit_ref[...], token_ref[...]) if place else None
        for name in group:
            _apply(rows, tokens, name, before, whole, logit_ref, token_ref)
    if weighed:
        masses.weigh_kept(rows, tokens, Cut(logit_ref[...], token_ref[...]), *refs[:2])


def _apply(
    rows: blocks.Rows,
    tokens: masses.Tokens,
    name: str,
    before: Cut | None,
    whole: Mass | None,
    logit_ref: Any,
    token_ref: Any,
) -> None:
    """Shortens the cut by a rule.

    Args:
      rows: the rows.
      tokens: their tokens.
      name: the rule.
      before: the cut of the tokens that the rule applies to, or None: all.
      whole: the mass of all tokens, or None if no rule uses it.
      logit_ref: the reference to the logit of the cut.
      token_ref: the reference to the token of the cut.
    """

    def shorten(on: Array, found: Cut) -> None:
        cut = Cut(logit_ref[...], token_ref[...])
        shorter = on & is_kept(*found, cut)
        logit_ref[...] = jnp.where(shorter, found.logit, cut.logit)
        token_ref[...] = jnp.where(shorter, found.token, cut.token)

    given = rows.given
    if name == "min_p":
        last = jnp.full(token_ref.shape, rows.vocab, jnp.int32)
        shorten(rows.needed & (given.floor > -jnp.inf), Cut(given.floor, last))
        return
    on = rows.needed & (given.k < rows.vocab if name == "top_k" else given.p < 1)

    @pl.when(_any(on))
    def _() -> None:
        _load(rows, tokens, before)
        if name == "top_k":
            shorten(on, _top_k(rows, tokens, on))
        else:
            shorten(on, _top_p(rows, tokens, on, whole if before is None else None))


def _top_k(rows: blocks.Rows, tokens: masses.Tokens, on: Array) -> Cut:
    """Returns the cut of top-k in some rows."""

    def one(logit: Array) -> Mass:
        return Mass(jnp.zeros_like(logit, jnp.uint32), jnp.ones_like(logit, jnp.uint32))

    counts = functools.partial(masses.count_from, rows, tokens)
    (whole,) = counts([blocks.LEAST])
    k = jnp.where(on, rows.given.k, 1).astype(jnp.int32).astype(jnp.uint32)
    goal = Mass(jnp.zeros_like(k), k)
    bounds = _start(rows, on, whole, goal)
    return _cut_of(rows, tokens, _Target(goal, counts, one), bounds, _pivots(rows, goal, bounds))


def _top_p(rows: blocks.Rows, tokens: masses.Tokens, on: Array, whole: Mass | None) -> Cut:
    """Returns the cut of top-p in some rows, given the mass of all tokens or None."""

    def least(logit: Array) -> Mass:
        nothing = jnp.zeros_like(logit, jnp.int32)
        return _mass.least(weights(logit, nothing, rows.given.row_max, nothing))

    coarse, exact = (
        functools.partial(masses.sum_from, rows, tokens, exact=exact) for exact in (False, True)
    )
    if whole is None:
        (whole,) = exact([blocks.LEAST])
    goal = _mass.fraction(whole, rows.given.p)
    bounds = _start(rows, on, whole, goal)
    guess = _narrowed(rows, _Target(goal, coarse, least), bounds, _pivots(rows, goal, bounds))
    gap = rows.raw(guess.high) - rows.raw(guess.low)
    bounds = bounds._replace(step=jnp.where(gap < jnp.inf, 4 * gap, _STEP_DOWN))
    pivots = _between(bounds, guess.low, guess.high)
    return _cut_of(rows, tokens, _Target(goal, exact, least), bounds, pivots)


class _Bounds(NamedTuple):
    """Bounds of the cut, equal in all lanes. A number is a sortable integer, or minus an id.

    Attributes:
      low: the largest number known to reach the target.
      high: the smallest one known to miss it.
      reached: the mass at or above `low`.
      missed: the mass at or above `high`.
      going: int32, whether the search continues: fewer tokens may reach the target.
      window: the distance of the next pivots from the expected target.
      step: the distance of the next pivots from `high` while no lower bound is known.
    """

    low: Array
    high: Array
    reached: Mass
    missed: Mass
    going: Array
    window: Array
    step: Array


def _start(rows: blocks.Rows, on: Array, whole: Mass, goal: Mass) -> _Bounds:
    """Returns bounds around all numbers, in the rows to search."""
    top = rows.given.raw_max
    # Above the largest logit. If that is 0, a normal number, since subnormals may be flushed to 0.
    info = jnp.finfo(jnp.bfloat16 if rows.narrow else jnp.float32)
    above = top + 4 * float(info.eps) * jnp.abs(top) + float(info.tiny)
    nothing = jnp.zeros_like(whole.low)
    return _Bounds(
        low=rows.number(jnp.full_like(top, -jnp.inf)),
        high=rows.number(above),
        reached=whole,
        missed=Mass(nothing, nothing),
        going=(on & _mass.reaches(whole, goal)).astype(jnp.int32),
        window=jnp.full_like(top, _WINDOW),
        step=jnp.full_like(top, _STEP_DOWN),
    )


class _Target(NamedTuple):
    """The target of a search.

    Attributes:
      goal: the mass to reach.
      masses: takes two values, returns the masses of the tokens at or above them.
      least: takes a logit, returns a lower bound of the mass of a token with that logit.
    """

    goal: Mass
    masses: Callable[[list[Any]], list[Mass]]
    least: Callable[[Array], Mass]


def _cut_of(
    rows: blocks.Rows, tokens: masses.Tokens, target: _Target, bounds: _Bounds, pivots: list[Array]
) -> Cut:
    """Returns the cut between bounds, starting the search at two pivots."""
    found = _narrowed(rows, target, bounds, pivots)
    value = rows.value(found.low)
    # Not all tokens of this logit are kept.
    tied = found.going > 0

    @pl.when(_any(tied))
    def _() -> None:
        _load_ids(rows, tokens, tied, value)

    bounds = found._replace(
        low=jnp.where(tied, -rows.vocab, 0),
        high=jnp.ones_like(found.high),
        window=jnp.full_like(found.window, _WINDOW),
    )
    least = target.least(value)
    target = target._replace(least=lambda _: least)
    ids = _narrowed(rows, target, bounds, _pivots(rows, target.goal, bounds, ids=True), ids=True)
    logit = rows.read(rows.raw(found.low))
    return Cut(logit, jnp.where(tied, -ids.low, rows.vocab))


def _narrowed(
    rows: blocks.Rows, target: _Target, bounds: _Bounds, pivots: list[Array], *, ids: bool = False
) -> _Bounds:
    """Narrows bounds until no number is between them, or no token from `low` up can be dropped.

    Args:
      rows: the rows.
      target: the target of the search.
      bounds: the initial bounds.
      pivots: the first two numbers between them.
      ids: whether numbers are minus ids instead of sortable integers.
    """

    def value(number: Array) -> Array:
        return number.astype(jnp.float32) if ids else rows.value(number)

    def turn(state: tuple[Array, _Bounds, list[Array]]) -> tuple[Array, _Bounds, list[Array]]:
        number, bounds, pivots = state
        bounds = _moved(bounds, pivots, target.masses([*map(value, pivots)]), target.goal)
        enough = _mass.add(target.goal, target.least(value(bounds.low)))
        needed = _mass.reaches(bounds.reached, target.goal)
        needed &= ~_mass.reaches(bounds.reached, enough)
        bounds = bounds._replace(going=jnp.where(needed, 0, bounds.going))
        return number + 1, bounds, _pivots(rows, target.goal, bounds, number + 1, ids=ids)

    def unfinished(state: tuple[Array, _Bounds, list[Array]]) -> Array:
        _, bounds, _ = state
        return _any((bounds.going > 0) & (bounds.high - 1 > bounds.low))

    return lax.while_loop(unfinished, turn, (jnp.int32(0), bounds, pivots))[1]


def _moved(bounds: _Bounds, pivots: list[Array], masses: list[Mass], goal: Mass) -> _Bounds:
    """Returns the bounds moved to pivots of known masses, and the next distances."""
    low, high, reached, missed = bounds[:4]
    for pivot, mass in zip(pivots, masses, strict=True):
        enough = _mass.reaches(mass, goal)
        reached = _mass.select(enough & (pivot > low), mass, reached)
        missed = _mass.select(~enough & (pivot < high), mass, missed)
        low = jnp.where(enough, jnp.maximum(pivot, low), low)
        high = jnp.where(enough, high, jnp.minimum(pivot, high))
    hit = (low == pivots[0]) & (high == pivots[1])
    after_miss = jnp.where(bounds.window < _THIRD, _THIRD, _WINDOW)
    return bounds._replace(
        low=low,
        high=high,
        reached=reached,
        missed=missed,
        window=jnp.where(hit, bounds.window / 4, after_miss),
        step=4 * bounds.step,
    )


def _pivots(
    rows: blocks.Rows, goal: Mass, bounds: _Bounds, turn: Array | int = 0, *, ids: bool = False
) -> list[Array]:
    """Returns two numbers between the bounds, on both sides of the expected target."""
    low, high, window = bounds.low, bounds.high, bounds.window
    if ids:
        least, most = low.astype(jnp.float32), high.astype(jnp.float32)
    else:
        least, most = rows.raw(low), jnp.minimum(rows.raw(high), rows.given.raw_max)
    between = _mass.to_float(_mass.subtract(bounds.reached, bounds.missed))
    above = _mass.to_float(_mass.subtract(bounds.reached, goal)) / between
    thirds = window >= _THIRD
    ends = window / 4, 1 - window / 4
    parts = (
        jnp.where(thirds, _THIRD, jnp.maximum(above - window, ends[0])),
        jnp.where(thirds, 1 - _THIRD, jnp.minimum(above + window, ends[1])),
    )
    unbounded = least == -jnp.inf
    middle = mean(low, high)
    by_number = mean(low, middle), middle
    pivots = []
    for part, steps, number in zip(parts, (2.0, 1.0), by_number, strict=True):
        place = jnp.where(unbounded, most - steps * bounds.step, least + part * (most - least))
        by_value = jnp.floor(place).astype(jnp.int32) if ids else rows.number(place)
        pivots.append(jnp.where(turn < _TURNS_BY_VALUE, by_value, number))
    return _between(bounds, *pivots)


def _between(bounds: _Bounds, first: Array, second: Array) -> list[Array]:
    """Returns two numbers clipped to the interval from `low + 1` to `high - 1`."""
    first = jnp.clip(first, bounds.low + 1, bounds.high - 1)
    return [first, jnp.clip(second, first, bounds.high - 1)]


def _load(rows: blocks.Rows, tokens: masses.Tokens, before: Cut | None) -> None:
    """Stores the logits of the tokens up to a cut, or of all, as their values."""

    def step(number: Array, nothing: Array) -> Array:
        values = blocks.read(rows, number)
        if before is not None:
            kept = map(functools.partial(is_kept, cut=before), values, blocks.ids(rows, number))
            values = [jnp.where(of, x, -jnp.inf) for of, x in zip(kept, values, strict=True)]
        blocks.write(tokens.values, number, values)
        return nothing

    blocks.steps(rows.vocab, step, np.int32(0))


def _load_ids(rows: blocks.Rows, tokens: masses.Tokens, which: Array, logit: Array) -> None:
    """Replaces the values of the tokens of a logit by minus their ids."""

    def step(number: Array, nothing: Array) -> Array:
        values = []
        vectors = blocks.vectors_of(tokens.values, number)
        for value, ids in zip(vectors, blocks.ids(rows, number), strict=True):
            others = jnp.where(value > logit, jnp.inf, -jnp.inf)
            ranked = jnp.where(value == logit, -ids.astype(jnp.float32), others)
            values.append(jnp.where(which, ranked, value))
        blocks.write(tokens.values, number, values)
        return nothing

    blocks.steps(rows.vocab, step, np.int32(0))


def _any(which: Array) -> Array:
    return jnp.max(which.astype(jnp.int32)) > 0
