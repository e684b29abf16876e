"""The first look at the rows: what a sampler asks of them all, in one read.

Defined here in XLA's way. On a TPU, `_kernels` have another way to the same.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxsample import _chunks, _kept, _mass, _ranking
from jaxsample._chunks import Rows
from jaxsample._kernels import merging
from jaxsample._kernels import rows as kernels
from jaxsample._kernels.choice import Implementation, choose
from jaxsample._kernels.rows import Bins
from jaxsample._mass import Scale
from jaxsample._ranking import Cut
from jaxsample._shards import Shards


def look_over(
    logits: Array, rate: Array | None, implementation: Implementation, shards: Shards | None
) -> Rows:
    """`_chunks.look_over`."""

    def kernel(logits: Array, interpret: bool) -> tuple[Array]:
        return (_keys(kernels.block_maxima(_flat(logits), interpret=interpret), logits),)

    def otherwise(logits: Array) -> tuple[Array]:
        return (_chunks.block_keys(logits, shards),)

    (keys,) = choose(kernel, otherwise, implementation, shards, logits)
    return _chunks.looked_over(logits, keys, rate, rate, shards)


def look_over_and_weigh(
    logits: Array, implementation: Implementation, shards: Shards | None
) -> tuple[Rows, Scale, Array]:
    """Also `_chunks.weigh` of all tokens, by probability. The blocks are whole chunks."""

    def kernel(logits: Array, interpret: bool) -> tuple[Array, Array]:
        maxima, sums = kernels.chunk_maxima_and_sums(_flat(logits), interpret=interpret)
        return _keys(maxima, logits), sums.reshape(*logits.shape[:-1], -1)

    def otherwise(logits: Array) -> tuple[Array, Array]:
        keys = _chunks.largest(logits, lambda raw, *_: raw, shards=shards)
        return keys, _chunks.weigh(*scaled(keys, logits))

    def scaled(keys: Array, logits: Array) -> tuple[Rows, Scale]:
        rows = _chunks.looked_over(logits, keys, None, None, shards)
        return rows, Scale(_mass.shifts(rows.block_max, rows.row_max[..., None]), rows.row_max)

    keys, sums = choose(kernel, otherwise, implementation, shards, logits)
    return *scaled(keys, logits), sums


def look_over_and_rank(
    logits: Array, rate: Array | None, implementation: Implementation, shards: Shards | None
) -> tuple[Rows, Cut]:
    """Also the candidates, `_kept.candidates`."""

    def rows_of(keys: Array, logits: Array, rate: tuple[Array, ...]) -> Rows:
        scaled = rate[0] if rate else None
        return _chunks.looked_over(logits, keys, scaled, scaled, shards)

    def kernel(logits: Array, *rate: Array, interpret: bool) -> tuple[Array, ...]:
        maxima, bins = kernels.block_maxima_and_bins(_flat(logits), interpret=interpret)
        keys = _keys(maxima, logits)
        rows = rows_of(keys, logits, rate)
        bins = Bins(*(x.reshape(*logits.shape[:-1], -1) for x in bins))
        top, settled = _first(rows, bins, interpret)
        top = lax.cond(jnp.all(settled | rows.bad), lambda: top, lambda: _kept.candidates(rows))
        return keys, *top

    def otherwise(logits: Array, *rate: Array) -> tuple[Array, ...]:
        keys = _chunks.block_keys(logits, shards)
        return keys, *_kept.candidates(rows_of(keys, logits, rate))

    given: tuple[Array, ...] = () if rate is None else (rate,)
    keys, *top = choose(kernel, otherwise, implementation, shards, logits, *given)
    return rows_of(keys, logits, given), Cut(*top)


def _first(rows: Rows, bins: Bins, interpret: bool) -> tuple[Cut, Array]:
    """The first tokens of the bins, and bool `[...]`: whether they are those of the row.

    What a bin has left out comes behind what it holds; it must come behind all that are found, too.
    Masked tokens, which nobody sees, may be any.
    """

    def value(raw: Array) -> Array:
        return _ranking.unsigned_zero(rows.read(raw.astype(rows.logits.dtype)))

    number = min(_kept.CANDIDATES, rows.vocab)
    logits, left, last = map(value, (bins.logits, bins.left, bins.last))
    keys, token = merging.first(
        _flat(_chunks.to_key(logits)), _flat(bins.ids), _kept.CANDIDATES, interpret=interpret
    )
    logit, token = (
        x.reshape(*rows.row_max.shape, -1)[..., :number] for x in (_chunks.from_key(keys), token)
    )
    least = logit[..., -1:]
    behind = (left < least) | (left == -jnp.inf)
    if rows.cut_rate is None:
        # Of equal logits, a bin holds those of lower ids. Scaling makes more of them equal.
        behind |= (left == least) & (last == least) & (bins.last_id >= token[..., -1:])
    return Cut(logit, token), jnp.all(behind, axis=-1)


def _flat(logits: Array) -> Array:
    return logits.reshape(-1, logits.shape[-1])


def _keys(maxima: Array, logits: Array) -> Array:
    keys: Any = _chunks.to_key(maxima.astype(logits.dtype))
    return keys.reshape(*logits.shape[:-1], -1)
