"""The tiles of a row, each of some chunks, which a block of 128 threads reads one after the other.

A warp holds whole chunks of a tile, so that chunks are reduced within a warp.
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

_WIDEST = 4
"""The largest number of logits of one load of a thread."""


class Tile(NamedTuple):
    """Tokens of a row.

    Attributes:
      x: float32 `[chunks, CHUNK]`; or `[CHUNK]`, the short last chunk, preceded by -inf.
      ids: int32, their ids.
      chunks: the index of their chunks in arrays `[chunks]`.
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
      number: the index of the row.
      together: the number of chunks of a tile.
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
        """Calls a function for all tiles of the row. Some chunks may be in two tiles."""
        whole, shape = self.vocab // CHUNK, (self.together, CHUNK)
        layout = _layout(math.gcd(self.vocab, _WIDEST))

        def first(turn: Array) -> Array:
            return jnp.minimum(turn * self.together, whole - self.together)

        def load(turn: Array) -> Array:
            start = first(turn) * CHUNK
            tokens = self.logits.at[self.number, pl.ds(start, self.together * CHUNK)]
            if self.interpreted:  # the interpreter cannot reshape references
                return tokens[...].reshape(shape)
            return plgpu.load(tokens.reshape(*shape), layout=layout, optimized=False)

        def turn(number: Array, raw: Array) -> Array:
            following = load(number + 1)  # overlaps with the computation
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
        """Returns the short chunk after `whole` whole ones."""
        start = self.vocab - CHUNK
        layout = _strided(CHUNK, math.gcd(self.vocab, CHUNK // _THREADS))
        raw = plgpu.load(self.logits.at[self.number, pl.ds(start, CHUNK)], layout=layout)
        ids = start + plgpu.broadcasted_iota(jnp.int32, (CHUNK,), 0, layout=layout)
        x = jnp.where(ids < whole * CHUNK, -jnp.inf, raw.astype(jnp.float32))
        return Tile(x, ids, whole)


def _layout(vector: int) -> Any:
    """Returns the layout of a tile: each warp has whole chunks, each lane vectors of tokens."""
    tiling = plgpu.Tiling(((_WARPS, CHUNK), (_LANES * vector,), (vector,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-4,), lane_dims=(-2,), vector_dim=-1)


def _strided(size: int, vector: int = 1) -> Any:
    """Returns the layout of an array that is distributed over all threads."""
    return plgpu.Layout.WG_STRIDED((size,), vec_size=vector)


def weights(x: Array, places: Array, row_max: Array, shifts: Array) -> Array:
    """Returns `_mass.weights` without fused multiply-adds, which XLA does not emit on GPUs."""
    return _mass.weights(x, places, row_max, shifts, product, _floor)


def total(of_tokens: Array) -> Array:
    """Returns the sums of integers over the chunks of a tile."""
    return jnp.sum(of_tokens, axis=-1, dtype=jnp.int32)


def load_all(ref: Any) -> Array:
    """Returns an array `[n]`, where `n` is a multiple of the number of threads."""
    return plgpu.load(ref, layout=_strided(*ref.shape))


def filled(number: Array) -> Array:
    """Returns an array filled with a number, since scalars do not support casts of bits."""
    return plgpu.layout_cast(jnp.full(_THREADS, number), _strided(_THREADS))


def padded(chunks: int) -> int:
    """Returns a number of chunks rounded up to a multiple of the number of threads."""
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
      name: the name of the kernel.
      body: takes the row, the references to `given`, the references to the outputs, and the scratch
        arrays by name.
      logits: `[rows, vocab]`.
      given: other inputs.
      outputs: the shape and dtype of each output of a row.
      scratch: arrays in shared memory.
      together: the number of chunks of a tile.
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
    """Returns the floor, which is not an operation of Mosaic GPU."""
    nearest = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
    return nearest - jnp.where(nearest > x, np.float32(1), np.float32(0))
