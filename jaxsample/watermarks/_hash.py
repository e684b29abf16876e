"""A keyed hash: a pseudo-random word for each (key, context, candidate).

All arithmetic is on integers, so text that is marked on one device is detected on another. The
context is folded into the key by threefry, once a row. The candidates, the whole vocabulary, are
hashed by a cheaper mixing function.
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
"""The number of bits of a word, one coin for each layer of a tournament."""

_fold_in = jnp.vectorize(jax.random.fold_in)


class Seed(NamedTuple):
    """A key into which a context was folded: two words of 32 bits, uint32 of one shape."""

    first: Array
    second: Array


def keys(name: str, value: Any, rows: Array) -> Array:
    """Returns threefry keys, one a row; a single key is used for all rows."""
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

    For each candidate, every word is the result of equally many seeds, and every pair of words
    (`uniform`) of exactly one seed.
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

    It has 64 random bits: with 32, no value is below 1e-10, and unlikely tokens would be drawn too
    seldom.
    """
    first, _ = _expand(seed, words)
    low = _mix(words ^ first ^ np.uint32(0x9E3779B9)).astype(jnp.float32)
    return words.astype(jnp.float32) * 2.0**-32 + (low + 0.5) * 2.0**-64


def _mix(x: Array) -> Array:
    """Returns a permutation of 32-bit integers that maps neighbours far apart."""
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * np.uint32(0xD35A2D97)
    return x ^ (x >> 15)


def _expand(seed: Seed, ids: Array) -> Seed:
    return Seed(*(_checks.to_elements(a, ids) for a in seed))
