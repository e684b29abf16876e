"""The first scan of the rows: the largest logits of their chunks, then the weights, in one launch.

The second read of a row comes from a cache as far as that holds the rows of all blocks.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxsample._core import _mass, _rows
from jaxsample._core._elementary import product
from jaxsample._core._source import CHUNK
from jaxsample._gpu import tiles
from jaxsample._gpu.tiles import Row, Tile


def chunk_maxima_and_sums(
    logits: Array, beta: Array | None, *, counted: bool, interpret: bool
) -> tuple[Array, ...]:
    """Returns the largest logit of each chunk and the sum of its weights.

    Args:
      logits: `[rows, vocab]`.
      beta: float32 `[rows]`, the inverse temperature, or None.
      counted: whether tokens are counted, too.
      interpret: whether to run without a GPU.

    Returns:
      The largest logits, not multiplied, +inf for a NaN, float32 `[rows, chunks]`; the sums, int32;
      and int32 `[rows, chunks]`, the numbers of tokens whose scaled logit is above -inf.
    """
    chunks = -(-logits.shape[1] // CHUNK)
    given = [] if beta is None else [beta]

    def body(row: Row, *refs: Any) -> None:
        *beta_ref, maxima_ref, sums_ref = refs[: len(refs) - 1 - counted]
        *counts_ref, maxima = refs[len(refs) - 1 - counted :]
        maxima[...] = jnp.full(maxima.shape, -jnp.inf)

        def look(tile: Tile) -> None:
            largest = jnp.max(jnp.where(tile.x != tile.x, jnp.inf, tile.x), axis=-1)
            maxima[tile.chunks] = largest
            tiles.store(maxima_ref.at[row.number, tile.chunks], largest)

        row.each(look)
        raw_max = jnp.max(maxima[...])
        raw_max = jnp.where(jnp.abs(raw_max) < jnp.inf, raw_max, 0)
        rate = _rows.bounded_beta(beta_ref[0][row.number], raw_max)[0] if beta_ref else None

        def read(x: Array) -> Array:
            return x if rate is None else product(x, rate)

        row_max = read(raw_max)

        def weigh(tile: Tile) -> None:
            shifts = _mass.shifts(read(maxima[tile.chunks]), row_max)
            tile = tile._replace(x=read(tile.x))
            sums = jnp.sum(tiles.weights(tile, row_max, shifts), axis=-1, dtype=jnp.int32)
            tiles.store(sums_ref.at[row.number, tile.chunks], sums)
            for ref in counts_ref:
                count = jnp.sum((tile.x > -jnp.inf).astype(jnp.int32), axis=-1, dtype=jnp.int32)
                tiles.store(ref.at[row.number, tile.chunks], count)

        row.each(weigh)

    outputs = [((chunks,), jnp.float32), ((chunks,), jnp.int32), ((chunks,), jnp.int32)]
    scratch = [plgpu.SMEM((tiles.padded(chunks),), jnp.float32)]
    return tuple(tiles.call(body, logits, given, outputs[: 2 + counted], scratch, interpret=interpret))
