"""The first scan of the rows in one launch: the maxima of their chunks, then the weights.

A row is read twice. The second read hits the L2 cache if the rows of all running blocks fit in it.
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
    """Returns the largest logits of chunks and rows, the sums of the chunks' weights, and counts.

    Args:
      logits: `[rows, vocab]`.
      beta: float32 `[rows]`, the inverse temperature, or None.
      counted: whether to also count the tokens.
      interpret: whether to run without a GPU.

    Returns:
      The largest logits, not multiplied by beta, +inf for a NaN, float32 `[rows, chunks]` and
      `[rows]`; the sums, int32 `[rows, chunks]`; and int32 `[rows]`, the number of tokens whose
      scaled logit is above -inf.
    """
    chunks = -(-logits.shape[1] // CHUNK)
    size = tiles.padded(chunks)

    def body(row: Row, given: list[Any], outputs: list[Any], **scratch: Any) -> None:
        maxima, sums, counts = scratch["maxima"], scratch["sums"], scratch.get("counts")
        maxima_ref, largest_ref, sums_ref, *count_ref = outputs
        maxima[...] = jnp.full(size, -jnp.inf, jnp.float32)

        def look(tile: Tile) -> None:
            # A maximum may drop a NaN; +inf also makes the row a bad row.
            maxima[tile.chunks] = jnp.max(jnp.where(tile.x == tile.x, tile.x, jnp.inf), axis=-1)

        row.each(look)
        maxima_ref[row.number] = maxima[...]
        largest = largest_ref[row.number] = jnp.max(maxima[...])
        raw_max = jnp.where(jnp.abs(largest) < jnp.inf, largest, 0)
        beta = _rows.bounded_beta(given[0][row.number], raw_max)[0] if given else None

        def read(x: Array) -> Array:
            return x if beta is None else product(x, beta)

        row_max = read(raw_max)

        def weigh(tile: Tile) -> None:
            shifts = _mass.shifts(read(maxima[tile.chunks]), row_max)
            tile = tile._replace(x=read(tile.x))
            sums[tile.chunks] = tiles.total(tile.weights(row_max, shifts))
            if counts is not None:
                counts[tile.chunks] = tiles.total((tile.x > -jnp.inf).astype(jnp.int32))

        if counts is not None:
            counts[...] = jnp.zeros(size, jnp.int32)
        row.each(weigh)
        sums_ref[row.number] = sums[...]
        if counts is not None:
            count_ref[0][row.number] = jnp.sum(counts[...], dtype=jnp.int32)

    outputs: list[Any] = [((size,), jnp.float32), ((), jnp.float32), ((size,), jnp.int32)]
    scratch = {"maxima": jnp.float32, "sums": jnp.int32}
    if counted:
        outputs.append(((), jnp.int32))
        scratch["counts"] = jnp.int32
    maxima, largest, sums, *count = tiles.call(
        "scan",
        body,
        logits,
        [] if beta is None else [beta],
        outputs,
        {name: plgpu.SMEM((size,), dtype) for name, dtype in scratch.items()},
        together=16,
        interpret=interpret,
    )
    return maxima[:, :chunks], largest, sums[:, :chunks], *count
