"""The kept set of top-k, top-p and min-p, in any order: one prefix of the ranking.

Each rule keeps a prefix, so together they keep the shortest. For nearly every row it lies among the
candidates (the row is settled); for the others `_bisection` finds it. The search runs only if a row
of the batch needs it.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _chunks, _elementary, _mass, _ranking
from jaxsample._core._bisection import by_logit, search
from jaxsample._core._chunks import CHUNK, Rows
from jaxsample._core._groups import update_rows
from jaxsample._core._mass import Mass, Scale
from jaxsample._core._parameters import SHARE, TOP_K
from jaxsample._core._ranking import Cut
from jaxsample._core._vmap import rowwise

CANDIDATES = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """The parameters of top-k, top-p and min-p, and their order.

    Attributes:
      values: the parameter of each rule, `[...]`: "top_k" int32 in [1, vocab], neutral vocab;
        "top_p" float32 in [0, 1], neutral 1; "min_p" float32 in [0, 1], neutral 0.
      order: groups of rules. A group judges what those before it left, its rules jointly.
      greedy: bool `[...]`, the rows that keep rank 0 alone; None where none does. Not a top-k of
        1, for which a program would hold a search that never runs.
    """

    values: dict[str, Array]
    order: tuple[tuple[str, ...], ...] = dataclasses.field(metadata={"static": True})
    greedy: Array | None = None


class Prefix(NamedTuple):
    """A prefix of the ranking.

    Attributes:
      cut: `[...]`, its last token.
      within: bool `[...]`, whether it lies among the candidates.
      length: int32 `[...]`, its length where it does.
    """

    cut: Cut
    within: Array
    length: Array


class Kept(NamedTuple):
    """The weights and the number of the tokens of a kept set.

    Attributes:
      sums: int32 `[..., chunks]`, its weights added up by chunk, for `_mass.place`.
      num_kept: int32 `[...]`, the number of its tokens.
    """

    sums: Array
    num_kept: Array


def checked(vocab: int, given: Rules) -> tuple[Rules, Array]:
    """Returns the rules as applied, and the rows `[...]` with a parameter outside its range."""
    values = dict(lax.stop_gradient(given.values))  # what is kept is a constant
    bad = jnp.array(False)
    for name, value in values.items():
        if name == "top_k":
            bad |= ~TOP_K.inside(value)
            values[name] = jnp.where((value <= 0) | (value > vocab), vocab, value)
        else:
            outside = ~SHARE.inside(value)
            bad, values[name] = bad | outside, jnp.where(outside, 1, value)
    return Rules(values, given.order), bad


@rowwise
def candidates(rows: Rows) -> Cut:
    """Returns the tokens among which nearly every cut is found."""
    return _ranking.candidates(rows, CANDIDATES)


@rowwise
def prefix(rows: Rows, top: Cut, rules: Rules) -> Prefix:
    """Returns the prefix that the rules keep, in rows where it lies among the candidates."""
    size = top.logit.shape[-1]
    length = _length(rows, rules, top)
    cut = jax.tree.map(lambda a: _chunks.at(a, jnp.minimum(length, size) - 1), top)
    return Prefix(cut, (length <= size) | rows.bad, length)


def cut_of(rows: Rows, top: Cut, rules: Rules) -> Cut:
    """Returns the cut of the prefix that the rules keep."""
    found = prefix(rows, top, rules)
    shared = rows.source.shards is not None
    return update_rows(searched, ~found.within, found.cut, shared, rows, rules)


def searched(needed: Array, rows: Rows, rules: Rules, *, grouped: bool) -> Cut:
    """Returns the cuts of rows whose prefix may end anywhere, for `update_rows`."""
    needed &= _dropping(rows, rules, rules.values)
    everything = _ranking.everything(rows)
    return lax.cond(
        jnp.any(needed),
        lambda: _ranking.select(needed, _searched(rows, rules, needed, grouped), everything),
        lambda: everything,
    )


def weigh_to(rows: Rows, scale: Scale, cut: Cut | None) -> Kept:
    """Weighs and counts the tokens up to a cut, wherever it lies; without one, all."""
    keep = () if cut is None else _ranking.up_to(rows, cut)
    sums = _chunks.weigh(rows, scale, *keep)
    again, sums = _chunks.read_beside(rows, sums)
    counts = _chunks.weigh(again, _chunks.tally(rows), *keep)
    return Kept(sums, jnp.sum(counts, axis=-1, dtype=jnp.int32))


def weigh_first(rows: Rows, top: Cut, length: Array) -> Kept:
    """Weighs and counts the first tokens of the ranking, up to a length `[...]`."""
    x = rows.read_from_cut(top.logit)
    chosen = (_chunks.positions(x) < length[..., None]) & (x > -jnp.inf)
    weights, _ = _ranking.weigh_first(rows, Cut(x, top.token))
    chunk = _chunks.starts(rows)[..., None, :] // CHUNK
    inside = chosen[..., None] & ((top.token // CHUNK)[..., None] == chunk)
    sums = jnp.sum(jnp.where(inside, weights[..., None], 0), axis=-2, dtype=jnp.int32)
    return Kept(sums, jnp.sum(chosen, axis=-1, dtype=jnp.int32))


def _length(rows: Rows, rules: Rules, top: Cut) -> Array:
    """Returns the length of the prefix, or more than the candidates are where they do not tell."""
    size = top.logit.shape[-1]
    beyond = size if size == rows.vocab else size + 1
    length = jnp.full(rows.row_max.shape, beyond, jnp.int32)
    if rules.greedy is not None:
        length = jnp.where(rules.greedy, 1, length)
    unknown = jnp.full(rows.row_max.shape, False)
    dropping = jnp.full(rows.row_max.shape, False)
    masses = _mass.cumulative(_mass.place(*_ranking.weigh_first(rows, top)))
    for group in rules.order:
        before = length
        for name in group:
            value = rules.values[name]
            if name == "top_k":
                length = jnp.minimum(length, value)
            elif name == "min_p":
                floor = min_p_cut(rows, value).logit
                above = jnp.sum(top.logit >= floor[..., None], axis=-1, dtype=jnp.int32)
                length = jnp.where(above < size, jnp.minimum(length, above), length)
            else:
                on = value < 1
                whole = _mass_of_prefix(rows, before, masses, on)
                share = jax.tree.map(lambda a: a[..., None], _mass.fraction(whole, value))
                short = jnp.sum(~_mass.reaches(masses, share), axis=-1, dtype=jnp.int32)
                # The mass of a prefix that is longer than the candidates is not known yet.
                unknown |= on & (before > size) & dropping
                length = jnp.where(on, jnp.minimum(length, short + 1), length)
        dropping |= _dropping(rows, rules, group)
    return jnp.where(unknown, beyond, length)


def _mass_of_prefix(rows: Rows, length: Array, masses: Mass, on: Array) -> Mass:
    """Returns the mass that top-p takes a share of: the candidates' or the row's."""
    size = masses.low.shape[-1]
    inside = length <= size
    some = jax.tree.map(lambda a: _chunks.at(a, jnp.minimum(length, size) - 1), masses)
    whole = lax.cond(
        jnp.any(on & ~inside & ~rows.bad),
        lambda: _chunks.mass(rows, _chunks.probability(rows)),
        lambda: some,
    )
    return jax.tree.map(lambda s, w: jnp.where(inside, s, w), some, whole)


def _searched(rows: Rows, rules: Rules, needed: Array, grouped: bool) -> Cut:
    """Returns the cuts that lie anywhere in the row: of one rule after the other.

    The rules are turns of one loop, so that a program holds a single search.
    """
    scale = _chunks.probability(rows)
    if grouped:
        scale = _chunks.tabulated(rows, scale)
    names = [name for group in rules.order for name in group]
    firsts = [place == 0 for group in rules.order for place in range(len(group))]
    k = rules.values.get("top_k", jnp.full(needed.shape, rows.vocab, jnp.int32))
    p = rules.values.get("top_p", jnp.ones(needed.shape, jnp.float32))
    floor = min_p_cut(rows, rules.values.get("min_p", jnp.zeros(needed.shape, jnp.float32)))

    def apply(turn: Array, state: tuple[Cut, Cut]) -> tuple[Cut, Cut]:
        def turn_is(which: list[bool]) -> Array:
            return jnp.asarray(which)[turn]

        by_k, by_p, by_min_p = (
            turn_is([name == rule for name in names]) for rule in ("top_k", "top_p", "min_p")
        )
        cut, before = state
        before = _ranking.select(turn_is(firsts), cut, before)
        cut = _ranking.select(by_min_p, _ranking.earlier(floor, cut), cut)
        on = (by_k & (k < rows.vocab)) | (by_p & (p < 1))

        def target(whole: Mass) -> Mass:
            count = Mass(jnp.zeros_like(whole.high), k.astype(jnp.uint32))
            return _mass.select(by_k, count, _mass.fraction(whole, p))

        found = search(rows, scale.or_count(by_k), before, target, needed & on, by_logit(rows))
        return _ranking.select(on, _ranking.earlier(found, cut), cut), before

    everything = _ranking.everything(rows)
    return lax.fori_loop(0, len(names), apply, (everything, everything))[0]


def min_p_cut(rows: Rows, min_p: Array) -> Cut:
    """Returns the cut of min-p alone: behind the last token that could have its least logit."""
    floor = rows.row_max + _elementary.log(min_p)
    return Cut(floor, jnp.full(floor.shape, rows.vocab, jnp.int32))


def _dropping(rows: Rows, rules: Rules, names: Iterable[str]) -> Array:
    """Whether any of some rules can drop tokens of a row."""
    neutral = {"top_k": rows.vocab, "top_p": 1, "min_p": 0}
    dropping = jnp.full(rows.row_max.shape, False)
    for name in names:
        dropping |= rules.values[name] != neutral[name]
    return dropping
