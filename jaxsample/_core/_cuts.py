"""Cuts of typical-p, top-H and tail-free, which depend on the whole distribution.

Each searches whole rows, unless the rule is neutral in every row of the batch.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsample._core import _chunks, _lookup, _mass, _moments, _ranking
from jaxsample._core._bisection import Order, by_logit, search
from jaxsample._core._checks import to_elements
from jaxsample._core._elementary import product
from jaxsample._core._groups import update_rows
from jaxsample._core._mass import Mass, Scale
from jaxsample._core._ranking import Cut
from jaxsample._core._rows import Rows
from jaxsample._core._vmap import rowwise

_TAIL_FREE_SHIFT = 7
"""Weights of 30 bits, whose second differences add up within 32 bits."""


@rowwise
def typical(rows: Rows, scale: Scale, sums: Array, p: Array) -> tuple[Array, Cut]:
    """Returns the logit whose information content is the entropy, and the cut at mass p."""
    entropy, log_sum = _moments.entropy(rows, scale, sums)
    centre = rows.row_max + (log_sum - entropy)
    needed = ~rows.bad & (p < 1)

    def searched(
        needed: Array, rows: Rows, scale: Scale, centre: Array, p: Array, *, grouped: bool
    ) -> Cut:
        order = Order(
            value=lambda x: typicality(x, centre),
            least_logit=lambda v: centre + v,
            read=lambda v: v,
            top=jnp.zeros_like(centre),
            spread=jnp.full_like(centre, 8),
        )
        weights = _chunks.tabulated(rows, scale) if grouped else scale
        everything = _ranking.everything(rows)
        return search(
            rows, weights, everything, lambda whole: _mass.fraction(whole, p), needed, order
        )

    shared = rows.source.shards is not None
    everything = _ranking.everything(rows)
    return centre, update_rows(searched, needed, everything, shared, rows, scale, centre, p)


def typicality(x: Array, centre: Array) -> Array:
    """Returns the values by which typical-p ranks tokens: minus the distance to a logit."""
    return -jnp.abs(x - to_elements(centre, x))


@rowwise
def top_h(rows: Rows, log_sum: Array, h: Array) -> Cut:
    """Returns the cut of the longest prefix with at most a share h of the entropy, or of rank 0."""
    shifts = _mass.entropy_shifts(_chunks.chunk_max(rows), rows.row_max, log_sum)
    scale = Scale(shifts, rows.row_max, log_sum)
    needed = ~rows.bad & (h < 1)

    def searched(needed: Array, rows: Rows, scale: Scale, h: Array, *, grouped: bool) -> Cut:
        def target(whole: Mass) -> Mass:
            one = Mass(jnp.zeros_like(whole.high), jnp.ones_like(whole.low))
            return _mass.add(_mass.fraction(whole, h), one)

        weights = _chunks.tabulated(rows, scale) if grouped else scale
        everything, best = _ranking.everything(rows), _ranking.best(rows)
        beyond = search(rows, weights, everything, target, needed, by_logit(rows), exact=True)
        within = _ranking.later(_ranking.before(beyond), best)
        return _ranking.select(beyond.logit > -jnp.inf, within, best)

    shared = rows.source.shards is not None
    return update_rows(searched, needed, _ranking.everything(rows), shared, rows, scale, h)


@rowwise
def tail_free(rows: Rows, z: Array) -> Array:
    """Returns the length of the prefix before the curvature exceeds a share z."""
    needed = ~rows.bad & (z < 1)

    def bends() -> Array:
        places = np.zeros((1,) * (rows.row_max.ndim + 1), np.int32)  # rounds equal weights alike
        x = rows.read(rows.source.whole())
        number = jnp.sum(x > -jnp.inf, axis=-1, dtype=jnp.int32)
        row_max, shift = rows.row_max[..., None], jnp.int32(_TAIL_FREE_SHIFT)
        # The second differences of a flat row are close to the last bits of the weights.
        weights = -jnp.sort(-_mass.weights(x, places, row_max, shift, product))
        slopes = weights[..., :-1] - weights[..., 1:]
        bends = jnp.abs(slopes[..., :-1] - slopes[..., 1:]).astype(jnp.uint32)
        # Differences with masked tokens, which come last, are excluded.
        bends = jnp.where(_lookup.positions(bends) < number[..., None] - 2, bends, 0)
        running = jnp.cumsum(bends, axis=-1, dtype=jnp.uint32)
        share = jnp.sum(bends, axis=-1, dtype=jnp.uint32).astype(jnp.float32) * z
        length = _lookup.first_true(running.astype(jnp.float32) > share[..., None])
        # Without such a place, as with two tokens, all are kept.
        return jnp.where(length < bends.shape[-1], jnp.maximum(length, 1), rows.vocab)

    neutral = jnp.full_like(rows.row_max, rows.vocab, jnp.int32)
    return jnp.where(needed, lax.cond(jnp.any(needed), bends, lambda: neutral), rows.vocab)
