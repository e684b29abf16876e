"""A keyed hash: a pseudo-random word for each (key, context, candidate).

Uses integers only, so that text marked on one device is detected on another. The context is folded
into the key by threefry, once per row; the candidates, a whole vocabulary, go through a cheaper
mixer.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsample._core import _checks

SCHEMES = ("left_hash", "self_hash")
BITS = 32
"""The bits of a word, each a coin of the tournament."""

_fold_in = jnp.vectorize(jax.random.fold_in)


class Seed(NamedTuple):
    """A key into which a context was folded: two words of 32 bits, uint32 of one shape."""

    first: Array
    second: Array


def keys(name: str, value: Any, rows: Array) -> Array:
    """Returns threefry keys, one a row: one key serves all rows, an array of keys is kept."""
    array = _checks.key_array(name, value)
    lone = jnp.zeros(1)  # over one row `[vocab]` a single key is not split
    keys = _checks.keys(name, array, rows if array.ndim else lone)
    return jnp.broadcast_to(keys, rows.shape[:-1])


def scheme(name: str, value: str, _: Array) -> str:
    """Returns the scheme, one of `SCHEMES`."""
    if value not in SCHEMES:
        raise ValueError(f"{name} must be one of {SCHEMES}, got {value!r}")
    return value


def fold(key: Array, context: Array) -> Seed:
    """Folds tokens `[..., width]`, first to last, into keys `[...]`: seeds `[...]`."""
    for i in range(context.shape[-1]):
        key = _fold_in(key, context[..., i].astype(jnp.uint32))
    return Seed(*jnp.unstack(jax.random.key_data(key), axis=-1))


def word(seed: Seed, ids: Array) -> Array:
    """Returns words of 32 bits, uint32 in the shape of `ids [..., *]`: one for each candidate.

    Whatever the candidate, each word comes from as many seeds as any other, and each pair of words
    (`uniform`) from one seed alone.
    """
    first, second = _expand(seed, ids)
    return _mix(_mix(ids.astype(jnp.uint32) ^ first) ^ second)


def green_word(key: Array, context: Array, ids: Array, scheme: str) -> Array:
    """Returns the words by which candidates `[..., n]` are green after contexts `[..., width]`."""
    if scheme == "left_hash":
        return word(fold(key, context), ids)
    width = context.shape[-1]
    words = [word(fold(key, context[..., i : i + 1]), ids) for i in range(width)]
    return _mix(functools.reduce(jnp.minimum, words))


def green(words: Array, gamma: Array) -> Array:
    """Whether candidates with these words are green: a share gamma in [0, 1) of all words."""
    return words < (gamma * 2.0**32).astype(jnp.uint32)


def coin(words: Array, layer: Array) -> Array:
    """Returns the coin of a layer of the tournament, bool."""
    return (words >> layer.astype(jnp.uint32)) & 1 == 1


def uniform(seed: Seed, words: Array) -> Array:
    """Returns uniform noise in (0, 1] for each of `word(seed, ids)`, float32.

    From 64 bits, so that small values are precise: 32 give nothing below 1e-10, and tokens far
    below the others need less to be drawn as often as they should.
    """
    first, _ = _expand(seed, words)
    low = _mix(words ^ first ^ np.uint32(0x9E3779B9)).astype(jnp.float32)
    return words.astype(jnp.float32) * 2.0**-32 + (low + 0.5) * 2.0**-64


def _mix(x: Array) -> Array:
    """Returns a permutation of 32 bits that scatters neighbours."""
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * np.uint32(0xD35A2D97)
    return x ^ (x >> 15)


def _expand(seed: Seed, ids: Array) -> Seed:
    return Seed(*(_checks.to_elements(a, ids) for a in seed))
