"""The kept set of top-k, then top-p on the rest, then min-p: one prefix of the ranking.

Each rule asks for a prefix, so together they ask for the shortest. The candidates settle nearly
every row; `_ranking.search` settles the others, to the same tokens. A batch pays for the search
only where it holds such a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsample import _chunks, _mass, _ranking
from jaxsample._chunks import CHUNK, Rows
from jaxsample._mass import Mass, Scale
from jaxsample._ranking import Cut
from jaxsample._vmap import rowwise

CANDIDATES = 64


class Rules(NamedTuple):
    """What to keep of each row; None leaves a rule out of the program.

    Attributes:
      k: int32 `[...]` in [1, vocab], vocab is neutral.
      p: float32 `[...]` in [0, 1], 1 is neutral.
      min_p: float32 `[...]` in [0, 1], 0 is neutral.
    """

    k: Array | None = None
    p: Array | None = None
    min_p: Array | None = None


class Prefix(NamedTuple):
    """A prefix of the ranking.

    Attributes:
      cut: `[...]`, its last token.
      within: bool `[...]`, whether it lies among the candidates.
      length: int32 `[...]`, its length where it does.
      candidates: `[..., candidates]`, the best tokens.
    """

    cut: Cut
    within: Array
    length: Array
    candidates: Cut


class Kept(NamedTuple):
    """What a kept set holds.

    Attributes:
      sums: int32 `[..., chunks]`, its weights added up by chunk, for `_mass.place`.
      num_kept: int32 `[...]`, the number of its tokens.
    """

    sums: Array
    num_kept: Array


def checked(vocab: int, given: Rules) -> tuple[Rules, Array]:
    """The rules as they are applied, and the rows `[...]` with a parameter outside its range."""
    k, p, min_p = lax.stop_gradient(given)  # what is kept is a constant
    bad = jnp.array(False)
    if k is not None:
        bad |= k < 0
        k = jnp.where((k <= 0) | (k > vocab), vocab, k)
    if p is not None:
        outside = ~((p >= 0) & (p <= 1))
        bad, p = bad | outside, jnp.where(outside, 1, p)
    if min_p is not None:
        outside = ~((min_p >= 0) & (min_p <= 1))
        bad, min_p = bad | outside, jnp.where(outside, 0, min_p)
    return Rules(k, p, min_p), bad


@rowwise
def prefix(rows: Rows, scale: Scale, rules: Rules) -> Prefix:
    """The prefix that the rules keep."""
    top = _ranking.candidates(rows, CANDIDATES)
    size = top.logit.shape[-1]
    length = _length(rows, scale, rules, top)
    within = (length <= size) | rows.bad
    cut = jax.tree.map(lambda a: _chunks.at(a, jnp.minimum(length, size) - 1), top)
    cut = _ranking.select(within, cut, _ranking.everything(rows))
    needed = ~within & _on(rows, rules)
    cut = lax.cond(
        jnp.any(needed),
        lambda: _ranking.select(needed, _searched(rows, scale, rules, needed), cut),
        lambda: cut,
    )
    return Prefix(cut, within, length, top)


@rowwise
def weigh(rows: Rows, scale: Scale, kept: Prefix) -> Kept:
    """Weighs and counts the tokens of a prefix."""

    def few() -> Kept:
        top = kept.candidates
        chosen = _chunks.positions(top.token) < kept.length[..., None]
        return Kept(
            _scatter(jnp.where(chosen, _weights(scale, top), 0), top.token // CHUNK, scale),
            jnp.sum(chosen & (top.logit > -jnp.inf), axis=-1, dtype=jnp.int32),
        )

    return lax.cond(jnp.all(kept.within), few, lambda: weigh_to(rows, scale, kept.cut))


def weigh_to(rows: Rows, scale: Scale, cut: Cut) -> Kept:
    """Weighs and counts the tokens up to a cut, wherever it lies."""

    def keep(x: Array, ids: Array) -> Array:
        return _ranking.is_kept(x, ids, cut)

    counts = _chunks.weigh(rows, _chunks.tally(rows), keep)
    return Kept(_chunks.weigh(rows, scale, keep), jnp.sum(counts, axis=-1, dtype=jnp.int32))


def _length(rows: Rows, scale: Scale, rules: Rules, top: Cut) -> Array:
    """The length of the prefix, or more than the candidates are where they do not tell."""
    size = top.logit.shape[-1]
    beyond = size if size == rows.vocab else size + 1
    length = jnp.full(rows.row_max.shape, beyond, jnp.int32)
    unknown = jnp.full(rows.row_max.shape, False)
    if rules.k is not None:
        length = jnp.minimum(rules.k, beyond)
    if rules.p is not None:
        on = rules.p < 1
        masses = _mass.cumulative(_mass.place(_weights(scale, top), _shifts(scale, top)))
        whole = _mass_of_top_k(rows, scale, length, masses, on)
        share = jax.tree.map(lambda a: a[..., None], _mass.fraction(whole, rules.p))
        short = jnp.sum(~_mass.reaches(masses, share), axis=-1, dtype=jnp.int32)
        if rules.k is not None:  # the mass of a longer top-k set is not known yet
            unknown = on & (length > size) & (rules.k < rows.vocab)
        length = jnp.where(on, jnp.minimum(length, short + 1), length)
    if rules.min_p is not None:
        floor = min_p_cut(rows, rules.min_p).logit
        above = jnp.sum(top.logit >= floor[..., None], axis=-1, dtype=jnp.int32)
        length = jnp.where(above < size, jnp.minimum(length, above), length)
    return jnp.where(unknown, beyond, length)


def _mass_of_top_k(rows: Rows, scale: Scale, length: Array, masses: Mass, on: Array) -> Mass:
    """The mass of which top-p takes a share: the first `length` candidates', or the row's."""
    size = masses.low.shape[-1]
    inside = length <= size
    some = jax.tree.map(lambda a: _chunks.at(a, jnp.minimum(length, size) - 1), masses)
    whole = lax.cond(
        jnp.any(on & ~inside & ~rows.bad), lambda: _chunks.mass(rows, scale), lambda: some
    )
    return jax.tree.map(lambda s, w: jnp.where(inside, s, w), some, whole)


def _searched(rows: Rows, scale: Scale, rules: Rules, needed: Array) -> Cut:
    """The cuts that lie anywhere in the row."""
    cut = _ranking.everything(rows)
    if rules.k is not None:
        on = rules.k < rows.vocab
        target = Mass(jnp.zeros_like(rules.k, jnp.uint32), rules.k.astype(jnp.uint32))
        found = _ranking.search(rows, _chunks.tally(rows), target, needed & on)
        cut = _ranking.select(on, found, cut)
    if rules.p is not None:
        on = rules.p < 1
        whole = _chunks.mass(rows, scale, lambda x, ids: _ranking.is_kept(x, ids, cut))
        target = _mass.fraction(whole, rules.p)
        found = _ranking.search(rows, scale, target, needed & on)
        cut = _ranking.select(on, _ranking.earlier(found, cut), cut)
    if rules.min_p is not None:
        cut = _ranking.earlier(min_p_cut(rows, rules.min_p), cut)
    return cut


def min_p_cut(rows: Rows, min_p: Array) -> Cut:
    """The cut of min-p alone: behind the last token that could have its least logit."""
    floor = rows.row_max + jnp.log(min_p)
    return Cut(floor, jnp.full(floor.shape, rows.vocab, jnp.int32))


def _on(rows: Rows, rules: Rules) -> Array:
    """Whether any rule drops tokens of a row."""
    on = jnp.full(rows.row_max.shape, False)
    if rules.k is not None:
        on |= rules.k < rows.vocab
    if rules.p is not None:
        on |= rules.p < 1
    if rules.min_p is not None:
        on |= rules.min_p > 0
    return on


def _shifts(scale: Scale, tokens: Cut) -> Array:
    """The shifts of some tokens' chunks, `[..., tokens]`."""
    return jnp.take_along_axis(scale.shifts, tokens.token // CHUNK, axis=-1)


def _weights(scale: Scale, tokens: Cut) -> Array:
    """The weights of some tokens, int32 `[..., tokens]`."""
    assert scale.row_max is not None
    places, shifts = tokens.token % CHUNK, _shifts(scale, tokens)
    return _mass.weights(tokens.logit, places, scale.row_max[..., None], shifts)


def _scatter(weights: Array, chunks: Array, scale: Scale) -> Array:
    """Adds the weights of some tokens up by chunk."""

    def add(weights: Array, chunks: Array, zeros: Array) -> Array:
        return zeros.at[chunks].add(weights)

    return jnp.vectorize(add, signature="(n),(n),(c)->(c)")(
        weights, chunks, jnp.zeros_like(scale.shifts)
    )
