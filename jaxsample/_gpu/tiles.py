"""The logits of a row in tiles of some chunks, which a block of 128 threads reads one by one.

A warp holds whole chunks of a tile, so that the sum or the maximum of a chunk is one of its lanes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxsample._core import _mass
from jaxsample._core._elementary import product
from jaxsample._core._source import CHUNK

_THREADS, _WARPS, _LANES = 128, 4, 32


class Tile(NamedTuple):
    """Tokens of a row.

    Attributes:
      x: float32 `[chunks, CHUNK]`; or `[CHUNK]`, the last tokens of the row, with -inf in front of
        those of the short last chunk.
      ids: int32, their ids.
      chunks: their chunks, as an index of arrays `[chunks]`.
    """

    x: Array
    ids: Array
    chunks: Any

    def weights(self, row_max: Array, shifts: Array) -> Array:
        """Returns the weights of the tokens, by the shifts of their chunks."""
        shifts = lax.broadcast_in_dim(shifts, self.x.shape, range(shifts.ndim))
        return weights(self.x, self.ids & (CHUNK - 1), row_max, shifts)


class Row(NamedTuple):
    """A row of logits.

    Attributes:
      logits: the reference to the logits `[rows, vocab]`.
      number: the number of the row.
      together: chunks of a tile.
      interpreted: whether the kernel is interpreted.
    """

    logits: Any
    number: Array
    together: int
    interpreted: bool

    @property
    def vocab(self) -> int:
        return int(self.logits.shape[1])

    def each(self, visit: Callable[[Tile], None]) -> None:
        """Calls a function for the tiles that make up the row. Some chunks may come twice."""
        whole, shape = self.vocab // CHUNK, (self.together, CHUNK)
        layout = _layout(math.gcd(self.vocab, _WIDEST))

        def first(turn: Array) -> Array:
            return jnp.minimum(turn * self.together, whole - self.together)

        def load(turn: Array) -> Array:
            start = first(turn) * CHUNK
            tokens = self.logits.at[self.number, pl.ds(start, self.together * CHUNK)]
            if self.interpreted:  # which has no references of another shape
                return tokens[...].reshape(shape)
            return plgpu.load(tokens.reshape(*shape), layout=layout, optimized=False)

        def turn(number: Array, raw: Array) -> Array:
            following = load(number + 1)  # which comes while this one is looked at
            chunk, place = (
                plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout) for axis in (0, 1)
            )
            ids = (first(number) + chunk) * CHUNK + place
            visit(Tile(raw.astype(jnp.float32), ids, pl.ds(first(number), self.together)))
            return following

        turns = np.int32(pl.cdiv(whole, self.together))
        lax.fori_loop(np.int32(0), turns, turn, load(jnp.int32(0)))
        if self.vocab % CHUNK:
            visit(self._last(whole))

    def _last(self, whole: int) -> Tile:
        """Returns the short chunk behind so many whole ones."""
        start = self.vocab - CHUNK
        layout = _strided(CHUNK, math.gcd(self.vocab, CHUNK // _THREADS))
        raw = plgpu.load(self.logits.at[self.number, pl.ds(start, CHUNK)], layout=layout)
        ids = start + plgpu.broadcasted_iota(jnp.int32, (CHUNK,), 0, layout=layout)
        x = jnp.where(ids < whole * CHUNK, -jnp.inf, raw.astype(jnp.float32))
        return Tile(x, ids, whole)


_WIDEST = 4
"""Logits that a thread loads at once."""


def _layout(vector: int) -> Any:
    """Returns the layout of a tile: a chunk a warp, whose lanes have vectors of some tokens."""
    tiling = plgpu.Tiling(((_WARPS, CHUNK), (_LANES * vector,), (vector,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-4,), lane_dims=(-2,), vector_dim=-1)


def _strided(size: int, vector: int = 1) -> Any:
    """Returns the layout of an array whose elements are shared out among all threads."""
    return plgpu.Layout.WG_STRIDED((size,), vec_size=vector)


def weights(x: Array, places: Array, row_max: Array, shifts: Array) -> Array:
    """Returns `_mass.weights`, rounded as by XLA, which contracts no product with a sum."""
    return _mass.weights(x, places, row_max, shifts, product, _floor)


def total(of_tokens: Array) -> Array:
    """Returns the sums of integers over the chunks of a tile."""
    return jnp.sum(of_tokens, axis=-1, dtype=jnp.int32)


def load_all(ref: Any) -> Array:
    """Returns an array `[n]`, with `n` a multiple of the threads."""
    return plgpu.load(ref, layout=_strided(*ref.shape))


def filled(number: Array) -> Array:
    """Returns an array of a number, whose bits can be looked at, unlike those of the number."""
    return plgpu.layout_cast(jnp.full(_THREADS, number), _strided(_THREADS))


def padded(chunks: int) -> int:
    """Returns a number of chunks rounded up to a multiple of the threads."""
    return pl.cdiv(chunks, _THREADS) * _THREADS


def call(
    name: str,
    body: Callable[..., None],
    logits: Array,
    given: Sequence[Array],
    outputs: Sequence[tuple[tuple[int, ...], Any]],
    scratch: Mapping[str, Any],
    *,
    together: int,
    interpret: bool,
) -> tuple[Array, ...]:
    """Runs a body for each row.

    Args:
      name: of the kernel.
      body: takes the row, the references to what is given, those to the outputs, and the scratch by
        name.
      logits: `[rows, vocab]`.
      given: other inputs.
      outputs: the shape of each output of a row, and its dtype.
      scratch: arrays in shared memory.
      together: chunks of a tile.
      interpret: whether to run without a GPU.
    """

    def run(logits_ref: Any, *refs: Any, **scratch_refs: Any) -> None:
        row = Row(logits_ref, lax.axis_index("row"), together, interpret)
        body(row, refs[: len(given)], refs[len(given) :], **scratch_refs)

    rows = logits.shape[0]
    kernel = plgpu.kernel(
        run,
        out_type=[jax.ShapeDtypeStruct((rows, *shape), dtype) for shape, dtype in outputs],
        scratch_types=scratch,
        grid=(rows,),
        grid_names=("row",),
        kernel_name=name,
        interpret=plgpu.InterpretGPUParams() if interpret else False,
    )
    return tuple(kernel(logits, *given))


def _floor(x: Array) -> Array:
    """Returns the floor, for which Mosaic GPU has no operation."""
    nearest = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
    return nearest - jnp.where(nearest > x, np.float32(1), np.float32(0))
