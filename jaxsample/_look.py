"""The first look at the rows: what a sampler asks of them all, in one read.

Defined here in XLA's way. On a TPU, `_kernels` have another way to the same.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxsample import _chunks, _kept, _ranking, _selection
from jaxsample._chunks import Rows
from jaxsample._kernels import rows as kernels
from jaxsample._kernels.choice import Implementation, choose
from jaxsample._kernels.rows import Bins
from jaxsample._mass import Scale
from jaxsample._ranking import Cut, Top
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
    """Also `_chunks.weigh` of all tokens, by probability."""

    def kernel(logits: Array, interpret: bool) -> tuple[Array, Array]:
        maxima, sums = kernels.block_maxima_and_sums(_flat(logits), interpret=interpret)
        return _keys(maxima, logits), sums.reshape(*logits.shape[:-1], -1)

    def otherwise(logits: Array) -> tuple[Array, Array]:
        keys = _chunks.block_keys(logits, shards)
        rows = _chunks.looked_over(logits, keys, None, None, shards)
        return keys, _chunks.weigh(rows, _chunks.probability(rows))

    keys, sums = choose(kernel, otherwise, implementation, shards, logits)
    rows = _chunks.looked_over(logits, keys, None, None, shards)
    return rows, _chunks.probability(rows), sums


def look_over_and_rank(
    logits: Array, rate: Array | None, implementation: Implementation, shards: Shards | None
) -> tuple[Rows, Top]:
    """Also the candidates, `_kept.candidates`."""

    def rows_of(keys: Array, logits: Array, rate: tuple[Array, ...]) -> Rows:
        scaled = rate[0] if rate else None
        return _chunks.looked_over(logits, keys, scaled, scaled, shards)

    def kernel(logits: Array, *rate: Array, interpret: bool) -> tuple[Array, ...]:
        maxima, bins = kernels.block_maxima_and_bins(_flat(logits), interpret=interpret)
        keys = _keys(maxima, logits)
        rows = rows_of(keys, logits, rate)
        bins = Bins(*(x.reshape(*logits.shape[:-1], -1) for x in bins))
        (top, raw), settled = _first(rows, bins)
        top, raw = lax.cond(
            jnp.all(settled | rows.bad), lambda: (top, raw), lambda: _kept.candidates(rows)
        )
        return keys, *top, raw

    def otherwise(logits: Array, *rate: Array) -> tuple[Array, ...]:
        keys = _chunks.block_keys(logits, shards)
        top, raw = _kept.candidates(rows_of(keys, logits, rate))
        return keys, *top, raw

    given: tuple[Array, ...] = () if rate is None else (rate,)
    found = choose(kernel, otherwise, implementation, shards, logits, *given)
    keys, logit, token, raw = found
    return rows_of(keys, logits, given), (Cut(logit, token), raw)


def _first(rows: Rows, bins: Bins) -> tuple[Top, Array]:
    """The first tokens of the bins, and bool `[...]`: whether they are those of the row.

    What a bin has left out comes behind what it holds; it must come behind all that are found, too.
    Masked tokens, which nobody sees, may be any.
    """

    def value(raw: Array) -> Array:
        return _ranking.unsigned_zero(rows.read(raw))

    number = min(_kept.CANDIDATES, rows.vocab)
    raw = bins.logits.astype(rows.logits.dtype)
    logit, token, raw = _selection.top_k_by_id(raw, bins.ids, number, value)
    least = logit[..., -1:]
    left, last = (value(x.astype(rows.logits.dtype)) for x in (bins.left, bins.last))
    behind = (left < least) | (left == -jnp.inf)
    if rows.cut_rate is None:
        # Of equal logits, a bin holds those of lower ids. Scaling makes more of them equal.
        behind |= (left == least) & (last == least) & (bins.last_id >= token[..., -1:])
    return (Cut(logit, token), raw), jnp.all(behind, axis=-1)


def _flat(logits: Array) -> Array:
    return logits.reshape(-1, logits.shape[-1])


def _keys(maxima: Array, logits: Array) -> Array:
    keys: Any = _chunks.to_key(maxima.astype(logits.dtype))
    return keys.reshape(*logits.shape[:-1], -1)
