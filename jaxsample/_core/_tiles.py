"""The memory layout of rows on a TPU: tiles of 8 rows by 128 tokens.

A reshape of rows to blocks or words changes the layout, and XLA would copy all logits. Reshapes by
tile copy nothing.
"""

import math

import jax.numpy as jnp
from jax import Array, lax

ROWS, TOKENS = 8, 128


def fits(shape: tuple[int, ...], size: int = TOKENS) -> bool:
    """Whether rows `[..., vocab]` of static shape are divided into whole tiles and blocks."""
    if not all(isinstance(length, int) for length in shape) or 0 in shape:
        return False
    return shape[-1] % max(size, TOKENS) == 0 and (size % TOKENS == 0 or TOKENS % size == 0)


def flat(x: Array, ndim: int) -> Array:
    """Returns an array of rows `[..., *]` with one axis for the rows, in the memory order of a TPU.

    Args:
      x: an array whose leading axes are those of the rows.
      ndim: the number of these axes.
    """
    if _last_is_outermost(x.shape[:ndim]):
        x = jnp.moveaxis(x, ndim - 1, 0)
    return x.reshape(-1, *x.shape[ndim:])


def unflat(x: Array, lead: tuple[int, ...]) -> Array:
    """Inverts `flat`: returns the array with the axes `lead` of the rows."""
    if not _last_is_outermost(lead):
        return x.reshape(*lead, *x.shape[1:])
    *others, last = lead
    return jnp.moveaxis(x.reshape(last, *others, *x.shape[1:]), 0, len(others))


def _last_is_outermost(lead: tuple[int, ...]) -> bool:
    """Whether the last of these axes is the outermost one in the memory of a TPU.

    It stores `[8, 9, vocab]` as 9 rows of tiles: with the first axis outermost, there would be 16
    rows of tiles, mostly of padding.
    """
    if len(lead) < 2 or not all(isinstance(length, int) for length in lead):
        return False
    return lead[-1] % ROWS > 0 and lead[-2] % ROWS == 0


def split(x: Array) -> Array:
    """Returns rows `[..., vocab]` as tiles in memory order, `[rows / n, vocab / 128, n, 128]`."""
    x = flat(x, x.ndim - 1)
    rows, vocab = x.shape
    together = math.gcd(rows, ROWS)
    return x.reshape(rows // together, together, vocab // TOKENS, TOKENS).swapaxes(1, 2)


def joined(tiles: Array, lead: tuple[int, ...]) -> Array:
    """Inverts `split`: returns rows `[*lead, vocab]` from their tiles."""
    rows, tokens, together, _ = tiles.shape
    return unflat(tiles.swapaxes(1, 2).reshape(rows * together, tokens * TOKENS), lead)


def take_blocks(logits: Array, blocks: Array, size: int) -> Array:
    """Returns blocks of consecutive tokens by index: `[..., n]` to `[..., n, size]`."""
    lead, n, of_block = blocks.shape[:-1], blocks.shape[-1], -(-size // TOKENS)
    tiles = split(logits)
    index = (blocks * size // TOKENS)[..., None] + lax.broadcasted_iota(
        jnp.int32, (*blocks.shape, of_block), blocks.ndim
    )
    index = flat(index, len(lead))
    index = index.reshape(tiles.shape[0], tiles.shape[2], n * of_block, 1).swapaxes(1, 2)
    taken = jnp.take_along_axis(tiles, index, axis=1, mode="clip")
    taken = joined(taken, lead).reshape(*blocks.shape, of_block * TOKENS)
    part = blocks % max(TOKENS // size, 1)
    parts = [taken[..., start : start + size] for start in range(0, taken.shape[-1], size)]
    found = parts[0]
    for number, one in enumerate(parts[1:], start=1):
        found = jnp.where((part == number)[..., None], one, found)
    return found
