"""Chunks of the logits of each row by index."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsample._core import _bits, _lookup, _tiles
from jaxsample._core._bits import WORD
from jaxsample._core._rows import Rows
from jaxsample._core._source import CHUNK, Source


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
    ids = (chunks * size)[..., None] + _lookup.positions(x)
    if short:
        tail = take_rest(rows, size)[..., None, :]
        widths = [(0, 0)] * (tail.ndim - 1) + [(0, size - short)]
        x = jnp.broadcast_to(jnp.pad(tail, widths, constant_values=-np.inf), x.shape)
    if whole:
        inside = take_blocks(rows, chunks, size)
        x = jnp.where((chunks < whole)[..., None], inside, x)
    return x, ids


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
    words = jnp.take_along_axis(
        _bits.words_by_chunk(mask, size), blocks[..., None], axis=-2, mode="clip"
    )
    return _bits.masked(raw, _bits.unpacked(words, size))


def _take_blocks(logits: Array, blocks: Array, size: int) -> Array:
    *lead, vocab = logits.shape

    def by_chunk(logits: Array, blocks: Array) -> Array:
        # The chunks of a sharded vocabulary remain on their devices.
        chunks = logits.reshape(*lead, vocab // size, size)
        return jnp.take_along_axis(chunks, blocks[..., None], axis=-2, mode="clip")

    def by_tile(logits: Array, blocks: Array) -> Array:
        return _tiles.take_blocks(logits, blocks, size)

    if vocab % size == 0:
        tpu = by_tile if _tiles.fits(logits.shape, size) else by_chunk
        return lax.platform_dependent(logits, blocks, tpu=tpu, default=by_chunk)

    def take(row: Array, starts: Array) -> Array:
        return jax.vmap(lambda start: lax.dynamic_slice_in_dim(row, start, size))(starts)

    # Slicing off the last, short chunk would copy the logits.
    return jnp.vectorize(take, signature="(v),(n)->(n,s)")(logits, blocks * size)


def take_rest(rows: Rows, size: int) -> Array:
    """Returns the raw values after the last whole chunk of a size, `[..., vocab % size]`."""
    logits, mask = rows.source.logits, rows.source.mask
    whole, short = divmod(logits.shape[-1], size)
    rest = logits[..., whole * size :]
    if mask is None:
        return rest
    return _bits.masked(rest, _bits.unpacked(mask[..., whole * size // WORD :], short))
