"""Kernels for the first scan of the rows, eight rows at a time, which read logits from HBM once.

A vector is 8 rows by 128 tokens, and an iteration processes 256 vectors. To reduce along lanes, 16
vectors are transposed together and reduced along sublanes. Iterations are long to hide the latency
of these transposes.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxsample._core import _bits, _mass, _rows
from jaxsample._core._bits import WORD
from jaxsample._core._elementary import product
from jaxsample._core._source import BLOCK, CHUNK

ROWS = 8
LANES = 128
_VECTORS = 256
TURN = _VECTORS * LANES
"""The number of tokens of an iteration."""

MIN_VOCAB = 2**14
"""The smallest vocabulary for kernels; at half an iteration, half of the work is padding."""

MAX_VOCAB = 2**18
"""The largest vocabulary for which double-buffered blocks of eight rows fit in vector memory."""

_BINS = 4
"""The number of bins of each lane; vectors are assigned to them in turn."""

_DEPTH = 4
"""The number of tokens of a bin."""

_STACK = 16
"""The number of vectors that are transposed together."""

_VMEM = 48 * 2**20

Body = Callable[..., None]


class Bins(NamedTuple):
    """The first tokens of each bin, by logit and then by id, among which the first of the row are.

    Attributes:
      logits: float32 `[rows, candidates]`, padded with -inf.
      ids: int32 `[rows, candidates]`.
      last: float32 `[rows, bins]`, the least logit in each bin.
      last_id: int32 `[rows, bins]`, its token.
      left: float32 `[rows, bins]`, the largest logit that was dropped from each bin.
    """

    logits: Array
    ids: Array
    last: Array
    last_id: Array
    left: Array


def block_maxima(logits: Array, *, interpret: bool) -> Array:
    """Returns the largest logit of each block, float32 `[rows, blocks]`, +inf for a NaN."""
    outputs = _each_turn(logits, TURN // BLOCK, jnp.float32)
    (maxima,) = _call(_maxima_body, logits, (), outputs, interpret)
    return _blocks(maxima, logits)


def chunk_maxima_and_sums(
    logits: Array,
    beta: Array | None,
    mask: Array | None,
    *,
    counted: bool,
    interpret: bool,
) -> tuple[Array, ...]:
    """Returns the largest logit of each chunk and the sum of its weights.

    Args:
      logits: `[rows, vocab]`.
      beta: float32 `[rows]`, the inverse temperature, or None.
      mask: int32 `[rows, words]`, the packed mask of the allowed tokens, or None.
      counted: whether to also count the tokens.
      interpret: whether to run without a TPU.

    Returns:
      The largest logits, not multiplied by beta, float32 `[rows, chunks]`; the sums, int32; and
      int32 `[rows]`, the number of tokens whose scaled logit is above -inf.
    """
    outputs = [*_each_turn(logits, TURN // CHUNK, jnp.float32, jnp.int32)]
    outputs += [(LANES, jnp.int32)] * counted
    beta = None if beta is None else beta[:, None]
    mask = None if mask is None else _bits.by_lane(mask)
    maxima, sums, *counts = _call(_sums_body, logits, (mask, beta), outputs, interpret)
    chunks = pl.cdiv(logits.shape[1], CHUNK)
    counts = [jnp.sum(each, axis=1, dtype=jnp.int32) for each in counts]
    return maxima[:, :chunks], sums[:, :chunks], *counts


def block_maxima_and_bins(
    logits: Array, mask: Array | None, *, interpret: bool
) -> tuple[Array, Bins]:
    """Returns the largest logits of the blocks, and the bins, of the allowed tokens."""
    bins = _BINS * LANES
    outputs = [*_each_turn(logits, TURN // BLOCK, jnp.float32)]
    outputs += [(_DEPTH * bins, jnp.float32), (_DEPTH * bins, jnp.int32), (bins, jnp.float32)]
    mask = None if mask is None else _bits.by_lane(mask)
    maxima, values, vectors, left = _call(_bins_body, logits, (mask,), outputs, interpret)
    ids = vectors * LANES + lax.broadcasted_iota(jnp.int32, vectors.shape, 1) % LANES
    found = Bins(values, ids, values[:, -bins:], ids[:, -bins:], left)
    return _blocks(maxima, logits), found


def _each_turn(logits: Array, size: int, *dtypes: Any) -> Iterator[tuple[int, Any]]:
    """Returns the sizes of outputs with `size` elements for each iteration."""
    return ((pl.cdiv(logits.shape[1], TURN) * size, dtype) for dtype in dtypes)


def _call(
    body: Body,
    logits: Array,
    given: tuple[Array | None, ...],
    outputs: Iterable[tuple[int, Any]],
    interpret: bool,
) -> Sequence[Array]:
    """Runs a body for each eight rows.

    The body takes references to the logits, to each of `given` or None, and to the outputs.
    """
    outputs = [*outputs]
    used = [x for x in given if x is not None]
    if interpret:  # XLA on CPU takes a quarter of an hour to compile the casts of a kernel
        logits = logits.astype(jnp.float32)
    rows, vocab = logits.shape
    turns, together = pl.cdiv(vocab, TURN), min(rows, ROWS)

    def spec(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((together, size), lambda i: (i, 0))

    def run(x_ref: Any, *refs: Any) -> None:
        read, write = iter(refs[: len(used)]), refs[len(used) :]
        body(x_ref, *(None if x is None else next(read) for x in given), *write, vocab=vocab)

    return pl.pallas_call(
        run,
        grid=(pl.cdiv(rows, together),),
        in_specs=[spec(turns * TURN), *(spec(_of_turns(x.shape[1], turns)) for x in used)],
        out_specs=[spec(size) for size, _ in outputs],
        out_shape=like_rows(logits, outputs),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_VMEM),
        interpret=interpret,
    )(logits, *used)


def like_rows(logits: Array, outputs: list[tuple[int, Any]]) -> Any:
    """Returns the shapes of outputs `[rows, size]`, by their sizes and dtypes."""

    def shapes(logits: Array) -> list[Array]:
        # Inside shard_map, outputs vary over the same mesh axes as the logits.
        first = logits[:, :1]
        rows = len(first)
        return [jnp.broadcast_to(first, (rows, size)).astype(dtype) for size, dtype in outputs]

    return jax.eval_shape(shapes, logits)


def _of_turns(size: int, turns: int) -> int:
    """Returns the size of an input of a row, a number or a mask, padded to whole iterations."""
    return size if size == 1 else turns * TURN // WORD


def _blocks(maxima: Array, logits: Array) -> Array:
    return maxima[:, : pl.cdiv(logits.shape[1], BLOCK)]


def _maxima_body(x_ref: Any, maxima_ref: Any, *, vocab: int) -> None:
    def turn(number: Array, nothing: Array) -> Array:
        maxima_ref[:, span(number, TURN // BLOCK)] = _maxima(_vectors(x_ref, number))
        return nothing

    hide(x_ref, vocab)
    _turns(vocab, turn, np.int32(0))


def _bins_body(
    x_ref: Any,
    mask_ref: Any,
    maxima_ref: Any,
    values_ref: Any,
    vectors_ref: Any,
    left_ref: Any,
    *,
    vocab: int,
) -> None:
    def turn(number: Array, bins: list[Any]) -> list[Any]:
        vectors = _masked(_vectors(x_ref, number), mask_ref, number)
        maxima_ref[:, span(number, TURN // BLOCK)] = _maxima(vectors)
        bins = list(bins)
        for place, x in enumerate(vectors):
            bin_ = place % _BINS
            bins[bin_] = _inserted(bins[bin_], x, jnp.full(x.shape, number * _VECTORS + place))
        return bins

    hide(x_ref, vocab)
    nothing, none = _filled(x_ref, -np.inf), _filled(x_ref, 0)
    empty = ([nothing] * _DEPTH, [none] * _DEPTH, nothing)
    for bin_, (values, vectors, left) in enumerate(_turns(vocab, turn, [empty] * _BINS)):
        for level in range(_DEPTH):
            lanes = pl.ds((level * _BINS + bin_) * LANES, LANES)
            values_ref[:, lanes] = values[level]
            vectors_ref[:, lanes] = vectors[level]
        left_ref[:, pl.ds(bin_ * LANES, LANES)] = left


@jax.jit  # traced once instead of for each vector
def _inserted(held: Any, x: Array, vector: Array) -> Any:
    """Returns a bin with one more value: in order, equal values by insertion."""
    values, vectors, left = list(held[0]), list(held[1]), held[2]
    # All values from the first smaller one on move down by one, including equal ones.
    larger_than = [x > value for value in values]
    for level, larger in enumerate(larger_than):
        values[level], x = _swapped(larger, values[level], x)
        vectors[level], vector = _swapped(larger, vectors[level], vector)
    return values, vectors, jnp.maximum(left, x)


def _swapped(which: Array, a: Array, b: Array) -> tuple[Array, Array]:
    return jnp.where(which, b, a), jnp.where(which, a, b)


def _sums_body(
    x_ref: Any,
    mask_ref: Any,
    beta_ref: Any,
    maxima_ref: Any,
    sums_ref: Any,
    *count_ref: Any,
    vocab: int,
) -> None:
    def look(number: Array, largest: Array) -> Array:
        vectors = _masked(_vectors(x_ref, number), mask_ref, number)
        if mask_ref is not None:
            x_ref[:, span(number, TURN)] = jnp.concatenate(vectors, axis=1).astype(x_ref.dtype)
        chunks = by_chunk(jnp.maximum, map(_infinite, vectors))
        maxima = reduced(jnp.max, chunks, 1)
        maxima_ref[:, span(number, TURN // CHUNK)] = maxima
        return jnp.maximum(largest, maxima)

    hide(x_ref, vocab)
    nothing = jnp.full((x_ref.shape[0], TURN // CHUNK), -jnp.inf)
    largest = _turns(vocab, look, nothing)
    raw_max = jnp.max(largest, axis=1, keepdims=True)
    raw_max = jnp.where(jnp.abs(raw_max) < jnp.inf, raw_max, 0)
    beta = None if beta_ref is None else _rows.bounded_beta(beta_ref[...], raw_max)[0]

    def read(x: Array) -> Array:
        return x if beta is None else product(x, beta)

    row_max = read(raw_max)
    lane = lax.broadcasted_iota(jnp.int32, (x_ref.shape[0], LANES), 1)

    def weigh(number: Array, count: Array) -> Array:
        chunks = span(number, TURN // CHUNK)
        shifts = _mass.shifts(read(maxima_ref[:, chunks]), row_max)

        def weighed(place: int, x: Array) -> Array:
            chunk, place = divmod(place * LANES, CHUNK)
            return weights(x, place + lane, row_max, shifts[:, chunk : chunk + 1])

        vectors = [*map(read, _vectors(x_ref, number))]
        weighed_vectors = itertools.starmap(weighed, enumerate(vectors))
        sums_ref[:, chunks] = reduced(jnp.sum, by_chunk(jnp.add, weighed_vectors), 1)
        if count_ref:
            count += sum((x > -jnp.inf).astype(jnp.int32) for x in vectors)
        return count

    count = _turns(vocab, weigh, _filled(x_ref, 0))
    if count_ref:
        count_ref[0][...] = count


weights = jax.jit(_mass.weights)  # traced once instead of for each vector


def by_chunk(combine: Callable[[Array, Array], Array], vectors: Iterable[Array]) -> list[Array]:
    """Returns the vectors of each chunk combined."""
    vectors = iter(vectors)
    return [functools.reduce(combine, of) for of in zip(*[vectors] * (CHUNK // LANES), strict=True)]


def _turns(vocab: int, turn: Callable[..., Any], state: Any) -> Any:
    return lax.fori_loop(np.int32(0), np.int32(pl.cdiv(vocab, TURN)), turn, state)


def span(number: Array, size: int) -> Any:
    """Returns the slice of an iteration, of an array with `size` elements for each iteration."""
    return pl.ds(pl.multiple_of(number * size, LANES), size)


def _filled(x_ref: Any, value: float) -> Array:
    dtype = jnp.int32 if isinstance(value, int) else jnp.float32
    return jnp.full((x_ref.shape[0], LANES), value, dtype)


def hide(x_ref: Any, vocab: int) -> None:
    """Fills the padding after the vocabulary with -inf."""
    rows, size = x_ref.shape
    lane = lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)
    for start in range(vocab // LANES * LANES, size, LANES):
        lanes = pl.ds(start, LANES)
        x_ref[:, lanes] = jnp.where(lane < vocab - start, x_ref[:, lanes], -jnp.inf)


def _vectors(x_ref: Any, number: Array) -> list[Array]:
    """Returns the vectors of an iteration, float32."""
    start = pl.multiple_of(number * TURN, TURN)
    # One load: with a load for each vector, computing addresses would limit the throughput.
    vectors = jnp.split(x_ref[:, pl.ds(start, TURN)], _VECTORS, axis=1)
    return [x.astype(jnp.float32) for x in vectors]


def _masked(vectors: list[Array], mask_ref: Any, number: Array) -> list[Array]:
    """Returns the vectors of an iteration, -inf for masked tokens; NaN and +inf stay."""
    if mask_ref is None:
        return vectors
    words = jnp.split(mask_ref[:, span(number, TURN // WORD)], _VECTORS // WORD, axis=1)
    allowed = (_bits.is_set(words[i // WORD], i % WORD) for i in range(len(vectors)))
    return [*map(_bits.masked, vectors, allowed)]


def _maxima(vectors: Sequence[Array]) -> Array:
    """Returns the largest values of the blocks of some vectors, `[rows, blocks]`, +inf for NaN."""
    return reduced(jnp.max, [*map(_infinite, vectors)], LANES // BLOCK)


def _infinite(x: Array) -> Array:
    """Replaces NaN, which a maximum may drop, by +inf."""
    return jnp.where(jnp.isnan(x), jnp.inf, x)


def reduced(reduce: Callable[..., Array], vectors: Sequence[Array], parts: int) -> Array:
    """Reduces each of `parts` equal parts of the lanes of vectors, `[rows, vectors * parts]`."""
    stacks = len(vectors) // _STACK
    reduced = []
    for first in range(stacks):
        columns = jnp.concatenate(vectors[first::stacks], axis=0).T
        for part in jnp.split(columns, parts):
            reduced.append(reduce(part, axis=0, keepdims=True))
    columns = jnp.concatenate(reduced, axis=0).T
    return jnp.concatenate(jnp.split(columns, _STACK), axis=1)
