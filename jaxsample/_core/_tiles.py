"""Rows as a TPU holds them: in tiles of 8 rows by 128 tokens.

A row by itself, cut into blocks or words, is another layout, in which the compiler would write all
logits again. What is computed tile by tile is found, and stays, where it lies.
"""

import math

import jax.numpy as jnp
from jax import Array, lax

ROWS, TOKENS = 8, 128


def fits(shape: tuple[int, ...], size: int = TOKENS) -> bool:
    """Whether rows `[..., vocab]`, of a static number, are whole tiles and blocks of a size."""
    if not all(isinstance(length, int) for length in shape) or 0 in shape:
        return False
    return shape[-1] % max(size, TOKENS) == 0 and (size % TOKENS == 0 or TOKENS % size == 0)


def split(x: Array) -> Array:
    """Returns rows `[..., vocab]` as tiles in memory order, `[rows / n, vocab / 128, n, 128]`."""
    *lead, vocab = x.shape
    rows = math.prod(lead)
    together = math.gcd(rows, ROWS)
    return x.reshape(rows // together, together, vocab // TOKENS, TOKENS).swapaxes(1, 2)


def joined(tiles: Array, shape: tuple[int, ...]) -> Array:
    """Returns the rows, in some shape, of which `split` gave the tiles."""
    return tiles.swapaxes(1, 2).reshape(shape)


def take_blocks(logits: Array, blocks: Array, size: int) -> Array:
    """Returns blocks of consecutive tokens by index: `[..., n]` to `[..., n, size]`."""
    n, of_block = blocks.shape[-1], -(-size // TOKENS)
    tiles = split(logits)
    index = (blocks * size // TOKENS)[..., None] + lax.broadcasted_iota(
        jnp.int32, (*blocks.shape, of_block), blocks.ndim
    )
    index = index.reshape(tiles.shape[0], tiles.shape[2], n * of_block, 1).swapaxes(1, 2)
    taken = jnp.take_along_axis(tiles, index, axis=1, mode="clip")
    taken = joined(taken, (*blocks.shape, of_block * TOKENS))
    part = blocks % max(TOKENS // size, 1)
    parts = [taken[..., start : start + size] for start in range(0, taken.shape[-1], size)]
    found = parts[0]
    for number, one in enumerate(parts[1:], start=1):
        found = jnp.where((part == number)[..., None], one, found)
    return found
