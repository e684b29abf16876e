"""Blocks of eight rows in vector memory, made of the rows that need it.

A block is read from HBM once. A kernel's body looks at it step by step, at some vectors of 8 rows
by 128 tokens at a time.
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
"""Vectors of a step."""

STEP = VECTORS * LANES

_VMEM = 60 * 2**20

LEAST = np.finfo(np.float32).min
"""The least logit of a token that is not masked."""


class Given(NamedTuple):
    """The parameters and maxima of each row, float32 `[rows]`.

    Attributes:
      row_max: the largest logit, multiplied by beta.
      raw_max: the largest logit.
      beta: the inverse temperature, or None.
      k: the number of tokens to keep; not less than the vocabulary: not asked for.
      p: the share of the mass to keep; 1: not asked for.
      floor: the least logit to keep; -inf: not asked for.
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
      mask: int32 `[rows, words]`, the tokens that may come, packed, or None.
      shifts: int32 `[rows, chunks]`, of the weights.
      given: what is given of each row.
      needed: bool `[rows]`, the rows to look at; the results of the others may be anything.
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
      mask: that to the packed mask, or None.
      shifts: that to the shifts.
      given: what is given of each row, the same in all lanes.
      needed: whether to look at it.
      vocab: the number of tokens.
      narrow: whether logits are bfloat16, and numbers have 16 bits.
    """

    x: Any
    mask: Any
    shifts: Any
    given: Given
    needed: Array
    vocab: int
    narrow: bool

    def read(self, raw: Array) -> Array:
        """Returns the logits that raw values stand for."""
        beta = self.given.beta
        return raw if beta is None else product(raw, beta)

    def raw(self, number: Array) -> Array:
        """Returns the raw value that a sortable number stands for."""
        if self.narrow:
            number = number << 16 | jnp.where(number < 0, 0xFFFF, 0)
        return from_sortable(number)

    def value(self, number: Array) -> Array:
        """Returns the logit that a sortable number stands for; masked tokens are below it."""
        return jnp.maximum(self.read(self.raw(number)), LEAST)

    def number(self, raw: Array) -> Array:
        """Returns the sortable number of a raw value, rounded down."""
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
    """Runs a body for blocks of eight rows, of which some need it.

    The body takes the rows, the references to the outputs and those to arrays of a vector for each
    of a row's.

    Args:
      body: the body.
      inputs: the rows and their parameters.
      outputs: the sizes and dtypes of the outputs of a row.
      scratch: the dtypes of the arrays.
      interpret: whether to run without a TPU.
      gathered: whether a block is made of the next eight rows that need it, wherever they are,
        where the DMA of a single row can be had. Otherwise its rows are neighbours.
    """
    logits, mask, shifts, given, needed = inputs
    rows, vocab = logits.shape
    narrow = logits.dtype == jnp.bfloat16
    if interpret:  # whose casts took XLA a quarter of an hour to compile
        logits = logits.astype(jnp.float32)
    together, size = min(rows, ROWS), pl.cdiv(vocab, STEP) * STEP
    gathered &= not narrow and vocab % LANES == 0  # a word has two rows; a DMA copies whole vectors
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
    """Returns the reference to the logits of a block, and starts to copy those of the next."""
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
      rows: int32 `[blocks * rows of a block]`, the row at each place, those that are needed first;
        behind them the last of these again, which is in vector memory already.
      places: int32 `[rows]`, the place of each row; anything where it is not needed.
      blocks: int32 `[1]`, the number of blocks that are needed.
    """

    rows: Array
    places: Array
    blocks: Array


def _in_front(needed: Array, together: int, unit: int) -> _Order:
    """Returns the order in which units of so many rows come, those that are needed first."""
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
    """Returns the logits of a step, -inf where a token may not come."""
    vectors = [rows.read(x.astype(jnp.float32)) for x in vectors_of(rows.x, number)]
    if rows.mask is None:
        return vectors
    words = jnp.split(rows.mask[:, span(number, STEP // WORD)], VECTORS // WORD, axis=1)
    allowed = (_bits.is_set(words[place // WORD], place % WORD) for place in range(VECTORS))
    return [*map(_bits.masked, vectors, allowed)]


def columns_of(ref: Any, number: Array, size: int) -> list[Array]:
    """Returns the columns of a step, of an array to which each step adds `size` of them."""
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
