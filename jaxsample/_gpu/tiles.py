"""The logits of a row in tiles of 16 chunks, which a block of 128 threads reads one by one.

A warp holds whole chunks of a tile, so that a sum or maximum of a chunk is one of its lanes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxsample._core import _mass
from jaxsample._core._source import CHUNK

_CHUNKS = 16
"""Chunks of a tile: 32 logits a thread, which are enough to keep it busy."""

MIN_VOCAB = _CHUNKS * CHUNK

_THREADS = 128
_WARPS, _LANES = 4, 32


class Tile(NamedTuple):
    """Tokens of a row.

    Attributes:
      x: float32 `[chunks, CHUNK]`, or `[CHUNK]` of the short last chunk, whose tokens are the last;
        in front of them it has -inf.
      ids: int32, their ids.
      chunks: the chunks, as an index of arrays `[chunks]`.
    """

    x: Array
    ids: Array
    chunks: Any

    def to_tokens(self, of_chunks: Array) -> Array:
        """Returns the element of each token's chunk."""
        return lax.broadcast_in_dim(of_chunks, self.x.shape, range(of_chunks.ndim))


class Row(NamedTuple):
    """A row of logits.

    Attributes:
      logits: the reference to the logits `[rows, vocab]`.
      number: the number of the row.
      interpreted: whether the kernel is interpreted.
    """

    logits: Any
    number: Array
    interpreted: bool

    def each(self, visit: Callable[[Tile], None]) -> None:
        """Calls a function for the tiles that make up the row. Some chunks may come twice."""
        vocab = self.logits.shape[1]
        whole = vocab // CHUNK
        layout = _layout(math.gcd(vocab, _WARPS))

        def first(turn: Array) -> Array:
            return jnp.minimum(turn * _CHUNKS, whole - _CHUNKS)

        def load(turn: Array) -> Array:
            tokens = self.logits.at[self.number, pl.ds(first(turn) * CHUNK, MIN_VOCAB)]
            if self.interpreted:  # which knows no reference of another shape
                return tokens[...].reshape(_CHUNKS, CHUNK)
            return plgpu.load(tokens.reshape(_CHUNKS, CHUNK), layout=layout)

        def turn(number: Array, raw: Array) -> Array:
            following = load(number + 1)  # while this one is looked at
            chunk, place = (
                plgpu.broadcasted_iota(jnp.int32, raw.shape, axis, layout=layout) for axis in (0, 1)
            )
            ids = (first(number) + chunk) * CHUNK + place
            visit(Tile(raw.astype(jnp.float32), ids, pl.ds(first(number), _CHUNKS)))
            return following

        lax.fori_loop(0, pl.cdiv(whole, _CHUNKS), turn, load(jnp.int32(0)))
        if vocab % CHUNK:
            visit(self._short_tile(whole))

    def _short_tile(self, whole: int) -> Tile:
        vocab = self.logits.shape[1]
        layout = plgpu.Layout.WG_STRIDED((CHUNK,), vec_size=math.gcd(vocab, CHUNK // _THREADS))
        raw = plgpu.load(self.logits.at[self.number, pl.ds(vocab - CHUNK, CHUNK)], layout=layout)
        ids = vocab - CHUNK + plgpu.broadcasted_iota(jnp.int32, (CHUNK,), 0, layout=layout)
        x = jnp.where(ids < whole * CHUNK, -jnp.inf, raw.astype(jnp.float32))
        return Tile(x, ids, whole)


def _layout(vector: int) -> Any:
    """Returns the layout of a tile: a chunk a warp, of which a lane has vectors of some tokens."""
    tiling = plgpu.Tiling(((_WARPS, CHUNK), (_LANES * vector,), (vector,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-4,), lane_dims=(-2,), vector_dim=-1)


def weights(tile: Tile, row_max: Array, shifts: Array) -> Array:
    """Returns the weights of the tokens of a tile, by the shifts of its chunks."""
    return _mass.weights(
        tile.x, tile.ids & (CHUNK - 1), row_max, tile.to_tokens(shifts), floor=floor
    )


def load(ref: Any) -> Array:
    """Returns a number of each chunk of a tile, in all lanes of a warp."""
    if not ref.shape:
        return ref[...]
    return plgpu.load(ref, layout=_layout(1).reduce(1), optimized=False)


def store(ref: Any, value: Array) -> None:
    """Writes a number of each chunk of a tile, which all lanes of a warp hold."""
    plgpu.store(ref, value, optimized=False)


def padded(chunks: int) -> int:
    """Returns a number of chunks rounded up to a multiple of the threads."""
    return pl.cdiv(chunks, _THREADS) * _THREADS


def call(
    body: Callable[..., None],
    logits: Array,
    given: Sequence[Array],
    outputs: Sequence[tuple[tuple[int, ...], Any]],
    scratch: Sequence[Any],
    *,
    interpret: bool,
) -> Sequence[Array]:
    """Runs a body for each row, which takes the row and the references to all arrays.

    Args:
      body: the body.
      logits: `[rows, vocab]`.
      given: other inputs.
      outputs: the shapes of the outputs of a row, and their dtypes.
      scratch: arrays in shared memory.
      interpret: whether to run without a GPU.
    """
    rows = logits.shape[0]

    def run(logits_ref: Any, *refs: Any) -> None:
        body(Row(logits_ref, lax.axis_index("row"), interpret), *refs)

    return plgpu.kernel(
        run,
        out_type=[jax.ShapeDtypeStruct((rows, *shape), dtype) for shape, dtype in outputs],
        scratch_types=scratch,
        grid=(rows,),
        grid_names=("row",),
        interpret=plgpu.InterpretGPUParams() if interpret else False,
    )(logits, *given)


def floor(x: Array) -> Array:
    """Returns `floor`, which Mosaic GPU has not, by the nearest integer."""
    nearest = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
    return nearest - jnp.where(nearest > x, np.float32(1), np.float32(0))
