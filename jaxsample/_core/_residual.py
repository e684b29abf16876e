"""The excess of one distribution over another, for rejection sampling."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _chunks, _draw, _elementary, _lookup, _mass, _ranking, _scan
from jaxsample._core._checks import to_elements
from jaxsample._core._elementary import LOG2_E, product
from jaxsample._core._mass import Mass
from jaxsample._core._prefix import Candidates
from jaxsample._core._ranking import Cut
from jaxsample._core._rows import Rows
from jaxsample._core._source import Source
from jaxsample._core._vmap import rowwise

_UNITS = 2.0**30
"""Units of a probability, whose sum over a row fits in 32 bits."""


class Distribution(NamedTuple):
    """The softmax of the kept logits of each row, without a gradient.

    Attributes:
      rows: the logits.
      cut: the end of the kept tokens.
      log_mass: float32 `[...]`, the logarithm of their mass.
      num_kept: int32 `[...]`, their number; None if `first` is None.
      first: the candidates, or None.
    """

    rows: Rows
    cut: Cut
    log_mass: Array
    num_kept: Array | None = None
    first: Candidates | None = None

    def logprobs(self, tokens: Array) -> Array:
        """Returns the log-probabilities of tokens of each row, float32 `[..., n]`."""
        return self.normalised(self.rows.source.take(tokens), tokens)

    def all_logprobs(self) -> Array:
        """Returns the log-probabilities of all tokens, float32 `[..., vocab]`."""
        return self.normalised(self.rows.source.masked(), self.rows.ids)

    def between(self, start: int, end: int) -> "Distribution":
        """Returns some consecutive rows of the last axis of the rows."""
        axis = self.rows.row_max.ndim - 1
        return jax.tree.map(lambda leaf: lax.slice_in_dim(leaf, start, end, axis=axis), self)

    def at(self, index: Array) -> "Distribution":
        """Returns one row of the last axis of the rows, by its index `[...]`."""

        def taken(leaf: Array, index: Array) -> Array:
            return lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False)

        for _ in range(index.ndim):
            taken = jax.vmap(taken)
        # Materialised once: each pass would repeat the gather.
        return lax.optimization_barrier(jax.tree.map(lambda leaf: taken(leaf, index), self))

    def normalised(self, raw: Array, ids: Array) -> Array:
        """Returns the log-probabilities of raw values `[..., *]` of tokens with these ids."""
        kept = _ranking.is_kept(self.rows.read_to_cut(raw), ids, self.cut)
        return self._of_logits(self.rows.read(raw), kept)

    def first_logprobs(self, first: Cut, num_kept: Array) -> Array:
        """Returns the log-probabilities of the first tokens of the ranking, float32 `[..., n]`."""
        kept = _lookup.positions(first.token) < num_kept[..., None]
        return self._of_logits(self.rows.read_from_cut(first.logit), kept)

    def _of_logits(self, x: Array, kept: Array) -> Array:
        logprobs = x - to_elements(self.rows.row_max, x) - to_elements(self.log_mass, x)
        logprobs = jnp.where(kept & (x > -jnp.inf), logprobs, -jnp.inf)
        return jnp.where(to_elements(self.rows.bad, x), jnp.nan, logprobs)


def of_kept(
    rows: Rows,
    cut: Cut,
    mass: Mass,
    num_kept: Array | None = None,
    first: Candidates | None = None,
) -> Distribution:
    """Returns the softmax of the logits up to a cut, from their mass."""
    # Materialised once: XLA would recompute it for each element.
    return Distribution(rows, cut, lax.optimization_barrier(_mass.log(mass)), num_kept, first)


def of_all(x: Source) -> Distribution:
    """Returns the softmax of the logits of a source."""
    rows, scale, (sums, *_) = _scan.scan_and_weigh(x)
    return of_kept(rows, _ranking.everything(rows), _chunks.added_up(sums, scale))


def exp(x: Array) -> Array:
    """Returns `exp(x)` of float32, equal in arrays of every size; at most 2**127."""
    return _elementary.exp2(product(x, LOG2_E))


def _excess(factor: Array, of_p: Array, of_q: Array) -> Array:
    """Returns `factor * p - q` of log-probabilities."""
    p, q = exp(of_p), exp(of_q)
    return product(to_elements(factor, p), p) - q


def log_excess(factor: Array, p: Distribution, q: Distribution) -> Array:
    """Returns `log(max(factor * p - q, 0))` of all tokens, float32 `[..., vocab]`."""
    return _elementary.log(jnp.maximum(_excess(factor, p.all_logprobs(), q.all_logprobs()), 0))


@rowwise
def total_excess(factor: Array, p: Distribution, q: Distribution) -> Array:
    """Returns the sums of `max(factor * p - q, 0)` of the rows after the first, float32.

    They are sums of integers, independent of the order. If the candidates `p.first` hold all kept
    tokens of p in every row, no other tokens are read.

    Args:
      factor: float32 `[..., n]`.
      p: of `[..., n + 1]` rows or more.
      q: of `[..., n + 1]` rows.

    Returns:
      `[..., n]`.
    """
    number = factor.shape[-1]

    def units(of_p: Array, of_q: Array) -> Array:
        over = _excess(factor, of_p, of_q)
        return jnp.where(over > 0, over * _UNITS + 0.5, 0).astype(jnp.int32)

    def added_up(units: Array) -> Array:
        return jnp.sum(units, axis=-1, dtype=jnp.int32).astype(jnp.float32) / _UNITS

    def by_chunk(p: Distribution, q: Distribution) -> Array:
        def element(raw: Array, ids: Array, _: Array, of_p: Array) -> Array:
            return units(p.normalised(of_p, ids), q.normalised(raw, ids))

        per_token = (p.rows.source.masked(),)
        return added_up(_chunks.chunk_sums(q.rows.source, element, per_token=per_token))

    def at_once(p: Distribution, q: Distribution) -> Array:  # on TPU, chunks need another layout
        return added_up(units(p.all_logprobs(), q.all_logprobs()))

    def of_whole_rows() -> Array:
        rest = p.between(1, number + 1), q.between(1, number + 1)
        if q.rows.source.shards is not None:
            return by_chunk(*rest)
        return lax.platform_dependent(*rest, tpu=at_once, default=by_chunk)

    if p.first is None or p.num_kept is None:
        return of_whole_rows()
    tokens = p.first.tokens.token[..., : number + 1, :]
    of_p = p.first_logprobs(p.first.tokens, p.num_kept)[..., 1 : number + 1, :]
    of_few = added_up(units(of_p, q.logprobs(tokens)[..., 1:, :]))
    # Greedy rows keep the first token, which is always among the candidates.
    known = (p.first.complete & (p.num_kept <= tokens.shape[-1])) | (p.num_kept <= 1)
    within = jnp.all(known)
    return lax.cond(within, lambda: of_few, of_whole_rows)


@rowwise
def drawn(noise: Array, x: Source, otherwise: Array) -> Array:
    """Returns a token of each row of a source, or of other logits for rows without any.

    Returns:
      int32 `[...]`, -1 on a bad row.
    """

    def of(logits: Array) -> Array:
        # Materialised once: XLA would recompute them in each pass.
        source = dataclasses.replace(x, logits=lax.optimization_barrier(logits))
        rows, scale, (sums, *_) = _scan.scan_and_weigh(source)
        token = _draw.draw(noise, rows, scale, sums, _ranking.everything(rows))
        return jnp.where(rows.bad, -1, token)

    token = of(x.logits)
    empty = token < 0
    return lax.cond(jnp.any(empty), lambda: jnp.where(empty, of(otherwise), token), lambda: token)
