"""Reductions of rows by chunks of consecutive token ids.

All reductions along the vocabulary are here. A pass reads the logits in their own dtype and
converts each value to the float32 logit of the rule (`Rows.read`), fused: no intermediate of the
size of the logits is materialised.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _bits, _mass, _shards, _tiles
from jaxsample._core._bits import WORD
from jaxsample._core._checks import MAX_VOCAB, to_elements
from jaxsample._core._elementary import product
from jaxsample._core._lookup import take
from jaxsample._core._mass import Mass, Scale
from jaxsample._core._shards import AxisName, Shards

BLOCK = 64
"""The chunks that the ranking looks through."""

CHUNK = 256
"""The chunks of the draw."""

_SLICES = 8
"""Slices of a chunk that are combined elementwise before a short reduction."""


Implementation = Literal["xla", "pallas"] | None
"""No kernels, kernels wherever a program runs, or kernels where they are estimated to be faster."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Source:
    """Logits as they were given, with their mask, mesh axes and implementation.

    Attributes:
      logits: `[..., vocab]`.
      mask: int32 `[..., words]`, the packed mask of the allowed tokens, padded to whole chunks;
        None: all are allowed.
      shards: the devices that share each row; `logits` and `mask` are of one.
      implementation: of the first pass.
    """

    logits: Array
    mask: Array | None = None
    shards: Shards | None = None
    implementation: Implementation = dataclasses.field(default=None, metadata={"static": True})

    @property
    def vocab(self) -> int:
        return _shards.vocab(self.logits, self.shards)

    @property
    def ids(self) -> Array:
        """The ids of the tokens, int32 in the shape of `logits`."""
        return _shards.ids(self.logits, self.shards)

    @property
    def axis_name(self) -> AxisName:
        """The mesh axes over which the vocabulary is sharded, or None."""
        return None if self.shards is None else self.shards.axis_names

    def per_row(self, parameter: ArrayLike) -> Array:
        """Returns a parameter broadcast to one value a row."""
        return jnp.broadcast_to(parameter, self.logits.shape[:-1])

    def masked(self) -> Array:
        """Returns the raw values, -inf for tokens that are not allowed."""
        if self.mask is None:
            return self.logits
        return _bits.masked(self.logits, _bits.unpacked(self.mask, self.logits.shape[-1]))

    def take(self, tokens: Array) -> Array:
        """Returns the raw values of tokens `[..., n]`, -inf for those that are not allowed."""
        raw = _shards.take(self.logits, tokens, self.shards)
        if self.mask is None:
            return raw
        words = _shards.take(self.mask, tokens // WORD, self.shards)
        return _bits.masked(raw, _bits.is_set(words, tokens % WORD))

    def whole(self) -> Array:
        """Returns `masked` of the whole row, from all devices."""
        x = self.masked()
        return x if self.shards is None else self.shards.whole(x)


def opened(
    logits: ArrayLike,
    axis_name: AxisName = None,
    implementation: Implementation = None,
    mask: Array | None = None,
) -> Source:
    """Returns the `Source` of logits.

    Args:
      logits: `[..., vocab]`, checked.
      axis_name: the mesh axes over which the vocabulary is sharded, or None.
      implementation: of the first pass.
      mask: int32 `[..., ceil(vocab / 32)]`, the packed mask of the allowed tokens, or None.
    """
    logits = jnp.asarray(logits)
    if mask is not None:
        missing = -(-logits.shape[-1] // CHUNK) * (CHUNK // WORD) - mask.shape[-1]
        mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)])
    return Source(logits, mask, shards(logits, axis_name), implementation)


class Rows(NamedTuple):
    """Logits that were scanned once.

    Attributes:
      source: the logits; all else is of the whole row.
      beta: float32 `[...]`, the inverse temperature, by which logits are multiplied; None is 1.
      cut_beta: beta under which cuts are found; None if the temperature is applied after the cut.
      block_max: float32 `[..., blocks]`, beta times the largest logit of each block. Without a
        ranking (`_scan.scan_and_weigh`) the blocks are chunks.
      raw_max: float32 `[...]`, the largest logit of the row; 0 on a bad row.
      row_max: float32 `[...]`, beta times `raw_max`.
      bad: bool `[...]`, rows with a NaN, with +inf or without a finite logit.
      overflows: bool `[...]`, rows for which beta times the largest logit exceeds float32: their
        beta is 1, and they are greedy.
    """

    source: Source
    beta: Array | None
    cut_beta: Array | None
    block_max: Array
    raw_max: Array
    row_max: Array
    bad: Array
    overflows: Array

    @property
    def dtype(self) -> Any:
        """The dtype of the raw values."""
        return self.source.logits.dtype

    @property
    def vocab(self) -> int:
        return self.source.vocab

    @property
    def ids(self) -> Array:
        """The ids of the tokens, int32 `[..., vocab]`."""
        return self.source.ids

    def read(self, raw: Array) -> Array:
        """Returns the float32 logits that the raw values `[..., *]` stand for."""
        return _read(raw, self.beta)

    def read_to_cut(self, raw: Array) -> Array:
        """Returns the float32 logits among which a cut was found."""
        return _read(raw, self.cut_beta)

    def divided_by(self, divisor: Array | None) -> "Rows":
        """Returns the rows with beta computed from a divisor, through which gradients pass."""
        if divisor is None:
            return self
        return self._replace(beta=1 / jnp.where(self.overflows, 1, divisor))

    def read_from_cut(self, logits: Array) -> Array:
        """Returns the logits, from those that a cut was found among."""
        return self.read(logits.astype(self.dtype)) if self.cut_beta is None else logits


def shards(logits: Array, axis_name: AxisName) -> Shards | None:
    """Returns the devices over which a vocabulary is sharded, each with whole chunks of it."""
    if axis_name is None:
        return None
    found = _shards.named(axis_name)
    if logits.shape[-1] % CHUNK or _shards.vocab(logits, found) > MAX_VOCAB:
        raise ValueError(
            f"logits must have shape [..., n] on each device of axis_name, with n a multiple of "
            f"{CHUNK} and at most {MAX_VOCAB} tokens in all, got {logits.shape} on each of "
            f"{found.number}: pad the vocabulary of the model's head with -inf"
        )
    return found


def sortable_maxima(source: Source, size: int = BLOCK) -> Array:
    """Returns the largest logit of each block, `[..., blocks]`, as sortable integers."""
    return chunk_maxima(source, lambda raw, *_: raw, size)


def scaled_after(rows: Rows, beta: Array) -> Rows:
    """Returns scanned rows with a temperature that is applied after their cut."""
    sortable = to_sortable(rows.block_max.astype(rows.dtype))
    return scanned(rows.source, sortable, beta)._replace(cut_beta=None)


def scanned(source: Source, sortable: Array, beta: Array | None = None) -> Rows:
    """Returns the rows whose sortable maxima are given."""
    dtype = source.logits.dtype
    # A maximum of integers: one of floats over several devices may drop a NaN.
    raw_max = from_sortable(jnp.max(sortable, axis=-1), dtype).astype(jnp.float32)
    bad = ~jnp.isfinite(raw_max)
    raw_max = jnp.where(bad, 0, raw_max)
    overflows = jnp.zeros_like(bad)
    if beta is not None:
        beta, overflows = bounded_beta(beta, raw_max)
    # Rounding is monotone, so the largest stays the largest.
    block_max, row_max = (_read(x, beta) for x in (from_sortable(sortable, dtype), raw_max))
    return Rows(
        source,
        beta,
        beta,
        block_max,
        raw_max,
        row_max,
        bad,
        overflows,
    )


def bounded_beta(beta: Array, raw_max: Array) -> tuple[Array, Array]:
    """Returns beta, or 1 where it overflows the largest logit, and the rows where it does."""
    overflows = ~(jnp.abs(raw_max * beta) < jnp.inf)
    return jnp.where(overflows, 1, beta), overflows


def read_again(rows: Rows, after: Any) -> tuple[Rows, Any]:
    """Keeps XLA from materialising an intermediate that two passes over the rows share.

    XLA would compute a common subexpression of two passes, or of all turns of a loop, once and
    write it to memory, which is a copy of the logits. A barrier ties the rows to `after`, which
    depends on the pass before.
    """
    if rows.source.shards is not None:
        # An array in one barrier with the logits would count as varying over the devices.
        return rows._replace(source=lax.optimization_barrier((rows.source, after))[0]), after
    read = (rows.source, rows.beta, rows.cut_beta)
    (source, beta, cut_beta), after = lax.optimization_barrier((read, after))
    return rows._replace(
        source=source,
        beta=beta,
        cut_beta=cut_beta,
    ), after


def read_beside(rows: Rows, after: Array) -> tuple[Rows, Array]:
    """As `read_again`, but not on TPU and CUDA, where XLA fuses two untied passes into one."""
    if rows.source.shards is not None:
        return rows, after  # a mask of all devices would be tied to the logits of each

    def tied(rows: Rows, after: Array) -> tuple[Rows, Array]:
        return read_again(rows, after)

    def loose(rows: Rows, after: Array) -> tuple[Rows, Array]:
        return rows, after

    return lax.platform_dependent(rows, after, tpu=loose, cuda=loose, default=tied)


def chunk_sums(
    source: Source,
    element: Callable[..., Array],
    *per_chunk: Array,
    per_token: tuple[Array, ...] = (),
    size: int = CHUNK,
    whole: bool = True,
) -> Array:
    """Adds the integers `element(raw, ids, places, *per_chunk)` up over chunks of consecutive ids.

    Args:
      source: the logits.
      element: takes some raw values, their ids and, as a NumPy constant, their places in the chunk.
      *per_chunk: arrays `[..., chunks]`, handed to `element` so that they broadcast.
      per_token: arrays in the shape of the logits, handed to `element` after them.
      size: of a chunk; the last one may be short.
      whole: of devices that share a row, whether each gets the sums of all of them, or of its own.

    Returns:
      `[..., ceil(vocab / size)]`.
    """
    return _chunk_results(source, element, _sum, per_chunk, size, whole, per_token)


def chunk_maxima(source: Source, element: Callable[..., Array], size: int = CHUNK) -> Array:
    """Returns the largest `element(raw, ids, places)` of each chunk, `[..., chunks]`, sortable.

    Either zero may stand for equal ones, and +inf for a NaN.
    """
    return _chunk_results(source, element, _sortable_maximum, (), size)


def _chunk_results(
    source: Source,
    element: Callable[..., Array],
    reduce: Callable[[Array], Array],
    per_chunk: tuple[Array, ...],
    size: int,
    whole: bool = True,
    per_token: tuple[Array, ...] = (),
) -> Array:
    values, mask, shards = source.logits, source.mask, source.shards
    if shards is not None:
        start = shards.start(values.shape[-1])

        def own_element(x: Array, ids: Array, *rest: Any) -> Array:
            return element(x, start + ids, *rest)

        given = tuple(map(shards.own, per_chunk))
        alone = Source(values, mask)
        own = _chunk_results(alone, own_element, reduce, given, size, per_token=per_token)
        return shards.whole(own) if whole else own

    lead, vocab = values.shape[:-1], values.shape[-1]
    number = vocab // size

    def part(places: range, chunks: range) -> Array:
        def taken(values: Array) -> Array:
            if len(places) == size:
                return values[..., : number * size].reshape(*lead, number, size)
            return values[..., None, number * size :]

        x = taken(values)
        place = np.array(places, np.int32).reshape((1,) * (x.ndim - 1) + (-1,))
        ids = size * (chunks.start + lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 2)) + place
        params = (
            *(a[..., chunks.start : chunks.stop, None] for a in per_chunk),
            *map(taken, per_token),
        )
        if mask is not None:
            words = _words(mask, size)[..., chunks.start : chunks.stop, :]
            x = _bits.masked(x, _bits.unpacked(words, len(places)))
        return reduce(element(x, ids, place, *params))

    results = []
    if number:
        results.append(part(range(size), range(number)))
    if short := vocab - number * size:
        results.append(part(range(short), range(number, number + 1)))
    # The compiler would make one reduction of this and of one over the chunks, only to split it
    # again with an eighth of the row written down.
    return lax.optimization_barrier(jnp.concatenate(results, axis=-1))


def _sum(x: Array) -> Array:
    def tpu(x: Array) -> Array:
        return jnp.sum(x, axis=-1, dtype=x.dtype)

    return lax.platform_dependent(x, tpu=tpu, default=functools.partial(_in_slices, lax.add))


def _sortable_maximum(x: Array) -> Array:
    """Returns the maximum of the last axis as a sortable integer."""

    def tpu(x: Array) -> Array:  # where the sortable integers would be materialised
        if jnp.issubdtype(x.dtype, jnp.floating):
            # A maximum may drop a NaN; +inf makes the row a bad row, too.
            x = jnp.where(jnp.isnan(x), jnp.inf, x)
        return to_sortable(jnp.max(x, axis=-1))

    def default(x: Array) -> Array:  # which compares integers in their own width
        return _in_slices(lax.max, to_sortable(x))

    return lax.platform_dependent(x, tpu=tpu, default=default)


def _in_slices(combine: Callable[[Array, Array], Array], x: Array) -> Array:
    """Combines the last axis, first by slices of it.

    XLA on CPU compiles an elementwise operation and a short reduction to one vectorised loop, where
    a long one of integers is split in two passes with a copy between them.
    """
    if x.shape[-1] % _SLICES == 0:
        x = functools.reduce(combine, jnp.split(x, _SLICES, axis=-1))
    identity = 0 if combine is lax.add else jnp.iinfo(x.dtype).min
    return lax.reduce(x, x.dtype.type(identity), combine, (x.ndim - 1,))


def weigh(
    rows: Rows,
    scale: Scale,
    keep: Callable[..., Array] | None = None,
    *per_chunk: Array,
    whole: bool = True,
) -> Array:
    """Returns the sums of the weights of each chunk's tokens, int32 `[..., chunks]`.

    Args:
      rows: the logits.
      scale: the weights; those of masked tokens are 0.
      keep: `keep(x, places, *per_chunk)`, which tokens count, from the logits among which cuts are
        found and their places in the chunk; None: all.
      *per_chunk: arrays `[..., chunks]`, which `keep` gets so that they broadcast.
      whole: as in `chunk_sums`.
    """
    table = () if scale.table is None else (scale.table,)

    def element(raw: Array, ids: Array, places: np.ndarray, shift: Array, *rest: Array) -> Array:
        x = rows.read(raw)
        kept = (
            None if keep is None else keep(rows.read_to_cut(raw), places, *rest[: len(per_chunk)])
        )
        if scale.row_max is None and kept is not None:
            # Two tests of a bfloat16 logit would have it written down as float32 for both.
            return scale.weights(jnp.where(kept, x, -jnp.inf), places, shift)
        weights = scale.weights(x, places, shift, *rest[len(per_chunk) :])
        return weights if kept is None else jnp.where(kept, weights, 0)

    return chunk_sums(rows.source, element, scale.shifts, *per_chunk, per_token=table, whole=whole)


def tabulated(rows: Rows, scale: Scale) -> Scale:
    """Returns the scale with the weights of all tokens materialised."""
    raw, ids = rows.source.masked(), rows.ids
    shift = jnp.repeat(scale.shifts, CHUNK, axis=-1)[..., : raw.shape[-1]]
    table = scale.weights(rows.read(raw), ids % CHUNK, shift)
    return scale._replace(table=lax.optimization_barrier(table))


def mass(
    rows: Rows, scale: Scale, keep: Callable[..., Array] | None = None, *per_chunk: Array
) -> Mass:
    """Returns the mass of each row's tokens, `[...]`; the arguments are those of `weigh`."""
    shards = rows.source.shards
    if shards is None:
        return added_up(weigh(rows, scale, keep, *per_chunk), scale)
    sums = weigh(rows, scale, keep, *per_chunk, whole=False)
    own = _mass.place(sums, shards.own(scale.shifts))
    return _mass.together(_mass.total(own), shards.sum)


def starts(rows: Rows) -> Array:
    """Returns the first id of each chunk, int32 `[..., chunks]`."""
    chunks = -(-rows.vocab // CHUNK)
    return CHUNK * positions(jnp.zeros((*rows.row_max.shape, chunks)))


def added_up(sums: Array, scale: Scale) -> Mass:
    """Returns the mass `[...]` from the sums of all chunks that `weigh` returned."""
    return _mass.total(_mass.place(sums, scale.shifts))


def chunk_max(rows: Rows) -> Array:
    """Returns the largest logit of each chunk, `[..., chunks]`."""
    *lead, blocks = rows.block_max.shape
    per_chunk, chunks = CHUNK // block_size(rows, blocks), -(-rows.vocab // CHUNK)
    missing = jnp.full((*lead, chunks * per_chunk - blocks), -jnp.inf, jnp.float32)
    block_max = jnp.concatenate([rows.block_max, missing], axis=-1)
    return jnp.max(block_max.reshape(*lead, chunks, per_chunk), axis=-1)


def block_size(rows: Rows, blocks: int) -> int:
    """Returns the number of tokens of a block, by the number of blocks of a row."""
    return BLOCK if blocks == -(-rows.vocab // BLOCK) else CHUNK


def probability(rows: Rows) -> Scale:
    """Returns the scale whose weights are probabilities."""
    return Scale(_mass.shifts(chunk_max(rows), rows.row_max[..., None]), rows.row_max)


def tally(rows: Rows) -> Scale:
    """Returns the scale whose weights are 1, and 0 for masked tokens: masses are counts."""
    chunks = -(-rows.vocab // CHUNK)
    return Scale(jnp.full((*rows.row_max.shape, chunks), _mass.NO_SHIFT, jnp.int32), None)


def take_blocks(rows: Rows, blocks: Array, size: int) -> Array:
    """Returns the raw values of whole chunks by index: `[..., n]` to `[..., n, size]`."""
    logits, mask, shards = rows.source.logits, rows.source.mask, rows.source.shards
    if shards is not None:
        own = rows._replace(source=Source(logits, mask))
        number = logits.shape[-1] // size
        return shards.look_up(lambda i: take_blocks(own, i, size), blocks, number)
    raw = _take_blocks(logits, blocks, size)
    if mask is None:
        return raw
    words = jnp.take_along_axis(_words(mask, size), blocks[..., None], axis=-2, mode="clip")
    return _bits.masked(raw, _bits.unpacked(words, size))


def _take_blocks(logits: Array, blocks: Array, size: int) -> Array:
    *lead, vocab = logits.shape

    def by_chunk(logits: Array, blocks: Array) -> Array:
        # So that of a sharded vocabulary each device looks among its own.
        chunks = logits.reshape(*lead, vocab // size, size)
        return jnp.take_along_axis(chunks, blocks[..., None], axis=-2, mode="clip")

    def by_tile(logits: Array, blocks: Array) -> Array:
        return _tiles.take_blocks(logits, blocks, size)

    if vocab % size == 0:
        tpu = by_tile if _tiles.fits(logits.shape, size) else by_chunk
        return lax.platform_dependent(logits, blocks, tpu=tpu, default=by_chunk)

    def take(row: Array, starts: Array) -> Array:
        return jax.vmap(lambda start: lax.dynamic_slice_in_dim(row, start, size))(starts)

    # To cut the tail off would be a copy.
    return jnp.vectorize(take, signature="(v),(n)->(n,s)")(logits, blocks * size)


def take_rest(rows: Rows, size: int) -> Array:
    """Returns the raw values behind the last whole chunk of a size, `[..., vocab % size]`."""
    logits, mask = rows.source.logits, rows.source.mask
    whole, short = divmod(logits.shape[-1], size)
    rest = logits[..., whole * size :]
    if mask is None:
        return rest
    return _bits.masked(rest, _bits.unpacked(mask[..., whole * size // WORD :], short))


def _words(mask: Array, size: int) -> Array:
    """Returns the words of a mask by chunk, `[..., chunks, words]`."""
    return mask.reshape(*mask.shape[:-1], mask.shape[-1] * WORD // size, size // WORD)


def take_chunk(rows: Rows, chunk: Array, size: int = CHUNK) -> tuple[Array, Array]:
    """Returns the raw values and ids of one chunk a row, by its index `[...]`, as `take_chunks`."""
    raw, ids = take_chunks(rows, chunk[..., None], size)
    return raw[..., 0, :], ids[..., 0, :]


def take_chunks(rows: Rows, chunks: Array, size: int = CHUNK) -> tuple[Array, Array]:
    """Returns the raw values of chunks by index `[..., n]`, -inf beyond the vocabulary.

    Returns:
      The values and the ids of the tokens, int32, `[..., n, size]`.
    """
    whole, short = divmod(rows.vocab, size)
    x = jnp.full((*chunks.shape, size), -jnp.inf, rows.dtype)
    ids = (chunks * size)[..., None] + positions(x)
    if short:
        tail = take_rest(rows, size)[..., None, :]
        widths = [(0, 0)] * (tail.ndim - 1) + [(0, size - short)]
        x = jnp.broadcast_to(jnp.pad(tail, widths, constant_values=-np.inf), x.shape)
    if whole:
        inside = take_blocks(rows, chunks, size)
        x = jnp.where((chunks < whole)[..., None], inside, x)
    return x, ids


def positions(x: Array) -> Array:
    """Returns the index of each element along the last axis, int32 in the shape of `x`."""
    return lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)


def at(x: Array, index: Array) -> Array:
    """Returns the element of each row `x [..., n]` at an index `[...]`."""
    return take(x, index[..., None])[..., 0]


def first_true(mask: Array) -> Array:
    """Returns the lowest True index of the last axis, int32 `[...]`; its length if none is."""
    index = jnp.where(mask, positions(mask), mask.shape[-1])
    return jnp.min(index, axis=-1, initial=mask.shape[-1])


def to_sortable(x: Array) -> Array:
    """Returns signed integers in the order of the values, NaN last, of the width of `x`."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    integer = jnp.dtype(f"int{jnp.finfo(x.dtype).bits}").type
    magnitude = jnp.iinfo(integer).max
    infinity = integer(np.asarray(np.inf, x.dtype).view(integer))
    bits = lax.bitcast_convert_type(x, integer)
    sortable = jnp.where(bits < 0, bits ^ magnitude, bits)
    return jnp.where((bits & magnitude) > infinity, magnitude, sortable)


def from_sortable(sortable: Array, dtype: Any = jnp.float32) -> Array:
    """Returns the values that sortable integers stand for."""
    magnitude = jnp.iinfo(sortable.dtype).max
    return lax.bitcast_convert_type(jnp.where(sortable < 0, sortable ^ magnitude, sortable), dtype)


def mean(a: Array, b: Array) -> Array:
    """Returns the mean of integers, rounded down, without overflow."""
    return (a & b) + ((a ^ b) >> 1)


def rounded(x: Array) -> Array:
    """Returns computed float32 logits, rounded once, with NaN in place of +inf.

    Every rule that computes new logits ends with it, so that they are the same numbers whether they
    are materialised or fused with the next rule.
    """
    # The minimum, as in `product`, keeps a last product apart from what is added to the logits.
    return jnp.where(x == jnp.inf, jnp.nan, jnp.minimum(x, np.finfo(np.float32).max))


def _read(raw: Array, beta: Array | None) -> Array:
    x = raw.astype(jnp.float32)
    return x if beta is None else product(x, to_elements(beta, x))
