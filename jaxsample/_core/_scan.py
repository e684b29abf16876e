"""The first scan of the rows: maxima, weights or candidates, in one read.

The definitions are in XLA. The kernels of `_tpu` and `_gpu` compute the same results.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _chunks, _prefix, _ranking, _rows, _search, _tiles
from jaxsample._core._kernels import choose
from jaxsample._core._mass import Scale
from jaxsample._core._prefix import Candidates
from jaxsample._core._ranking import Cut
from jaxsample._core._rows import Rows
from jaxsample._core._sortable import from_sortable, to_sortable
from jaxsample._core._source import CHUNK, Source
from jaxsample._tpu import merging
from jaxsample._tpu import rows as kernels
from jaxsample._tpu.rows import Bins


def scan(source: Source) -> Rows:
    """Reads logits without a mask once and returns the maxima of the blocks."""

    def kernel(source: Source, *, interpret: bool) -> tuple[Array]:
        maxima = kernels.block_maxima(_flat(source.logits), interpret=interpret)
        return (_sortable_of(maxima, source),)

    def otherwise(source: Source) -> tuple[Array]:
        return (_chunks.sortable_maxima(source),)

    source = lax.stop_gradient(source)
    (sortable,) = choose(otherwise, source, tpu=kernel)
    return _rows.scanned(source, sortable)


def scan_and_weigh(
    source: Source, beta: Array | None = None, *, counted: bool = False
) -> tuple[Rows, Scale, list[Array]]:
    """Reads the logits once or twice and returns maxima and weights by chunk, and counts.

    The blocks are whole chunks.
    """

    def on_tpu(source: Source, beta: Array | None, *, interpret: bool) -> tuple[Array, ...]:
        logits, mask = source.logits, source.mask
        maxima, sums, *counts = kernels.chunk_maxima_and_sums(
            _flat(logits),
            None if beta is None else _tiles.flat(beta, beta.ndim),
            None if mask is None else _flat(mask),
            counted=counted,
            interpret=interpret,
        )
        of_rows = [_tiles.unflat(x, logits.shape[:-1]) for x in (sums, *counts)]
        sortable = _sortable_of(maxima, source)
        return sortable, jnp.max(sortable, axis=-1), *of_rows

    def on_gpu(source: Source, beta: Array | None, *, interpret: bool) -> tuple[Array, ...]:
        from jaxsample._gpu import rows as kernels  # slow to import

        lead = source.logits.shape[:-1]
        maxima, largest, *kept = kernels.chunk_maxima_and_sums(
            source.logits.reshape(-1, source.vocab),
            None if beta is None else beta.reshape(-1),
            counted=counted,
            interpret=interpret,
        )
        found = [to_sortable(x.astype(source.logits.dtype)) for x in (maxima, largest)]
        return tuple(x.reshape(*lead, *x.shape[1:]) for x in (*found, *kept))

    def otherwise(source: Source, beta: Array | None) -> tuple[Array, ...]:
        sortable = _chunks.sortable_maxima(source, CHUNK)
        rows = _rows.scanned(source, sortable, beta)
        if source.mask is not None:
            rows, sortable = _rows.read_again_unless_fused(rows, sortable, tested=False)
        scale = _chunks.probability(rows)
        largest = jnp.max(sortable, axis=-1)
        if counted:
            return sortable, largest, *_search.weigh_to(rows, scale, None)
        return sortable, largest, _chunks.weigh(rows, scale)

    source = lax.stop_gradient(source)
    sortable, largest, *kept = choose(otherwise, source, beta, tpu=on_tpu, cuda=on_gpu)
    rows = _rows.scanned(source, sortable, beta, largest)
    return rows, _chunks.probability(rows), kept


def scan_and_rank(source: Source, beta: Array | None = None) -> tuple[Rows, Candidates]:
    """Reads the logits once and returns the maxima of the blocks and the candidates."""

    def kernel(source: Source, beta: Array | None, *, interpret: bool) -> tuple[Array, ...]:
        logits, mask = source.logits, source.mask
        mask = None if mask is None else _flat(mask)
        maxima, bins = kernels.block_maxima_and_bins(_flat(logits), mask, interpret=interpret)
        sortable = _sortable_of(maxima, source)
        rows = _rows.scanned(source, sortable, beta)
        bins = Bins(*(_tiles.unflat(x, logits.shape[:-1]) for x in bins))
        return sortable, *jax.tree.leaves(_first(rows, bins, interpret))

    def otherwise(source: Source, beta: Array | None) -> tuple[Array, ...]:
        sortable = _chunks.sortable_maxima(source)
        top = _prefix.candidates(_rows.scanned(source, sortable, beta))
        return sortable, *jax.tree.leaves(top)

    source = lax.stop_gradient(source)
    sortable, logit, token, complete = choose(otherwise, source, beta, tpu=kernel)
    return _rows.scanned(source, sortable, beta), Candidates(Cut(logit, token), complete)


def _first(rows: Rows, bins: Bins, interpret: bool) -> Candidates:
    """Returns the first tokens of the bins.

    They are the first tokens of the row if all tokens dropped from the bins rank after them. Masked
    tokens are in any order.
    """

    def value(raw: Array) -> Array:
        return _ranking.unsigned_zero(rows.read(raw.astype(rows.dtype)))

    number = min(_prefix.CANDIDATES, rows.vocab)
    logits, left, last = map(value, (bins.logits, bins.left, bins.last))
    sortable, token = merging.first(
        _flat(to_sortable(logits)), _flat(bins.ids), _prefix.CANDIDATES, interpret=interpret
    )
    logit, token = (
        _tiles.unflat(x, rows.row_max.shape)[..., :number] for x in (from_sortable(sortable), token)
    )
    least = logit[..., -1:]
    after = (left < least) | (left == -jnp.inf)
    if rows.cut_beta is None:
        # Of equal logits, a bin holds those of lower ids. Scaling makes more logits equal.
        after |= (left == least) & (last == least) & (bins.last_id >= token[..., -1:])
    return Candidates(Cut(logit, token), jnp.all(after, axis=-1))


def _flat(x: Array) -> Array:
    return _tiles.flat(x, x.ndim - 1)


def _sortable_of(maxima: Array, source: Source) -> Array:
    sortable: Any = to_sortable(maxima.astype(source.logits.dtype))
    return _tiles.unflat(sortable, source.logits.shape[:-1])
