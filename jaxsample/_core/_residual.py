"""Probabilities of two models side by side, for rejection sampling."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _bits, _chunks, _draw, _elementary, _mass, _ranking, _scan, _shards
from jaxsample._core._checks import to_elements
from jaxsample._core._chunks import Rows, Source
from jaxsample._core._elementary import LOG2_E, product
from jaxsample._core._mass import Mass
from jaxsample._core._ranking import Cut

_UNITS = 2.0**30
"""Of a probability: a chunk's sum fits in 32 bits."""


class Distribution(NamedTuple):
    """The softmax of the kept logits of each row, without a gradient.

    Attributes:
      rows: the logits.
      cut: the end of the kept tokens.
      mass: their mass.
    """

    rows: Rows
    cut: Cut
    mass: Mass

    def logprobs(self, tokens: Array) -> Array:
        """Returns the log-probability of a token of each row, float32 `[...]`."""
        source, ids = self.rows.source, tokens[..., None]
        raw = _shards.take(source.logits, ids, source.shards)
        if source.mask is not None:
            words = _shards.take(source.mask, ids // _bits.WORD, source.shards)
            raw = _bits.masked(raw, _bits.is_set(words, ids % _bits.WORD))
        return self._normalised(raw, ids)[..., 0]

    def all_logprobs(self) -> Array:
        """Returns the log-probabilities of all tokens, float32 `[..., vocab]`."""
        return self._normalised(self.rows.source.masked(), self.rows.ids)

    def first(self, number: int) -> "Distribution":
        """Returns the first rows of the last axis of the rows."""
        axis = self.rows.row_max.ndim - 1
        return jax.tree.map(lambda leaf: lax.slice_in_dim(leaf, 0, number, axis=axis), self)

    def at(self, index: Array) -> "Distribution":
        """Returns one row of the last axis of the rows, by its index `[...]`."""

        def taken(leaf: Array, index: Array) -> Array:
            return lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False)

        for _ in range(index.ndim):
            taken = jax.vmap(taken)
        # Materialised: each pass would take it again.
        return lax.optimization_barrier(jax.tree.map(lambda leaf: taken(leaf, index), self))

    def _normalised(self, raw: Array, ids: Array) -> Array:
        x = self.rows.read(raw)
        kept = _ranking.is_kept(self.rows.read_to_cut(raw), ids, self.cut)
        logprobs = x - self.rows.row_max[..., None] - _mass.log(self.mass)[..., None]
        logprobs = jnp.where(kept & (x > -jnp.inf), logprobs, -jnp.inf)
        return jnp.where(self.rows.bad[..., None], jnp.nan, logprobs)


def distribution(x: Source) -> Distribution:
    """Returns the softmax of the logits of a source."""
    rows, scale, (sums, *_) = _scan.scan_and_weigh(x)
    return Distribution(rows, _ranking.everything(rows), _chunks.added_up(sums, scale))


def exp(x: Array) -> Array:
    """Returns `exp(x)` of float32, the same in arrays of every size; at most 2**127."""
    return _elementary.exp2(product(x, LOG2_E))


def _excess(factor: Array, p: Distribution, q: Distribution) -> Array:
    of_p, of_q = (exp(of.all_logprobs()) for of in (p, q))
    return product(to_elements(factor, of_p), of_p) - of_q


def log_excess(factor: Array, p: Distribution, q: Distribution) -> Array:
    """Returns `log(max(factor * p - q, 0))` of all tokens, float32 `[..., vocab]`."""
    # Materialised: each pass would compute it again.
    over = jnp.maximum(_excess(factor, p, q), 0)
    return lax.optimization_barrier(_elementary.log(over))


def total_excess(factor: Array, p: Distribution, q: Distribution) -> Array:
    """Returns the sum of `max(factor * p - q, 0)` of each row, float32 `[...]`.

    As a sum of integers, which has no order.
    """
    over = _excess(factor, p, q)
    units = jnp.where(over > 0, over * _UNITS + 0.5, 0).astype(jnp.int32)
    # Materialised: the slices of a chunk would each compute it again.
    units = lax.optimization_barrier(units)
    source = dataclasses.replace(q.rows.source, logits=units)
    sums = lax.bitcast_convert_type(_chunks.chunk_sums(source, lambda raw, *_: raw), jnp.uint32)
    return _mass.to_float(_mass.total(Mass(jnp.zeros_like(sums), sums))) / _UNITS


def drawn(noise: Array, x: Source, otherwise: Array) -> Array:
    """Returns a token of each row of a source, or of other logits where it holds none.

    Returns:
      int32 `[...]`, -1 on a bad row.
    """
    empty = _scan.scan(x).bad[..., None]
    logits = lax.optimization_barrier(jnp.where(empty, otherwise, x.logits))
    rows, scale, (sums, *_) = _scan.scan_and_weigh(dataclasses.replace(x, logits=logits))
    tokens = _draw.draw(noise, rows, scale, sums, _ranking.everything(rows))
    return jnp.where(rows.bad, -1, tokens)
