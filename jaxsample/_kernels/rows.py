"""Rows in vector memory, eight at a time: their logits are read from HBM once.

A vector is 8 rows by 128 tokens, and a turn looks at 256 of them. Along its lanes a vector is not
reduced: 16 of them are transposed together and reduced one above the other. A turn waits for that,
so it is long.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxsample import _mass
from jaxsample._chunks import BLOCK, CHUNK

ROWS = 8
LANES = 128
_VECTORS = 256
TURN = _VECTORS * LANES
"""Tokens that a turn looks at."""

MIN_VOCAB = 2**14
"""Below it, half of a turn is for nothing."""

MAX_VOCAB = 2**18
"""So long that two times eight rows and as much again lie in vector memory."""

_BINS = 4
"""Bins a lane, to which the vectors go in turn."""

_DEPTH = 4
"""Tokens that a bin holds."""

_STACK = 16
"""Vectors that are transposed together."""

_VMEM = 48 * 2**20

Body = Callable[..., None]


class Bins(NamedTuple):
    """The first tokens of each bin, by logit and then by id: candidates for those of the row.

    Attributes:
      logits: float32 `[rows, candidates]`, -inf where there are none.
      ids: int32 `[rows, candidates]`.
      last: float32 `[rows, bins]`, the least logit that each bin holds.
      last_id: int32 `[rows, bins]`.
      left: float32 `[rows, bins]`, the largest logit that each bin has left out.
    """

    logits: Array
    ids: Array
    last: Array
    last_id: Array
    left: Array


def block_maxima(logits: Array, *, interpret: bool) -> Array:
    """The largest logit of each block, float32 `[rows, blocks]`, +inf where there is a NaN."""
    (maxima,) = _call(_maxima_body, logits, [(TURN // BLOCK, jnp.float32)], 0, interpret)
    return _blocks(maxima, logits)


def chunk_maxima_and_sums(logits: Array, *, interpret: bool) -> tuple[Array, Array]:
    """Those of each chunk, and its tokens' weights added up, int32 `[rows, chunks]`."""
    each_turn = [(TURN // CHUNK, jnp.float32), (TURN // CHUNK, jnp.int32)]
    maxima, sums = _call(_sums_body, logits, each_turn, 0, interpret)
    chunks = pl.cdiv(logits.shape[1], CHUNK)
    return maxima[:, :chunks], sums[:, :chunks]


def block_maxima_and_bins(logits: Array, *, interpret: bool) -> tuple[Array, Bins]:
    """The largest logits of the blocks, and what the bins hold."""
    each_turn = [(TURN // BLOCK, jnp.float32)]
    maxima, values, vectors, left = _call(_bins_body, logits, each_turn, _DEPTH, interpret)
    ids = vectors * LANES + lax.broadcasted_iota(jnp.int32, vectors.shape, 1) % LANES
    last = -_BINS * LANES
    bins = Bins(values, ids, values[:, last:], ids[:, last:], left)
    return _blocks(maxima, logits), bins


def _call(
    body: Body, logits: Array, each_turn: Sequence[tuple[int, Any]], depth: int, interpret: bool
) -> Sequence[Array]:
    """Runs a body for each eight rows, with outputs that grow with the turns and those of bins."""
    if interpret:  # whose casts took XLA a quarter of an hour to compile
        logits = logits.astype(jnp.float32)
    rows, vocab = logits.shape
    turns, together = pl.cdiv(vocab, TURN), min(rows, ROWS)
    outputs = [(turns * size, dtype) for size, dtype in each_turn]
    if depth:
        held = depth * _BINS * LANES
        outputs += [(held, jnp.float32), (held, jnp.int32), (_BINS * LANES, jnp.float32)]

    def spec(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((together, size), lambda i: (i, 0))

    def shapes(logits: Array) -> list[Array]:
        # Inside shard_map, outputs vary over the mesh as the logits do.
        first = logits[:, :1]
        return [jnp.broadcast_to(first, (rows, size)).astype(dtype) for size, dtype in outputs]

    return pl.pallas_call(
        functools.partial(body, vocab=vocab),
        grid=(pl.cdiv(rows, together),),
        in_specs=[spec(turns * TURN)],
        out_specs=[spec(size) for size, _ in outputs],
        out_shape=jax.eval_shape(shapes, logits),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_VMEM),
        interpret=interpret,
    )(logits)


def _blocks(maxima: Array, logits: Array) -> Array:
    return maxima[:, : pl.cdiv(logits.shape[1], BLOCK)]


def _maxima_body(x_ref: Any, maxima_ref: Any, *, vocab: int) -> None:
    def turn(number: Array, nothing: Array) -> Array:
        maxima_ref[:, _span(number, TURN // BLOCK)] = _maxima(_vectors(x_ref, number))
        return nothing

    _hide(x_ref, vocab)
    _turns(vocab, turn, np.int32(0))


def _bins_body(
    x_ref: Any, maxima_ref: Any, values_ref: Any, vectors_ref: Any, left_ref: Any, *, vocab: int
) -> None:
    def turn(number: Array, bins: list[Any]) -> list[Any]:
        vectors = _vectors(x_ref, number)
        maxima_ref[:, _span(number, TURN // BLOCK)] = _maxima(vectors)
        bins = list(bins)
        for place, x in enumerate(vectors):
            bin_ = place % _BINS
            bins[bin_] = _inserted(bins[bin_], x, jnp.full(x.shape, number * _VECTORS + place))
        return bins

    _hide(x_ref, vocab)
    nothing, none = _filled(x_ref, -np.inf), _filled(x_ref, 0)
    empty = ([nothing] * _DEPTH, [none] * _DEPTH, nothing)
    for bin_, (values, vectors, left) in enumerate(_turns(vocab, turn, [empty] * _BINS)):
        for level in range(_DEPTH):
            lanes = pl.ds((level * _BINS + bin_) * LANES, LANES)
            values_ref[:, lanes] = values[level]
            vectors_ref[:, lanes] = vectors[level]
        left_ref[:, pl.ds(bin_ * LANES, LANES)] = left


def _inserted(held: Any, x: Array, vector: Array) -> Any:
    """A bin with one more value: in order, equal values by when they came."""
    values, vectors, left = list(held[0]), list(held[1]), held[2]
    # All from the first that is less move on, equal ones among them, too.
    larger_than = [x > value for value in values]
    for level, larger in enumerate(larger_than):
        values[level], x = _swapped(larger, values[level], x)
        vectors[level], vector = _swapped(larger, vectors[level], vector)
    return values, vectors, jnp.maximum(left, x)


def _swapped(which: Array, a: Array, b: Array) -> tuple[Array, Array]:
    return jnp.where(which, b, a), jnp.where(which, a, b)


def _sums_body(x_ref: Any, maxima_ref: Any, sums_ref: Any, *, vocab: int) -> None:
    def look(number: Array, largest: Array) -> Array:
        chunks = _by_chunk(jnp.maximum, map(_infinite, _vectors(x_ref, number)))
        maxima = _reduced(jnp.max, chunks, 1)
        maxima_ref[:, _span(number, TURN // CHUNK)] = maxima
        return jnp.maximum(largest, maxima)

    _hide(x_ref, vocab)
    nothing = jnp.full((x_ref.shape[0], TURN // CHUNK), -jnp.inf)
    largest = _turns(vocab, look, nothing)
    row_max = jnp.max(largest, axis=1, keepdims=True)
    row_max = jnp.where(jnp.abs(row_max) < jnp.inf, row_max, 0)
    lane = lax.broadcasted_iota(jnp.int32, (x_ref.shape[0], LANES), 1)

    def weigh(number: Array, nothing: Array) -> Array:
        chunks = _span(number, TURN // CHUNK)
        shifts = _mass.shifts(maxima_ref[:, chunks], row_max)

        def weights(place: int, x: Array) -> Array:
            chunk, place = divmod(place * LANES, CHUNK)
            return _mass.weights(x, place + lane, row_max, shifts[:, chunk : chunk + 1])

        weighed = itertools.starmap(weights, enumerate(_vectors(x_ref, number)))
        sums_ref[:, chunks] = _reduced(jnp.sum, _by_chunk(jnp.add, weighed), 1)
        return nothing

    _turns(vocab, weigh, np.int32(0))


def _by_chunk(combine: Callable[[Array, Array], Array], vectors: Iterable[Array]) -> list[Array]:
    """The vectors of each chunk combined."""
    vectors = iter(vectors)
    return [functools.reduce(combine, of) for of in zip(*[vectors] * (CHUNK // LANES), strict=True)]


def _turns(vocab: int, turn: Callable[..., Any], state: Any) -> Any:
    return lax.fori_loop(np.int32(0), np.int32(pl.cdiv(vocab, TURN)), turn, state)


def _span(number: Array, size: int) -> Any:
    """What a turn has of an array to which each adds so much."""
    return pl.ds(pl.multiple_of(number * size, LANES), size)


def _filled(x_ref: Any, value: float) -> Array:
    dtype = jnp.int32 if isinstance(value, int) else jnp.float32
    return jnp.full((x_ref.shape[0], LANES), value, dtype)


def _hide(x_ref: Any, vocab: int) -> None:
    """Fills what is beyond the vocabulary with -inf."""
    rows, size = x_ref.shape
    lane = lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)
    for start in range(vocab // LANES * LANES, size, LANES):
        lanes = pl.ds(start, LANES)
        x_ref[:, lanes] = jnp.where(lane < vocab - start, x_ref[:, lanes], -jnp.inf)


def _vectors(x_ref: Any, number: Array) -> list[Array]:
    """The vectors of a turn, float32."""
    start = pl.multiple_of(number * TURN, TURN)
    # Taken one by one, they would have the address of each computed, of which it has two a cycle.
    vectors = jnp.split(x_ref[:, pl.ds(start, TURN)], _VECTORS, axis=1)
    return [x.astype(jnp.float32) for x in vectors]


def _maxima(vectors: Sequence[Array]) -> Array:
    """The largest values of the blocks of some vectors, `[rows, blocks]`, +inf for NaN."""
    return _reduced(jnp.max, [*map(_infinite, vectors)], LANES // BLOCK)


def _infinite(x: Array) -> Array:
    """+inf in place of NaN, which a maximum may lose."""
    return jnp.where(jnp.isnan(x), jnp.inf, x)


def _reduced(reduce: Callable[..., Array], vectors: Sequence[Array], parts: int) -> Array:
    """Each of the equal parts of vectors' lanes reduced, `[rows, vectors * parts]`."""
    stacks = len(vectors) // _STACK
    reduced = []
    for first in range(stacks):
        columns = jnp.concatenate(vectors[first::stacks], axis=0).T
        for part in jnp.split(columns, parts):
            reduced.append(reduce(part, axis=0, keepdims=True))
    columns = jnp.concatenate(reduced, axis=0).T
    return jnp.concatenate(jnp.split(columns, _STACK), axis=1)
