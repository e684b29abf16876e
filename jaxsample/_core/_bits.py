"""Packed masks: token t is bit `t % 32`, from the least, of the int32 word `t // 32`."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsample._core import _tiles
from jaxsample._core._tiles import TOKENS

WORD = 32
"""The number of tokens of a word."""

_SHORT = 256
"""The largest number of places that is a constant of a program."""


def packed(mask: Array) -> Array:
    """Returns a mask `[..., n]` packed, `[..., ceil(n / 32)]`; the bits beyond it are 0."""
    missing = -mask.shape[-1] % WORD
    mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)])
    place = lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1) % WORD
    bits = mask.astype(jnp.int32) << place

    def by_window(bits: Array) -> Array:
        window = (*[1] * (bits.ndim - 1), WORD)
        return lax.reduce_window(bits, np.int32(0), lax.add, window, window, "VALID")

    def by_word(bits: Array) -> Array:
        words = bits.reshape(*bits.shape[:-1], bits.shape[-1] // WORD, WORD)
        return jnp.sum(words, axis=-1, dtype=jnp.int32)

    # With words of 32 tokens, three quarters of each tile of a TPU would be padding.
    return lax.platform_dependent(bits, tpu=by_window, default=by_word)


def unpacked(words: Array, n: int) -> Array:
    """Returns the mask `[..., n]` of a packed one."""
    if n <= _SHORT or not _tiles.fits((*words.shape[:-1], n)):
        return _by_word(words, n)
    tpu, default = (functools.partial(way, n=n) for way in (_by_tile, _by_word))
    return lax.platform_dependent(words, tpu=tpu, default=default)


def _by_tile(words: Array, n: int) -> Array:
    """Unpacks by lane: a lane holds its bits from the start, so no word spans 32 lanes."""
    lead = words.shape[:-1]
    lanes = _tiles.split(by_lane(_tiles.flat(words, len(lead))))
    rows, groups, *tile = lanes.shape
    place = lax.broadcasted_iota(jnp.int32, (rows, groups, WORD, *tile), 2)
    mask = is_set(lanes[:, :, None], place).reshape(rows, groups * WORD, *tile)
    return _tiles.joined(mask[:, : n // TOKENS], lead)


def by_lane(words: Array) -> Array:
    """Returns a packed mask `[rows, words]` as a TPU's vectors read it, in whole groups of 32.

    In a word a lane, 128 side by side, each vector of 128 tokens of a group has a bit: matrices of
    32 x 32 bits, one for each quarter of the lanes, are transposed.
    """
    rows, number = words.shape
    quarters = TOKENS // WORD
    filled = jnp.pad(words, [(0, 0), (0, -number % TOKENS)])
    words = filled.reshape(rows, -(-number // TOKENS), WORD, quarters)
    for distance in (16, 8, 4, 2, 1):
        low = np.int32((2**WORD - 1) // (2**distance + 1))  # of each two stretches of bits
        pairs = words.reshape(*words.shape[:2], -1, 2, distance, quarters)
        one, other = pairs[..., 0, :, :], pairs[..., 1, :, :]
        change = ((one >> distance) ^ other) & low
        pairs = jnp.stack([one ^ (change << distance), other ^ change], axis=-3)
        words = pairs.reshape(words.shape)
    return words.swapaxes(-2, -1).reshape(filled.shape)


def _by_word(words: Array, n: int) -> Array:
    bits = jnp.repeat(words, WORD, axis=-1)[..., :n]
    if n > _SHORT:
        return is_set(bits, lax.broadcasted_iota(jnp.int32, bits.shape, bits.ndim - 1) & (WORD - 1))
    # A constant, since XLA would hoist computed places out of a loop and materialise them.
    place = np.arange(n, dtype=np.int32) % WORD
    return is_set(bits, place.reshape((1,) * (bits.ndim - 1) + (n,)))


def is_set(words: Array, place: int | Array | np.ndarray) -> Array:
    """Whether the bit of a place in a word is 1."""
    return words << (WORD - 1 - place) < 0


def without(n: int, index: Array, where: Array) -> Array:
    """Returns words with the bits of `n` places set, except for some indices `[..., m]`."""
    words = jnp.full((*index.shape[:-1], -(-n // WORD)), -1, jnp.int32)
    return cleared(words, index, where)


def cleared(words: Array, index: Array, where: Array) -> Array:
    """Returns words `[..., words]` with the bits at some indices `[..., n]` cleared."""
    outside = words.shape[-1] * WORD
    index = jnp.where(where & (index >= 0) & (index < outside), index, outside)
    index = jnp.sort(index, axis=-1)
    again = jnp.concatenate([jnp.full_like(index[..., :1], -1), index[..., :-1]], axis=-1) == index
    bits = jnp.where(again, 0, jnp.int32(1) << index % WORD)

    def summed(words: Array, index: Array, bits: Array) -> Array:
        return jnp.zeros_like(words).at[index].add(bits, mode="drop")

    signature = "(w),(n),(n)->(w)"
    return words & ~jnp.vectorize(summed, signature=signature)(words, index // WORD, bits)


def masked(x: Array, allowed: Array) -> Array:
    """Returns values with -inf where not allowed; NaN and +inf stay, so their row stays bad."""
    return jnp.where(allowed | _is_bad(x), x, -jnp.inf)


def _is_bad(x: Array) -> Array:
    """Whether a value is NaN or +inf."""
    if x.dtype == jnp.float32:
        return ~(x < jnp.inf)
    # A CPU compares narrow floats as float32, which XLA materialises if it is used again.
    bits = lax.bitcast_convert_type(x, jnp.int16)
    infinity, negative = np.asarray([np.inf, -np.inf], x.dtype).view(np.int16)
    return (bits >= infinity) | ((bits < 0) & (bits > negative))


def words_by_chunk(mask: Array, size: int) -> Array:
    """Returns the words of a mask by chunk, `[..., chunks, words]`."""
    return mask.reshape(*mask.shape[:-1], mask.shape[-1] * WORD // size, size // WORD)
