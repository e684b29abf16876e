"""Blocks of eight rows in vector memory, of the rows that a kernel has to process.

A block is read from HBM once. The body of a kernel processes it in steps of `VECTORS` vectors of 8
rows by 128 tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxsample._core import _bits
from jaxsample._core._bits import WORD
from jaxsample._core._elementary import product
from jaxsample._core._sortable import from_sortable, to_sortable
from jaxsample._core._source import CHUNK
from jaxsample._tpu.rows import LANES, ROWS, hide, like_rows, span

VECTORS = 64
"""The number of vectors of a step."""

STEP = VECTORS * LANES
"""The number of tokens of a step."""

_VMEM = 60 * 2**20

LEAST = np.finfo(np.float32).min
"""The least logit of a token that is not masked."""


class Given(NamedTuple):
    """The parameters and maxima of each row, float32 `[rows]`.

    Attributes:
      row_max: the largest logit, multiplied by beta.
      raw_max: the largest logit.
      beta: the inverse temperature, or None.
      k: the number of tokens to keep; the size of the vocabulary and above are neutral.
      p: the share of the mass to keep; 1 is neutral.
      floor: the least logit to keep; -inf is neutral.
    """

    row_max: Array
    raw_max: Array
    beta: Array | None
    k: Array
    p: Array
    floor: Array


class Inputs(NamedTuple):
    """The inputs of the kernels.

    Attributes:
      logits: `[rows, vocab]`.
      mask: int32 `[rows, words]`, the packed mask of the allowed tokens, or None.
      shifts: int32 `[rows, chunks]`, the shifts of the weights.
      given: the parameters and maxima of each row.
      needed: bool `[rows]`, the rows to process; the results of other rows are undefined.
    """

    logits: Array
    mask: Array | None
    shifts: Array
    given: Given
    needed: Array


class Rows(NamedTuple):
    """The rows of a block.

    Attributes:
      x: the reference to the logits.
      mask: the reference to the packed mask, or None.
      shifts: the reference to the shifts.
      given: the parameters and maxima of each row, equal in all lanes.
      needed: whether to process the row.
      vocab: the number of tokens.
      narrow: whether logits are bfloat16, and sortable integers have 16 bits.
    """

    x: Any
    mask: Any
    shifts: Any
    given: Given
    needed: Array
    vocab: int
    narrow: bool

    def read(self, raw: Array) -> Array:
        """Returns the scaled logits of raw values."""
        beta = self.given.beta
        return raw if beta is None else product(raw, beta)

    def raw(self, number: Array) -> Array:
        """Returns the raw value of a sortable integer."""
        if self.narrow:
            number = number << 16 | jnp.where(number < 0, 0xFFFF, 0)
        return from_sortable(number)

    def value(self, number: Array) -> Array:
        """Returns the scaled logit of a sortable integer, above that of masked tokens."""
        return jnp.maximum(self.read(self.raw(number)), LEAST)

    def number(self, raw: Array) -> Array:
        """Returns the sortable integer of a raw value, rounded down."""
        return to_sortable(raw) >> (16 if self.narrow else 0)


def call(
    body: Callable[..., None],
    inputs: Inputs,
    outputs: list[tuple[int, Any]],
    scratch: list[Any],
    interpret: bool,
    *,
    gathered: bool,
) -> Sequence[Array]:
    """Runs a body for blocks of eight rows that hold all needed rows.

    Args:
      body: takes the rows, the references to the outputs, and the references to scratch arrays in
        the shape of the rows.
      inputs: the rows and their parameters.
      outputs: the sizes and dtypes of the outputs of a row.
      scratch: the dtypes of the scratch arrays.
      interpret: whether to run without a TPU.
      gathered: whether a block consists of the next eight needed rows, if a DMA can copy single
        rows. Otherwise its rows are adjacent.
    """
    logits, mask, shifts, given, needed = inputs
    rows, vocab = logits.shape
    narrow = logits.dtype == jnp.bfloat16
    if interpret:  # XLA on CPU takes a quarter of an hour to compile the casts of a kernel
        logits = logits.astype(jnp.float32)
    together, size = min(rows, ROWS), pl.cdiv(vocab, STEP) * STEP
    # A DMA copies whole vectors, and a word of bfloat16 vectors has two rows.
    gathered &= not narrow and vocab % LANES == 0
    order = _in_front(needed, together, 1 if gathered else together)

    columns, tree = jax.tree.flatten((needed.astype(jnp.float32), given))
    chunks = whole_vectors(size // CHUNK)
    used = [jnp.stack(columns, axis=1), jnp.pad(shifts, [(0, 0), (0, chunks - shifts.shape[1])])]
    sizes = [len(columns), chunks]
    if mask is not None:
        used.append(_bits.by_lane(mask))
        sizes.append(size // WORD)
    used = [jnp.take(x, order.rows, axis=0, mode="fill", fill_value=0) for x in used]

    def spec(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((together, size), lambda i, *_: (i, np.int32(0)))

    neighbours = pl.BlockSpec(
        (together, size), lambda i, order, _: (lax.div(order[i * together], np.int32(together)), 0)
    )
    buffers = [pltpu.VMEM((2, together, size), jnp.float32), pltpu.SemaphoreType.DMA((2,))]

    def run(order_ref: Any, blocks_ref: Any, x_ref: Any, given_ref: Any, *refs: Any) -> None:
        shifts_ref, *others = refs
        mask_ref = None if mask is None else others.pop(0)
        block = pl.program_id(0)

        @pl.when(block < blocks_ref[0])
        def _() -> None:
            x, rest = x_ref, others
            if gathered:
                *rest, buffer_ref, semaphores = others
                x = _fetched(block, x_ref, order_ref, blocks_ref, buffer_ref, semaphores)
            columns = jnp.split(given_ref[...], given_ref.shape[1], axis=1)
            columns = [jnp.broadcast_to(column, (together, LANES)) for column in columns]
            needed, given = jax.tree.unflatten(tree, columns)
            hide(x, vocab)
            body(Rows(x, mask_ref, shifts_ref, given, needed > 0, vocab, narrow), *rest)

    found = pl.pallas_call(
        run,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(pl.cdiv(rows, together),),
            in_specs=[
                pl.BlockSpec(memory_space=pl.ANY) if gathered else neighbours,
                *map(spec, sizes),
            ],
            out_specs=[spec(size) for size, _ in outputs],
            scratch_shapes=[
                *(pltpu.VMEM((together, size), dtype) for dtype in scratch),
                *(buffers if gathered else ()),
            ],
        ),
        out_shape=like_rows(logits, outputs),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_VMEM),
        interpret=interpret,
    )(order.rows, order.blocks, logits, *used)
    return [jnp.take(x, order.places, axis=0, mode="clip") for x in found]


def _fetched(
    block: Array, x_ref: Any, order_ref: Any, blocks_ref: Any, buffer_ref: Any, semaphores: Any
) -> Any:
    """Returns the reference to the logits of a block, and starts the copy of the next block."""
    _, together, _ = buffer_ref.shape

    def slot(block: Array) -> Array:
        return lax.rem(block, np.int32(2))

    def copies(block: Array) -> Iterator[Any]:
        for row in range(together):
            source = x_ref.at[pl.ds(order_ref[block * together + row], 1)]
            target = buffer_ref.at[slot(block), pl.ds(row, 1), pl.ds(0, x_ref.shape[1])]
            yield pltpu.make_async_copy(source, target, semaphores.at[slot(block)])

    def start(block: Array) -> None:
        for copy in copies(block):
            copy.start()

    pl.when(block == 0)(lambda: start(block))
    pl.when(block + 1 < blocks_ref[0])(lambda: start(block + 1))
    for copy in copies(block):
        copy.wait()
    return buffer_ref.at[slot(block)]


def whole_vectors(size: int) -> int:
    """Returns a size rounded up to whole vectors."""
    return pl.cdiv(size, LANES) * LANES


class _Order(NamedTuple):
    """The rows of the blocks of a kernel.

    Attributes:
      rows: int32 `[blocks * rows of a block]`, the row at each place: the needed rows, then repeats
        of the last one, which is already in vector memory.
      places: int32 `[rows]`, the place of each row; undefined for rows that are not needed.
      blocks: int32 `[1]`, the number of blocks with needed rows.
    """

    rows: Array
    places: Array
    blocks: Array


def _in_front(needed: Array, together: int, unit: int) -> _Order:
    """Returns the order of units of `unit` consecutive rows, the needed ones first."""
    rows, blocks = needed.size, pl.cdiv(needed.size, together)
    units = pl.cdiv(rows, unit)
    some = jnp.any(jnp.pad(needed, (0, units * unit - rows)).reshape(units, unit), axis=1)
    ends = jnp.cumsum(some, dtype=jnp.int32)
    wanted = jnp.minimum(jnp.arange(1, blocks * together // unit + 1, dtype=jnp.int32), ends[-1])
    here = some[None] & (ends[None] == wanted[:, None])
    index = jnp.sum(jnp.where(here, jnp.arange(units, dtype=jnp.int32)[None], 0), axis=1)

    def of_rows(first: Array) -> Array:
        return (first[:, None] * unit + jnp.arange(unit, dtype=jnp.int32)[None]).reshape(-1)

    count = pl.cdiv(ends[-1] * unit, together)
    return _Order(of_rows(index), of_rows(ends - 1)[:rows], count[None])


def read(rows: Rows, number: Array) -> list[Array]:
    """Returns the logits of a step, -inf for masked tokens."""
    vectors = [rows.read(x.astype(jnp.float32)) for x in vectors_of(rows.x, number)]
    if rows.mask is None:
        return vectors
    words = jnp.split(rows.mask[:, span(number, STEP // WORD)], VECTORS // WORD, axis=1)
    allowed = (_bits.is_set(words[place // WORD], place % WORD) for place in range(VECTORS))
    return [*map(_bits.masked, vectors, allowed)]


def columns_of(ref: Any, number: Array, size: int) -> list[Array]:
    """Returns the columns of a step, of an array with `size` columns for each step."""
    steps = np.int32(LANES // size)
    vector = ref[:, span(lax.div(number, steps), LANES)]
    # The lanes of a slice must be static.
    vector = pltpu.roll(vector, LANES - lax.rem(number, steps) * size, 1)
    columns = jnp.split(vector[:, :size], size, axis=1)
    return [jnp.broadcast_to(column, vector.shape) for column in columns]


def ids(rows: Rows, number: Array) -> list[Array]:
    """Returns the ids of the tokens of a step."""
    first = number * STEP + lax.broadcasted_iota(jnp.int32, rows.given.row_max.shape, 1)
    return [first + place * LANES for place in range(VECTORS)]


def steps(vocab: int, step: Callable[..., Any], state: Any) -> Any:
    return lax.fori_loop(np.int32(0), np.int32(pl.cdiv(vocab, STEP)), step, state)


def vectors_of(ref: Any, number: Array) -> list[Array]:
    return jnp.split(ref[:, span(number, STEP)], VECTORS, axis=1)


def write(ref: Any, number: Array, vectors: Sequence[Array]) -> None:
    ref[:, span(number, STEP)] = jnp.concatenate(vectors, axis=1)
