"""Blocks of a row as a TPU holds them: in tiles of 8 rows by 128 tokens.

A row by itself, cut into its blocks, is another layout: to look them up in it, the compiler writes
all logits again. A tile is found where it lies.
"""

import math

import jax.numpy as jnp
from jax import Array, lax

_ROWS = 8
_TOKENS = 128


def fits(vocab: int, size: int) -> bool:
    """Whether blocks of a size can be found by their tiles."""
    return vocab % max(size, _TOKENS) == 0 and (size % _TOKENS == 0 or _TOKENS % size == 0)


def take_blocks(logits: Array, blocks: Array, size: int) -> Array:
    """Blocks of consecutive tokens by index: `[..., vocab]`, `[..., n]` to `[..., n, size]`."""
    *lead, vocab = logits.shape
    n, rows, of_block = blocks.shape[-1], math.prod(lead), -(-size // _TOKENS)
    together = math.gcd(rows, _ROWS)
    logits = logits.reshape(rows // together, together, vocab // _TOKENS, _TOKENS)
    tiles = (blocks * size // _TOKENS)[..., None] + lax.broadcasted_iota(
        jnp.int32, (*blocks.shape, of_block), blocks.ndim
    )
    tiles = tiles.reshape(rows // together, together, n * of_block, 1)
    # Tiles before rows, as they lie in memory.
    logits, tiles = logits.swapaxes(1, 2), tiles.swapaxes(1, 2)
    taken = jnp.take_along_axis(logits, tiles, axis=1, mode="clip").swapaxes(1, 2)
    taken = taken.reshape(*lead, n, of_block * _TOKENS)
    part = blocks % max(_TOKENS // size, 1)
    parts = [taken[..., start : start + size] for start in range(0, taken.shape[-1], size)]
    found = parts[0]
    for number, one in enumerate(parts[1:], start=1):
        found = jnp.where((part == number)[..., None], one, found)
    return found
