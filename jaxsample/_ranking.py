"""Law 1: one ranking, by logit, equal logits by lower token id.

A prefix of the ranking is named by its last token alone, its `Cut`. Two ways lead to one: the
`candidates`, which the block maxima find without a second look at the row and which hold nearly
every cut, and the `search`, a bisection over all of the row, for the others.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsample import _mass
from jaxsample._chunks import (
    BLOCK,
    CHUNK,
    Rows,
    at,
    first_true,
    fold,
    from_key,
    mass,
    positions,
    read_again,
    take_blocks,
    take_chunk,
    to_key,
    weigh,
)
from jaxsample._mass import Mass, Scale


class Cut(NamedTuple):
    """The last token of a prefix: its logit (float32) and its id (int32)."""

    logit: Array
    token: Array


def is_kept(x: Array, ids: Array, cut: Cut) -> Array:
    """Whether the tokens `[..., *]` with these logits and ids stand at or before the cut."""
    shape = cut.logit.shape + (1,) * (x.ndim - cut.logit.ndim)
    logit, token = cut.logit.reshape(shape), cut.token.reshape(shape)
    return (x > logit) | ((x == logit) & (ids <= token))


def everything(rows: Rows) -> Cut:
    """The cut behind the last token."""
    shape = rows.row_max.shape
    return Cut(jnp.full(shape, -jnp.inf, jnp.float32), jnp.full(shape, rows.vocab, jnp.int32))


def before(tokens: Cut) -> Cut:
    """The cuts of the prefixes that end just before some tokens."""
    return Cut(tokens.logit, tokens.token - 1)


def earlier(a: Cut, b: Cut) -> Cut:
    """The cut of the shorter prefix."""
    first = (a.logit > b.logit) | ((a.logit == b.logit) & (a.token < b.token))
    return select(first, a, b)


def later(a: Cut, b: Cut) -> Cut:
    """The cut of the longer prefix."""
    first = (a.logit > b.logit) | ((a.logit == b.logit) & (a.token < b.token))
    return select(first, b, a)


def select(which: Array, a: Cut, b: Cut) -> Cut:
    """`a` where `which` holds, else `b`."""
    return Cut(jnp.where(which, a.logit, b.logit), jnp.where(which, a.token, b.token))


def best(rows: Rows) -> Cut:
    """Rank 0."""
    block = first_true(rows.block_max == rows.row_max[..., None])
    x, _ = take_chunk(rows, block, BLOCK)
    lane = first_true(x == rows.row_max[..., None])
    return Cut(rows.row_max, block * BLOCK + lane)


def last_from(rows: Rows, floor: Array) -> Cut:
    """The last token of the ranking whose logit is at least a floor `[...]`."""

    def reach(element: Callable[[Array, Array], Array]) -> Array:
        again, _ = read_again(rows, floor)

        def above(raw: Array, ids: Array, *_: Array) -> Array:
            return element(again.read(raw), ids)

        return jnp.max(fold(again.logits, above, lax.max), axis=-1)

    def negative(x: Array, _: Array) -> Array:
        return to_key(jnp.where(x >= floor[..., None, None], -x, -jnp.inf))

    least = -from_key(reach(negative))
    token = reach(lambda x, ids: jnp.where(x == least[..., None, None], ids, -1))
    return Cut(least, token)


def candidates(rows: Rows, number: int) -> Cut:
    """The first tokens of the ranking in order, `[..., min(number, vocab)]`.

    A token outside the `number` best blocks has that many tokens before it, one in each of them.
    """
    whole = rows.vocab // BLOCK
    if whole <= number:
        x = rows.read(rows.logits)
        ids = positions(x)
    else:
        _, blocks = lax.top_k(_unsigned_zero(rows.block_max[..., :whole]), number)
        x, ids = _gather(rows, jnp.sort(blocks, axis=-1))  # top_k breaks ties by position: the id
    logit, position = lax.top_k(_unsigned_zero(x), min(number, rows.vocab))
    return Cut(logit, jnp.take_along_axis(ids, position, axis=-1))


def rank(rows: Rows, tokens: Array) -> Array:
    """The number of tokens before one of each row, int32 `[...]`."""
    logit = rows.read(at(rows.logits, tokens)[..., None])[..., 0]
    cut = before(Cut(logit, tokens))

    def counted(raw: Array, ids: Array, *_: Array) -> Array:
        return is_kept(rows.read(raw), ids, cut).astype(jnp.int32)

    return jnp.sum(fold(rows.logits, counted, lax.add), axis=-1, dtype=jnp.int32)


def search(
    rows: Rows,
    scale: Scale,
    target: Mass,
    needed: Array,
    rank: Callable[[Array], Array] = lambda x: x,
) -> Cut:
    """The shortest prefix whose mass reaches a target.

    Args:
      rows: the logits.
      scale: what a token weighs.
      target: `[...]`, more than nothing; one beyond the mass of the row keeps all of it.
      needed: bool `[...]`, the rows to search; the others get any cut.
      rank: what the tokens are ranked by, from their logits `[..., *]`; -inf at -inf.

    Returns:
      The cut, in which `logit` is what the last token is ranked by.
    """
    value = _search_value(rows, scale, target, needed, rank)
    return Cut(value, _search_token(rows, scale, target, value, rank))


def _search_value(
    rows: Rows, scale: Scale, target: Mass, needed: Array, rank: Callable[[Array], Array]
) -> Array:
    """The largest value such that the tokens at or above it reach the target, by bisection."""

    def unsettled(bounds: tuple[Array, Array]) -> Array:
        low, high = bounds
        return jnp.any(high - 1 > low)

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, rounded down, without overflow
        again, middle = read_again(rows, middle)
        value = from_key(middle)[..., None, None]
        reached = _mass.reaches(mass(again, scale, lambda x, _: rank(x) >= value), target)
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    high = to_key(jnp.full_like(rows.row_max, jnp.inf))
    low = jnp.where(needed, to_key(jnp.float32(-jnp.inf)), high - 1)
    low, _ = lax.while_loop(unsettled, halve, (low, high))
    return from_key(low)


def _search_token(
    rows: Rows, scale: Scale, target: Mass, value: Array, rank: Callable[[Array], Array]
) -> Array:
    """The token of this value with which the target is reached: first its chunk, then its place."""
    above = mass(rows, scale, lambda x, _: rank(x) > value[..., None, None])
    again, above = read_again(rows, above)
    ties = weigh(again, scale, lambda x, _: rank(x) == value[..., None, None])
    running = _running(above, ties, scale.shifts)
    chunk = first_true(_mass.reaches(running, _expand(target)))

    before = jax.tree.map(lambda a, r: jnp.concatenate([a[..., None], r], -1), above, running)
    before = jax.tree.map(lambda b: at(b, chunk), before)
    shift = at(scale.shifts, chunk)[..., None]
    x, ids = take_chunk(rows, chunk)
    ties = jnp.where(rank(x) == value[..., None], scale.weights(x, ids % CHUNK, shift), 0)
    running = _running(before, ties, shift)
    return at(ids, first_true(_mass.reaches(running, _expand(target))))


def _running(start: Mass, sums: Array, shifts: Array) -> Mass:
    """The mass after each of `sums`, `[..., n]`, counted from a start `[...]`."""
    return _mass.add(_expand(start), _mass.cumulative(_mass.place(sums, shifts)))


def _expand(mass: Mass) -> Mass:
    return Mass(mass.high[..., None], mass.low[..., None])


def _gather(rows: Rows, blocks: Array) -> tuple[Array, Array]:
    """The logits and ids, by id, of the tokens in some whole blocks and in the short last one."""
    lead, whole = blocks.shape[:-1], rows.vocab // BLOCK
    x = take_blocks(rows, blocks, BLOCK)
    ids = blocks[..., None] * BLOCK + positions(x)
    x, ids = (a.reshape(*lead, blocks.shape[-1] * BLOCK) for a in (x, ids))
    tail = rows.read(rows.logits[..., whole * BLOCK :])
    tail_ids = whole * BLOCK + positions(tail)
    return jnp.concatenate([x, tail], axis=-1), jnp.concatenate([ids, tail_ids], axis=-1)


def _unsigned_zero(x: Array) -> Array:
    """-0 as 0: they are equal, but top_k tells them apart."""
    return jnp.where(x == 0, 0, x)
