"""Law 1: one ranking, by logit, equal logits by lower token id.

A prefix of the ranking is represented by its last token, its `Cut`. Most cuts are among the
`candidates`, which are found from the block maxima without another pass over the row. `_bisection`
finds the others by a search over the whole row.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsample._core import _mass, _selection, _shards
from jaxsample._core._checks import to_elements
from jaxsample._core._chunks import block_size, chunk_maxima, chunk_sums, starts
from jaxsample._core._gather import take_blocks, take_chunk, take_rest
from jaxsample._core._lookup import first_true, take
from jaxsample._core._rows import Rows, read_again
from jaxsample._core._sortable import from_sortable
from jaxsample._core._source import CHUNK


class Cut(NamedTuple):
    """The end of a prefix: its last token, or any point between that and the next token.

    Attributes:
      logit: float32.
      token: int32; tokens with that logit are in the prefix up to this id.
    """

    logit: Array
    token: Array


class Kept(NamedTuple):
    """The weights and the number of the tokens of a kept set.

    Attributes:
      sums: int32 `[..., chunks]`, the weights added up by chunk, for `_mass.place`.
      num_kept: int32 `[...]`, the number of tokens.
    """

    sums: Array
    num_kept: Array


def is_kept(x: Array, ids: Array, cut: Cut) -> Array:
    """Whether tokens `[..., *]` with these logits and ids are in the prefix of a cut."""
    logit, token = (to_elements(of, x) for of in cut)
    return (x > logit) | ((x == logit) & (ids <= token))


def up_to(
    rows: Rows, cut: Cut, value: Callable[[Array], Array] = lambda x: x
) -> tuple[Callable[..., Array], Array]:
    """Returns the arguments with which `_chunks.weigh` keeps the tokens up to a cut.

    The id of the cut is converted to a place in each chunk: XLA would hoist the ids of all tokens
    out of a loop and materialise them.
    """

    def keep(x: Array, places: np.ndarray, last: Array) -> Array:
        x, logit = value(x), cut.logit[..., None, None]
        return (x > logit) | ((x == logit) & (places <= last))

    return keep, cut.token[..., None] - starts(rows)


def everything(rows: Rows) -> Cut:
    """Returns the cut after the last token."""
    logit = jnp.full_like(rows.row_max, -jnp.inf)
    return Cut(logit, jnp.full_like(logit, rows.vocab, jnp.int32))


def before(tokens: Cut) -> Cut:
    """Returns the cuts directly before some tokens."""
    return Cut(tokens.logit, tokens.token - 1)


def earlier(a: Cut, b: Cut) -> Cut:
    """Returns the cut of the shorter prefix."""
    return select(is_kept(*a, b), a, b)


def later(a: Cut, b: Cut) -> Cut:
    """Returns the cut of the longer prefix."""
    return select(is_kept(*a, b), b, a)


def select(which: Array, a: Cut, b: Cut) -> Cut:
    """Returns `a` where `which` is True, else `b`."""
    return Cut(jnp.where(which, a.logit, b.logit), jnp.where(which, a.token, b.token))


def best(rows: Rows) -> Cut:
    """Returns the cut of rank 0."""
    size = block_size(rows, rows.block_max.shape[-1])
    block = first_true(rows.block_max == rows.row_max[..., None])
    raw, _ = take_chunk(rows, block, size)
    lane = first_true(rows.read(raw) == rows.row_max[..., None])
    return Cut(rows.row_max, block * size + lane)


def last_from(rows: Rows, floor: Array) -> Cut:
    """Returns the last token of the ranking whose logit is at least a floor `[...]`."""

    def reach(element: Callable[[Array, Array], Array]) -> Array:
        again, _ = read_again(rows, floor)

        def above(raw: Array, ids: Array, *_: Array) -> Array:
            return element(again.read(raw), ids)

        return jnp.max(chunk_maxima(again.source, above), axis=-1)

    def negative(x: Array, _: Array) -> Array:
        return jnp.where(x >= floor[..., None, None], -x, -jnp.inf)

    least = -from_sortable(reach(negative))
    token = reach(lambda x, ids: jnp.where(x == least[..., None, None], ids, -1))
    return Cut(least, token)


def candidates(rows: Rows, number: int) -> Cut:
    """Returns the first tokens of the ranking in order, `[..., min(number, vocab)]`."""
    return first(rows, number)[0]


def first(rows: Rows, number: int) -> tuple[Cut, Array]:
    """Returns the first tokens of the ranking in order, and their raw values.

    They are in the `number` blocks with the largest maxima: any other token has at least `number`
    tokens before it, one in each of these blocks.

    Returns:
      Logits and ids, and the raw values of the logits, `[..., min(number, vocab)]`.
    """
    block_max = rows.block_max
    size = block_size(rows, block_max.shape[-1])
    whole = rows.vocab // size
    if whole <= number:
        raw, blocks, least = rows.source.whole(), None, None
    else:
        # In the order of ids, since ties are broken by position. The short block is the last one.
        blocks, least = _selection.places_of_top_k(unsigned_zero(block_max[..., :whole]), number)
        raw = _taken(rows, blocks, size)

    def competing(raw: Array) -> Array:
        x = unsigned_zero(rows.read(raw))
        # At least `number` tokens reach the least of these maxima. Masking the others halves the
        # time of top_k.
        return x if least is None else jnp.where(x >= least[..., None], x, -jnp.inf)

    top, position, raw = _selection.top_k(raw, min(number, rows.vocab), competing)
    token = position if blocks is None else _ids(rows, blocks, size, position)
    return Cut(top, token), raw


def rank(rows: Rows, tokens: Array) -> Array:
    """Returns the rank of an unmasked token of each row, int32 `[...]`."""
    taken = _shards.take(rows.source.logits, tokens[..., None], rows.source.shards)
    logit = rows.read(taken)[..., 0]
    cut = before(Cut(logit, tokens))

    def counted(raw: Array, ids: Array, *_: Array) -> Array:
        return is_kept(rows.read(raw), ids, cut).astype(jnp.int32)

    counts = chunk_sums(rows.source, counted)
    return jnp.sum(counts, axis=-1, dtype=jnp.int32)


def weigh_first(rows: Rows, top: Cut) -> tuple[Array, Array]:
    """Returns the weights of the first tokens, by probability, and the shifts of their chunks.

    The largest logit of a chunk is among the first tokens if any token of the chunk is.
    """
    chunks = top.token // CHUNK
    same = chunks[..., :, None] == chunks[..., None, :]
    chunk_max = jnp.max(jnp.where(same, top.logit[..., :, None], -jnp.inf), axis=-2)
    row_max = rows.row_max[..., None]
    shifts = _mass.shifts(chunk_max, row_max)
    return _mass.weights(top.logit, top.token % CHUNK, row_max, shifts), shifts


def _taken(rows: Rows, blocks: Array, size: int) -> Array:
    """Returns the raw values of some whole blocks and of the short last one, concatenated."""
    raw = take_blocks(rows, blocks, size).reshape(*blocks.shape[:-1], -1)
    if rows.source.shards is not None:  # whose vocabulary is whole blocks
        return raw
    return jnp.concatenate([raw, take_rest(rows, size)], axis=-1)


def _ids(rows: Rows, blocks: Array, size: int, position: Array) -> Array:
    """Returns the ids of tokens, by their position in the result of `_taken`."""
    last = jnp.full((*blocks.shape[:-1], 1), rows.vocab // size, blocks.dtype)
    blocks = jnp.concatenate([blocks, last], axis=-1)
    return take(blocks, position // size) * size + position % size


def unsigned_zero(x: Array) -> Array:
    """Replaces -0 by 0: they are equal, but top_k distinguishes them."""
    return jnp.where(x == 0, 0, x)
