"""Scatters of new logits for a few tokens of each row.

Ids outside the vocabulary are dropped, so `vocab` is padding. For a sharded vocabulary, ids are
local indices (`_shards.places`).
"""

import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _bits, _lookup, _shards
from jaxsample._core._source import Source

_FEW = 16
"""The largest number of ids that a TPU compares with every token: for a scatter it would copy the
logits to another layout and back."""


def lower(logits: Array, ids: Array, values: Array) -> Array:
    """Lowers the logits of tokens to the least of their values `[..., n]` and the old logit."""

    def scatter(row: Array, ids: Array, values: Array) -> Array:
        return row.at[ids].min(values, mode="drop")

    return jnp.vectorize(scatter, signature="(v),(n),(n)->(v)")(logits, ids, values)


def replace(logits: Array, ids: Array, values: Array) -> Array:
    """Replaces the logits of tokens; ids inside the vocabulary must be distinct in each row."""

    def scattered(logits: Array, ids: Array, values: Array) -> Array:
        apart = jnp.where(ids < logits.shape[-1], ids, logits.shape[-1] + _lookup.positions(ids))

        def scatter(row: Array, ids: Array, values: Array) -> Array:
            return row.at[ids].set(values, mode="drop", unique_indices=True)

        return jnp.vectorize(scatter, signature="(v),(n),(n)->(v)")(logits, apart, values)

    def compared(logits: Array, ids: Array, values: Array) -> Array:
        places = _lookup.positions(logits)
        for one in range(ids.shape[-1]):
            of_row = slice(one, one + 1)
            logits = jnp.where(places == ids[..., of_row], values[..., of_row], logits)
        return logits

    if ids.shape[-1] > _FEW:
        return scattered(logits, ids, values)
    return lax.platform_dependent(logits, ids, values, tpu=compared, default=scattered)


def ban(logits: Array, ids: Array, where: Array) -> Array:
    """Masks some tokens, `where` bool `[..., n]`; NaN and +inf stay, so the row stays bad."""
    vocab = logits.shape[-1]

    def tpu(logits: Array, ids: Array, where: Array) -> Array:
        # For a scatter, a TPU would copy the logits to another layout and back.
        words = _bits.without(vocab, ids, where)
        return _bits.masked(logits, _bits.unpacked(words, vocab))

    def default(logits: Array, ids: Array, where: Array) -> Array:
        ids = jnp.where(where & (ids >= 0), ids, vocab)
        old = _shards.take(logits, ids)
        return lower(logits, ids, jnp.where(old < jnp.inf, -jnp.inf, old))

    return lax.platform_dependent(logits, ids, where, tpu=tpu, default=default)


def unlisted(x: Source, ids: Array) -> Array:
    """Returns the packed mask of the tokens that are not among `ids [..., n]`."""
    places = _shards.places(x.logits, ids, x.shards)
    return _bits.without(x.logits.shape[-1], places, jnp.array(True))


def once(ids: Array, vocab: int) -> Array:
    """Returns the ids `[..., n]` with negative ones and repeats replaced by `vocab`."""
    equal = ids[..., :, None] == ids[..., None, :]
    again = jnp.any(jnp.tril(equal, -1), axis=-1)
    return jnp.where((ids < 0) | again, vocab, ids)


def summed(ids: Array, values: Array, vocab: int) -> tuple[Array, Array]:
    """Returns the ids `[..., n]`, sorted, and the sum of the values of each.

    Repeats of an id are replaced by `vocab` and 0.
    """

    def add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return right[0], jnp.where(left[0] == right[0], left[1], 0) + right[1]

    ids, values = lax.sort((ids, values), num_keys=1, is_stable=True)
    total = lax.associative_scan(add, (ids, values), axis=ids.ndim - 1)[1]
    followed = ids[..., :-1] == ids[..., 1:]
    last = jnp.concatenate([~followed, jnp.full_like(ids[..., :1], True, jnp.bool_)], axis=-1)
    return jnp.where(last, ids, vocab), jnp.where(last, total, 0)
