"""Exact masses of the tokens of a block of rows.

The weight of a token is computed once, as two words. The coarse word alone is nearly always enough
to find the last kept token.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.pallas import tpu as pltpu

from jaxsample._core import _mass
from jaxsample._core._mass import Mass
from jaxsample._core._ranking import Cut, is_kept
from jaxsample._core._source import CHUNK
from jaxsample._tpu import blocks
from jaxsample._tpu.rows import LANES, by_chunk, reduced, span, weights

_REST_BITS = 16
"""The number of bits of a mass below those of the coarse word."""

_REST = 2**_REST_BITS - 1

_TOGETHER = 32
"""The number of vectors whose coarse words, at most 2**26 each, add up within 32 bits."""


class Tokens(NamedTuple):
    """References to arrays in vector memory, with one element for each token of a block.

    Attributes:
      values: the value that is compared with pivots: the logit, or minus the id.
      coarse: the coarse word of the weight.
      rest: the other word of the weight, which may be negative.
    """

    values: Any
    coarse: Any
    rest: Any


class _Sum(NamedTuple):
    """A sum of weights in each lane, `2**32 * high + 2**16 * low + rest` units, int32."""

    high: Array
    low: Array
    rest: Array

    def add(self, words: Iterable[Sequence[Array]]) -> "_Sum":
        """Returns the sum plus the words of some vectors: the coarse words alone, or both words."""
        coarse: Any = 0
        rest: Any = self.rest
        for of in words:
            coarse += of[0]
            rest += of[1] if of[1:] else 0
        high = self.high + lax.shift_right_logical(coarse, _REST_BITS)
        low = self.low + (coarse & _REST) + (rest >> _REST_BITS)
        return _Sum(high, low, rest & _REST)

    def mass(self) -> Mass:
        """Returns the mass of all lanes, equal in all lanes."""
        high, low, rest = map(_over_lanes, self)
        above = lax.bitcast_convert_type(low >> _REST_BITS, jnp.uint32)  # may be negative
        words = [lax.bitcast_convert_type(x, jnp.uint32) for x in (high, low << _REST_BITS, rest)]
        middle = Mass(words[0] + above, words[1])
        return _mass.add(middle, Mass(jnp.zeros_like(above), words[2]))


def row_masses(inputs: blocks.Inputs, *, interpret: bool) -> Mass:
    """Returns the masses `[rows]` of all tokens."""
    # Blocks of adjacent rows, since nearly all rows are needed.
    outputs = [(LANES, jnp.int32)] * 2
    words = blocks.call(_masses_body, inputs, outputs, [], interpret, gathered=False)
    return Mass(*(lax.bitcast_convert_type(word[:, 0], jnp.uint32) for word in words))


def _masses_body(rows: blocks.Rows, high_ref: Any, low_ref: Any) -> None:
    def step(number: Array, total: _Sum) -> _Sum:
        chunks = []
        weighed = _weighed(rows, number, blocks.read(rows, number))
        for (one, shift), (other, _) in zip(weighed[::2], weighed[1::2], strict=True):
            chunks.append(_words(one + other, shift))
        for some in _together(blocks.VECTORS):
            total = total.add(chunks[some.start // 2 : some.stop // 2])
        return total

    mass = blocks.steps(rows.vocab, step, _nothing(rows)).mass()
    for ref, word in zip((high_ref, low_ref), mass, strict=True):
        ref[...] = lax.bitcast_convert_type(word, jnp.int32)


def weigh(rows: blocks.Rows, tokens: Tokens) -> Mass:
    """Stores the weights of the tokens, and returns the mass of all of them."""

    def step(number: Array, total: _Sum) -> _Sum:
        words = [_words(*of) for of in _weighed(rows, number, blocks.read(rows, number))]
        for ref, of in zip((tokens.coarse, tokens.rest), zip(*words, strict=True), strict=True):
            blocks.write(ref, number, of)
        for some in _together(blocks.VECTORS):
            total = total.add(words[some])
        return total

    return blocks.steps(rows.vocab, step, _nothing(rows)).mass()


def weigh_kept(rows: blocks.Rows, tokens: Tokens, cut: Cut, sums_ref: Any, count_ref: Any) -> None:
    """Adds up the weights of the tokens up to a cut, by chunk, and counts them."""
    cut = cut._replace(logit=jnp.maximum(cut.logit, blocks.LEAST))  # excludes masked tokens
    size = blocks.STEP // CHUNK
    steps = np.int32(LANES // size)

    def step(number: Array, count: Array) -> Array:
        shifts = blocks.columns_of(rows.shifts, number, size)
        vectors = []
        words = (blocks.vectors_of(ref, number) for ref in (tokens.coarse, tokens.rest))
        every = zip(blocks.read(rows, number), blocks.ids(rows, number), *words, strict=True)
        for place, (x, ids, coarse, rest) in enumerate(every):
            kept = is_kept(x, ids, cut)
            weight = _weight(coarse, rest, shifts[place * LANES // CHUNK])
            vectors.append(jnp.where(kept, weight, 0))
            count += kept.astype(jnp.int32)
        sums = reduced(jnp.sum, by_chunk(jnp.add, vectors), 1)
        sums = jnp.concatenate([sums, jnp.zeros_like(count)[:, size:]], axis=1)
        lanes, turned = span(lax.div(number, steps), LANES), lax.rem(number, steps)
        sums = pltpu.roll(sums, turned * size, 1)
        sums_ref[:, lanes] = jnp.where(turned == 0, sums, sums_ref[:, lanes] + sums)
        return count

    count_ref[...] = blocks.steps(rows.vocab, step, _nothing(rows).rest)


def count_from(rows: blocks.Rows, tokens: Tokens, pivots: list[Any]) -> list[Mass]:
    """Returns the number of tokens at or above each pivot."""

    def step(number: Array, counts: list[Array]) -> list[Array]:
        for value in blocks.vectors_of(tokens.values, number):
            kept = [value >= pivot for pivot in pivots]
            counts = [n + of.astype(jnp.int32) for n, of in zip(counts, kept, strict=True)]
        return counts

    nothing = [_nothing(rows).rest] * len(pivots)
    return [_number_of(count) for count in blocks.steps(rows.vocab, step, nothing)]


def sum_from(rows: blocks.Rows, tokens: Tokens, pivots: list[Any], *, exact: bool) -> list[Mass]:
    """Returns the masses of the tokens at or above each pivot, or the sums of coarse words."""

    def step(number: Array, sums: list[_Sum]) -> list[_Sum]:
        refs = (tokens.coarse, tokens.rest) if exact else (tokens.coarse,)
        values = blocks.vectors_of(tokens.values, number)
        words = [*zip(*(blocks.vectors_of(ref, number) for ref in refs), strict=True)]
        sums = list(sums)
        for some in _together(blocks.VECTORS):
            for place, pivot in enumerate(pivots):
                sums[place] = sums[place].add(_from(pivot, values[some], words[some]))
        return sums

    sums = blocks.steps(rows.vocab, step, [_nothing(rows)] * len(pivots))
    return [sum_.mass() for sum_ in sums]


def _together(number: int) -> list[slice]:
    """Returns slices of a number of vectors in which coarse words add up within 32 bits."""
    return [slice(start, start + _TOGETHER) for start in range(0, number, _TOGETHER)]


def _from(pivot: Any, values: list[Array], words: list[Any]) -> Iterator[list[Array]]:
    """Returns the words of the vectors, 0 for tokens below a pivot."""
    for value, of in zip(values, words, strict=True):
        kept = value >= pivot
        yield [jnp.where(kept, word, 0) for word in of]


def _nothing(rows: blocks.Rows) -> _Sum:
    zeros = jnp.zeros_like(rows.given.row_max, jnp.int32)
    return _Sum(zeros, zeros, zeros)


def _number_of(counts: Array) -> Mass:
    """Returns the counts of all lanes, as a mass."""
    total = lax.bitcast_convert_type(_over_lanes(counts), jnp.uint32)
    return Mass(jnp.zeros_like(total), total)


def _over_lanes(x: Array) -> Array:
    """Returns the sum over the lanes, equal in all lanes."""
    return jnp.broadcast_to(jnp.sum(x, axis=1, keepdims=True, dtype=jnp.int32), x.shape)


def _weighed(rows: blocks.Rows, number: Array, vectors: list[Array]) -> list[tuple[Array, Array]]:
    """Returns the weights of the vectors of a step, and the shifts of their chunks."""
    lane = lax.broadcasted_iota(jnp.int32, rows.given.row_max.shape, 1)
    shifts = blocks.columns_of(rows.shifts, number, blocks.STEP // CHUNK)
    found = []
    for place, x in enumerate(vectors):
        chunk, start = divmod(place * LANES, CHUNK)
        shift = shifts[chunk]
        found.append((weights(x, start + lane, rows.given.row_max, shift), shift))
    return found


def _weight(coarse: Array, rest: Array, shift: Array) -> Array:
    """Returns the weight of two words, at a shift."""
    return ((coarse << shift) >> (_mass.NO_SHIFT - _REST_BITS)) + (rest >> (_mass.NO_SHIFT - shift))


def _words(weight: Array, shift: Array) -> tuple[Array, Array]:
    """Returns the two words, `2**16 * coarse + rest`, of weights at a shift."""
    half = (1 << shift) >> 1
    coarse = ((weight << (_mass.NO_SHIFT - _REST_BITS)) + half) >> shift
    return coarse, (weight << (_mass.NO_SHIFT - shift)) - (coarse << _REST_BITS)
