"""Reductions of rows by chunks of consecutive token ids.

All reductions along the vocabulary are here. A pass reads the logits in their own dtype and
converts each value to a float32 logit at the temperature (`Rows.read`). It is fused: no
intermediate of the size of the logits is materialised.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsample._core import _bits, _lookup, _mass
from jaxsample._core._mass import Mass, Scale
from jaxsample._core._rows import Rows
from jaxsample._core._sortable import to_sortable
from jaxsample._core._source import BLOCK, CHUNK, Source

_SLICES = 8
"""Slices of a chunk that are combined elementwise before a short reduction."""


def sortable_maxima(source: Source, size: int = BLOCK) -> Array:
    """Returns the largest logit of each block, `[..., blocks]`, as sortable integers."""
    return chunk_maxima(source, lambda raw, *_: raw, size)


def chunk_sums(
    source: Source,
    element: Callable[..., Array],
    *per_chunk: Array,
    per_token: tuple[Array, ...] = (),
    size: int = CHUNK,
    whole: bool = True,
) -> Array:
    """Adds the integers `element(raw, ids, places, *per_chunk)` up over chunks of consecutive ids.

    Args:
      source: the logits.
      element: takes raw values, their ids and, as a NumPy constant, their places in the chunk.
      *per_chunk: arrays `[..., chunks]`, passed to `element` in a shape that broadcasts.
      per_token: arrays in the shape of the logits, passed to `element` after them.
      size: the size of a chunk; the last one may be shorter.
      whole: with a sharded vocabulary, whether to return the sums of all devices or the local ones.

    Returns:
      `[..., ceil(vocab / size)]`.
    """
    return _chunk_results(source, element, _sum, per_chunk, size, whole, per_token)


def chunk_maxima(source: Source, element: Callable[..., Array], size: int = CHUNK) -> Array:
    """Returns the largest `element(raw, ids, places)` of each chunk, `[..., chunks]`, sortable.

    A maximum of 0 may be -0, and a NaN may become +inf.
    """
    return _chunk_results(source, element, _sortable_maximum, (), size)


def _chunk_results(
    source: Source,
    element: Callable[..., Array],
    reduce: Callable[[Array], Array],
    per_chunk: tuple[Array, ...],
    size: int,
    whole: bool = True,
    per_token: tuple[Array, ...] = (),
) -> Array:
    values, mask, shards = source.logits, source.mask, source.shards
    if shards is not None:
        start = shards.start(values.shape[-1])

        def own_element(x: Array, ids: Array, *rest: Any) -> Array:
            return element(x, start + ids, *rest)

        given = tuple(map(shards.own, per_chunk))
        alone = Source(values, mask)
        own = _chunk_results(alone, own_element, reduce, given, size, per_token=per_token)
        return shards.whole(own) if whole else own

    lead, vocab = values.shape[:-1], values.shape[-1]
    number = vocab // size

    def part(places: range, chunks: range) -> Array:
        def taken(values: Array) -> Array:
            if len(places) == size:
                return values[..., : number * size].reshape(*lead, number, size)
            return values[..., None, number * size :]

        x = taken(values)
        place = np.array(places, np.int32).reshape((1,) * (x.ndim - 1) + (-1,))
        ids = size * (chunks.start + lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 2)) + place
        params = (
            *(a[..., chunks.start : chunks.stop, None] for a in per_chunk),
            *map(taken, per_token),
        )
        if mask is not None:
            words = _bits.words_by_chunk(mask, size)[..., chunks.start : chunks.stop, :]
            x = _bits.masked(x, _bits.unpacked(words, len(places)))
        return reduce(element(x, ids, place, *params))

    results = []
    if number:
        results.append(part(range(size), range(number)))
    if short := vocab - number * size:
        results.append(part(range(short), range(number, number + 1)))
    # XLA would merge this reduction with one over the chunks, and then split the result so that an
    # eighth of the row is materialised.
    return lax.optimization_barrier(jnp.concatenate(results, axis=-1))


def _sum(x: Array) -> Array:
    def tpu(x: Array) -> Array:
        return jnp.sum(x, axis=-1, dtype=x.dtype)

    return lax.platform_dependent(x, tpu=tpu, default=functools.partial(_in_slices, lax.add))


def _sortable_maximum(x: Array) -> Array:
    """Returns the maximum of the last axis as a sortable integer."""

    def tpu(x: Array) -> Array:  # here XLA would materialise the sortable integers
        if jnp.issubdtype(x.dtype, jnp.floating):
            # A maximum may drop a NaN; +inf also makes the row a bad row.
            x = jnp.where(jnp.isnan(x), jnp.inf, x)
        return to_sortable(jnp.max(x, axis=-1))

    def default(x: Array) -> Array:
        return _in_slices(lax.max, to_sortable(x))

    return lax.platform_dependent(x, tpu=tpu, default=default)


def _in_slices(combine: Callable[[Array, Array], Array], x: Array) -> Array:
    """Reduces the last axis, first elementwise over slices of it.

    On a CPU, XLA compiles elementwise operations and a short reduction to one vectorised loop. It
    splits a long reduction of integers into two passes with a copy between them.
    """
    if x.shape[-1] % _SLICES == 0:
        x = functools.reduce(combine, jnp.split(x, _SLICES, axis=-1))
    identity = 0 if combine is lax.add else jnp.iinfo(x.dtype).min
    return lax.reduce(x, x.dtype.type(identity), combine, (x.ndim - 1,))


def weigh(
    rows: Rows,
    scale: Scale,
    keep: Callable[..., Array] | None = None,
    *per_chunk: Array,
    whole: bool = True,
) -> Array:
    """Returns the sums of the weights of each chunk's tokens, int32 `[..., chunks]`.

    Args:
      rows: the logits.
      scale: the weights; masked tokens weigh 0.
      keep: `keep(x, places, *per_chunk)`, returns which tokens to include, by their logits before
        the cut and their places in the chunk; None: all.
      *per_chunk: arrays `[..., chunks]`, passed to `keep` in a shape that broadcasts.
      whole: as in `chunk_sums`.
    """
    table = () if scale.table is None else (scale.table,)

    def element(raw: Array, ids: Array, places: np.ndarray, shift: Array, *rest: Array) -> Array:
        x = rows.read(raw)
        kept = (
            None if keep is None else keep(rows.read_to_cut(raw), places, *rest[: len(per_chunk)])
        )
        if scale.row_max is None and kept is not None:
            # With two tests of a bfloat16 logit, XLA would materialise it as float32.
            return scale.weights(jnp.where(kept, x, -jnp.inf), places, shift)
        weights = scale.weights(x, places, shift, *rest[len(per_chunk) :])
        return weights if kept is None else jnp.where(kept, weights, 0)

    return chunk_sums(rows.source, element, scale.shifts, *per_chunk, per_token=table, whole=whole)


def tabulated(rows: Rows, scale: Scale) -> Scale:
    """Returns the scale with the weights of all tokens materialised."""
    raw, ids = rows.source.masked(), rows.ids
    shift = jnp.repeat(scale.shifts, CHUNK, axis=-1)[..., : raw.shape[-1]]
    table = scale.weights(rows.read(raw), ids % CHUNK, shift)
    return scale._replace(table=lax.optimization_barrier(table))


def mass(
    rows: Rows, scale: Scale, keep: Callable[..., Array] | None = None, *per_chunk: Array
) -> Mass:
    """Returns the mass of each row's tokens, `[...]`; the arguments are those of `weigh`."""
    shards = rows.source.shards
    if shards is None:
        return added_up(weigh(rows, scale, keep, *per_chunk), scale)
    sums = weigh(rows, scale, keep, *per_chunk, whole=False)
    own = _mass.place(sums, shards.own(scale.shifts))
    return _mass.together(_mass.total(own), shards.sum)


def starts(rows: Rows) -> Array:
    """Returns the first id of each chunk, int32 `[..., chunks]`."""
    chunks = -(-rows.vocab // CHUNK)
    return CHUNK * _lookup.positions(jnp.zeros((*rows.row_max.shape, chunks)))


def added_up(sums: Array, scale: Scale) -> Mass:
    """Returns the mass `[...]` from the sums of all chunks that `weigh` returned."""
    return _mass.total(_mass.place(sums, scale.shifts))


def chunk_max(rows: Rows) -> Array:
    """Returns the largest logit of each chunk, `[..., chunks]`."""
    *lead, blocks = rows.block_max.shape
    per_chunk, chunks = CHUNK // block_size(rows, blocks), -(-rows.vocab // CHUNK)
    window = (*(1 for _ in lead), per_chunk)
    padding = [(0, 0)] * len(lead) + [(0, chunks * per_chunk - blocks)]
    least = np.float32(-np.inf)
    # A reshape to `[..., chunks, per_chunk]` would be a copy on a TPU, and another kernel on a GPU.
    return lax.reduce_window(rows.block_max, least, lax.max, window, window, padding)


def block_size(rows: Rows, blocks: int) -> int:
    """Returns the number of tokens of a block, by the number of blocks of a row."""
    return BLOCK if blocks == -(-rows.vocab // BLOCK) else CHUNK


def probability(rows: Rows) -> Scale:
    """Returns the scale whose weights are probabilities."""
    return Scale(_mass.shifts(chunk_max(rows), rows.row_max[..., None]), rows.row_max)


def tally(rows: Rows) -> Scale:
    """Returns the scale on which every token weighs 1, and masked ones 0: masses are counts."""
    chunks = -(-rows.vocab // CHUNK)
    return Scale(jnp.full((*rows.row_max.shape, chunks), _mass.NO_SHIFT, jnp.int32), None)
