"""The kept set of top-k, top-p and min-p, in any order: one prefix of the ranking.

Each rule keeps a prefix, so jointly they keep the shortest one. In most rows it ends among the
candidates (the row is settled). For other rows, `_search` finds it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _lookup, _mass, _ranking, _search
from jaxsample._core._lookup import sums_by_index
from jaxsample._core._mass import Mass
from jaxsample._core._parameters import SHARE, TOP_K
from jaxsample._core._ranking import Cut, Kept
from jaxsample._core._rows import Rows
from jaxsample._core._search import Rules, dropping, min_p_cut, update_beyond
from jaxsample._core._source import CHUNK
from jaxsample._core._vmap import rowwise

CANDIDATES = 64


class Candidates(NamedTuple):
    """The first tokens of the ranking.

    Attributes:
      tokens: `[..., min(CANDIDATES, vocab)]`, in order.
      complete: bool `[...]`, whether none is missing. The first token is never missing.
    """

    tokens: Cut
    complete: Array


class Prefix(NamedTuple):
    """A prefix of the ranking.

    Attributes:
      cut: `[...]`, its last token.
      within: bool `[...]`, whether it ends among the candidates.
      kept: bool `[..., n]`, the candidates in the prefix.
      mass: the mass of these candidates.
    """

    cut: Cut
    within: Array
    kept: Array
    mass: Mass


def checked(vocab: int, given: Rules) -> tuple[Rules, Array]:
    """Returns the rules as applied, and the rows `[...]` with a parameter outside its range."""
    values = dict(lax.stop_gradient(given.values))  # the kept set is a constant
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
def candidates(rows: Rows) -> Candidates:
    """Returns the candidates, complete in every row."""
    tokens = _ranking.candidates(rows, CANDIDATES)
    return Candidates(tokens, jnp.full(rows.row_max.shape, True))


@rowwise
def prefix(rows: Rows, top: Candidates, rules: Rules) -> Prefix:
    """Returns the prefix that the rules keep, in rows where it ends among the candidates."""
    size = top.tokens.logit.shape[-1]
    masses = _mass.cumulative(_mass.place(*_ranking.weigh_first(rows, top.tokens)))
    length, kept = _length(rows, rules, top.tokens, masses)
    last = jnp.minimum(length, size) - 1
    cut, mass = jax.tree.map(lambda a: _lookup.at(a, last), (top.tokens, masses))
    within = (length <= size) & top.complete
    if rules.greedy is not None:
        within |= rules.greedy
    return Prefix(cut, within | rows.bad, kept, mass)


def cut_of(rows: Rows, top: Candidates, rules: Rules) -> Cut:
    """Returns the cut of the prefix that the rules keep."""
    found = prefix(rows, top, rules)
    return update_beyond(
        lambda rows, cut, kept: cut, ~found.within, found.cut, rows, rules, weighed=False
    )


def weigh_prefix(rows: Rows, top: Cut, kept: Array) -> Kept:
    """Weighs and counts the candidates in a prefix, given as bool `[..., n]`."""
    x = rows.read_from_cut(top.logit)
    chosen = kept & (x > -jnp.inf)
    weights, _ = _ranking.weigh_first(rows, Cut(x, top.token))
    chunks = -(-rows.vocab // CHUNK)
    sums = sums_by_index(jnp.where(chosen, weights, 0), top.token // CHUNK, chunks)
    return Kept(sums, jnp.sum(chosen, axis=-1, dtype=jnp.int32))


def _length(rows: Rows, rules: Rules, top: Cut, masses: Mass) -> tuple[Array, Array]:
    """Returns the length of the prefix, and the candidates in it, bool `[..., n]`.

    If the prefix may end after the candidates, the length is greater than their number.
    """
    size = top.logit.shape[-1]
    places = _lookup.positions(top.logit)
    beyond = size if size == rows.vocab else size + 1
    length = jnp.full(rows.row_max.shape, beyond, jnp.int32)
    if rules.greedy is not None:
        length = jnp.where(rules.greedy, 1, length)
    length_by_mass, kept_by_mass = length, jnp.array(True)
    unknown = jnp.full(rows.row_max.shape, False)
    dropped = jnp.full(rows.row_max.shape, False)
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
                share = _share(rows, before, masses, value, on)
                share = jax.tree.map(lambda a: a[..., None], share)
                reached = on[..., None] & _mass.reaches(masses, share)
                # A token is kept if the tokens before it do not reach the share.
                by_others = jnp.pad(reached, [(0, 0)] * (reached.ndim - 1) + [(1, 0)])
                kept_by_mass = ~by_others[..., :-1]
                length_by_mass = jnp.sum(~reached, axis=-1, dtype=jnp.int32) + 1
                # The mass of a prefix that is longer than the candidates is not known yet.
                unknown |= on & (before > size) & dropped
        dropped |= dropping(rows, rules, group)
    # By a comparison with each token: after the reduction to a length, a GPU starts another kernel.
    kept = (places < length[..., None]) & kept_by_mass
    return jnp.where(unknown, beyond, jnp.minimum(length, length_by_mass)), kept


def _share(rows: Rows, length: Array, masses: Mass, p: Array, on: Array) -> Mass:
    """Returns the share `p` of the mass of the prefix of a length, or of the row."""
    size = masses.low.shape[-1]
    inside = length <= size
    needed = on & ~inside & ~rows.bad
    last = _lookup.positions(masses.low) == length[..., None] - 1
    some = jax.tree.map(lambda a: jnp.sum(jnp.where(last, a, 0), axis=-1, dtype=a.dtype), masses)

    def of_row() -> Mass:
        return _mass.fraction(_mass.select(inside, some, _search.row_mass(rows, needed)), p)

    # Both branches compute the share, since a branch that returns its operand copies it.
    with jax.named_scope("row_mass"):  # the name by which bench/tpu finds the conditional
        return lax.cond(jnp.any(needed), of_row, lambda: _mass.fraction(some, p))
