"""Law 2: a token is a function of the key of its row and of its kept logits.

A draw has two steps: a chunk in proportion to its mass, then a token of the chunk in proportion to
its probability. Each step is a race, which the smallest exponential time divided by its rate wins.
The second race compares logarithms, which is Gumbel-max. This is an exact draw from the softmax
with `vocab / 256 + 256` random numbers a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.random import threefry2x32_p

from jaxsample._core import (
    _chunks,
    _elementary,
    _gather,
    _lookup,
    _mass,
    _prefix,
    _ranking,
    _rows,
    _search,
    _selection,
)
from jaxsample._core._checks import to_elements
from jaxsample._core._gather import take_chunk
from jaxsample._core._lookup import take
from jaxsample._core._mass import Mass, Scale
from jaxsample._core._prefix import Candidates
from jaxsample._core._ranking import Cut, Kept
from jaxsample._core._rows import Rows
from jaxsample._core._search import Rules, update_beyond
from jaxsample._core._sortable import from_sortable, to_sortable
from jaxsample._core._source import CHUNK


class Drawn(NamedTuple):
    """A token of each row `[...]`, and the mass and number of the tokens that it was drawn from.

    Attributes:
      tokens: int32; undefined on bad rows.
      mass: the mass of the kept tokens.
      num_kept: int32, their number.
    """

    tokens: Array
    mass: Mass
    num_kept: Array


def draw(noise: Array, rows: Rows, scale: Scale, sums: Array, cut: Cut) -> Array:
    """Draws a token of each row from the softmax of its kept logits.

    Args:
      noise: `[..., 2]`, from `random_words`.
      rows: the logits.
      scale: the scale of `sums`.
      sums: int32 `[..., chunks]`, the weights of the kept tokens, added up by chunk.
      cut: `[...]`, the last of the kept tokens.

    Returns:
      int32 `[...]`; undefined on bad rows.
    """
    rates = _mass.rates(sums, scale.shifts)
    chunks = _lookup.positions(rates)
    places = jnp.broadcast_to(np.arange(CHUNK, dtype=np.int32), (*rates.shape[:-1], CHUNK))
    # The tokens of bad rows are undefined. This makes the noise depend on the row, so that XLA for
    # GPUs computes it in one kernel with other results of the row.
    noise = jnp.where(rows.bad[..., None], 0, noise)
    chunk_times, token_times = _exponentials(noise, chunks, places)
    chunk = winner(chunk_times / rates, chunks)
    raw, ids = take_chunk(rows, chunk)
    # Relative to the maximum, where float32 is most precise: far from 0 it would round noise away.
    below = rows.read(raw) - rows.row_max[..., None]
    below = jnp.where(_ranking.is_kept(rows.read_to_cut(raw), ids, cut), below, -jnp.inf)
    return chunk * CHUNK + winner(_elementary.log(token_times) - below, places)


def nearest(noise: Array, rows: Rows, scale: Scale, sums: Array, cut: Cut, number: int) -> Array:
    """Returns the token of `draw` and the tokens that came nearest to being drawn.

    The distance of a token is the log of the ratio of its chunk's time to that of the first chunk,
    plus the log of the ratio of its own time to that of the first token of its chunk. Each ratio is
    the factor by which a rate would have to change for another winner. Ties are ordered by id.

    Returns:
      int32 `[..., number]`, padded with -1; undefined on bad rows.
    """
    drawn = draw(noise, rows, scale, sums, cut)
    rates = _mass.rates(sums, scale.shifts)
    chunks = _lookup.positions(rates)
    places = jnp.broadcast_to(np.arange(CHUNK, dtype=np.int32), (*rates.shape[:-1], CHUNK))
    chunk_times, token_times = _exponentials(noise, chunks, places)
    times = _elementary.log(chunk_times / rates)
    is_first = chunks == (drawn // CHUNK)[..., None]
    of_chunks = times - _lookup.at(times, drawn // CHUNK)[..., None]

    # The distance of the first token of a chunk is that of the chunk, so `number` chunks suffice.
    most = min(number, rates.shape[-1])
    some, _ = _selection.places_of_top_k(jnp.where(is_first, 1, -of_chunks), most)
    raw, ids = _gather.take_chunks(rows, some)
    below = rows.read(raw) - to_elements(rows.row_max, raw)
    below = jnp.where(_ranking.is_kept(rows.read_to_cut(raw), ids, cut), below, -jnp.inf)
    log_times = _elementary.log(token_times)[..., None, :] - below
    least = from_sortable(jnp.min(to_sortable(log_times), axis=-1, keepdims=True))
    distance = take(of_chunks, some)[..., None] + (log_times - least)
    distance = jnp.where(below > -jnp.inf, distance, jnp.inf)
    distance = jnp.where(ids == to_elements(drawn, ids), -1, distance)

    nearness = -distance.reshape(*rates.shape[:-1], most * CHUNK)
    nearness, place, _ = _selection.top_k(nearness, min(number, most * CHUNK), lambda x: x)
    tokens = take(ids.reshape(*rates.shape[:-1], most * CHUNK), place)
    tokens = jnp.where(nearness > -jnp.inf, tokens, -1)
    missing = [(0, 0)] * (tokens.ndim - 1) + [(0, number - tokens.shape[-1])]
    return jnp.pad(tokens, missing, constant_values=-1)


def draw_to(noise: Array, rows: Rows, cut: Cut) -> Drawn:
    """Draws from the tokens up to any cut."""
    scale = _chunks.probability(rows)
    return _from_weighed(noise, rows, scale, _search.weigh_to(rows, scale, cut), cut)


def draw_all(
    noise: Array, rows: Rows, scale: Scale, kept: Kept, greedy: Array | None
) -> tuple[Drawn, Cut]:
    """Draws from all tokens, given their weights; returns rank 0 on greedy rows."""
    cut = _ranking.everything(rows)
    drawn = _from_weighed(noise, rows, scale, kept, cut)
    if greedy is None:
        return drawn, cut
    best = _ranking.best(rows)
    alone = Drawn(best.token, _mass.likeliest(best.token), jnp.ones_like(best.token))
    chosen = jax.tree.map(lambda a, b: jnp.where(greedy, a, b), alone, drawn)
    return chosen, _ranking.select(greedy, best, cut)


def draw_prefix(
    noise: Array, rows: Rows, top: Candidates, rules: Rules, beta: Array | None
) -> tuple[Drawn, Cut]:
    """Draws from the prefix that the rules keep, and returns its cut.

    Args:
      noise: `[..., 2]`, from `random_words`.
      rows: the logits.
      top: the candidates.
      rules: top-k, top-p and min-p.
      beta: `[...]`, the inverse temperature of the draw if it is applied after the cut, or None.
    """
    found = _prefix.prefix(rows, top, rules)

    def scaled(rows: Rows, beta: Array | None) -> Rows:
        return rows if beta is None else _rows.scaled_after(rows, beta)

    def weigh(
        rows: Rows, cut: Cut, kept: Kept | None, beta: Array | None
    ) -> tuple[Kept, Mass, Cut]:
        rows = scaled(rows, beta)
        scale = _chunks.probability(rows)
        kept = _search.weigh_to(rows, scale, cut) if kept is None else kept
        return kept, _chunks.added_up(kept.sums, scale), cut

    drawn = scaled(rows, beta)
    scale = _chunks.probability(drawn)
    kept = _prefix.weigh_prefix(drawn, top.tokens, found.kept)
    mass = found.mass if beta is None else _chunks.added_up(kept.sums, scale)
    kept, mass, cut = update_beyond(
        weigh, ~found.within, (kept, mass, found.cut), rows, rules, beta, weighed=beta is None
    )
    return Drawn(draw(noise, drawn, scale, kept.sums, cut), mass, kept.num_kept), cut


def _from_weighed(noise: Array, rows: Rows, scale: Scale, kept: Kept, cut: Cut) -> Drawn:
    mass = _mass.total(_mass.place(kept.sums, scale.shifts))
    return Drawn(draw(noise, rows, scale, kept.sums, cut), mass, kept.num_kept)


def random_words(keys: Array) -> Array:
    """Returns the words `[..., 2]` that seed all noise of keys `[...]`.

    The keys are split, so that JAX's key reuse checker sees that they are consumed.
    """
    split = jax.vmap(lambda key: jax.random.split(key, 1))(keys.reshape(-1))
    return jax.random.key_data(split).reshape(*keys.shape, 2)


def uniforms(noise: Array, index: Array, stream: Array) -> Array:
    """Returns uniform noise in [0, 1), float32 in the shape of `index [..., n]`.

    It depends only on the key, the index and the stream. It has 64 random bits, one block of the
    hash: with 32, no value is below 1e-10, and unlikely tokens would be drawn too seldom.
    """
    keys = jnp.split(noise, 2, axis=-1)
    counter = [jnp.broadcast_to(x, index.shape).astype(jnp.uint32) for x in (index, stream)]
    # Not `threefry_2x32`, whose counter is one array: the halves of a sharded one would be moved.
    high, low = (bits.astype(jnp.float32) for bits in threefry2x32_p.bind(*keys, *counter))
    return jnp.minimum(high * 2.0**-32 + (low + 0.5) * 2.0**-64, np.float32(1 - 2.0**-24))


def exponentials(noise: Array, index: Array, stream: Array) -> Array:
    """Returns exponential noise of mean 1; the arguments are those of `uniforms`."""
    return _to_exponential(uniforms(noise, index, stream))


def _exponentials(noise: Array, chunks: Array, places: Array) -> list[Array]:
    """Returns the exponential noise of chunks `[..., n]` and of places in a chunk `[..., m]`."""
    streams = [jnp.zeros_like(chunks), jnp.ones_like(places)]

    def together(noise: Array, *index: Array) -> list[Array]:  # compiled to half as many loops
        x = uniforms(noise, *(jnp.concatenate(of, axis=-1) for of in (index, streams)))
        return jnp.split(x, [chunks.shape[-1]], axis=-1)

    def apart(noise: Array, *index: Array) -> list[Array]:
        # Fused with each race. The noise of a sharded vocabulary stays on the devices.
        return [uniforms(noise, *of) for of in zip(index, streams, strict=True)]

    found = lax.platform_dependent(noise, chunks, places, tpu=apart, cuda=apart, default=together)
    return [_to_exponential(x) for x in found]


def _to_exponential(uniform: Array) -> Array:
    # Precise for small values, since the uniform noise is.
    return -_elementary.log1m(uniform)


def winner(times: Array, ids: Array) -> Array:
    """Returns the id of the least time of each row, ties by lower id; `argmin` is slower."""
    # A minimum of integers: XLA may pass a minimum of floats to a library together with the sums
    # and products before it, which are then rounded differently, so that none equals the minimum.
    sortable = to_sortable(times)
    least = sortable == jnp.min(sortable, axis=-1, keepdims=True)
    return jnp.min(jnp.where(least, ids, jnp.iinfo(jnp.int32).max), axis=-1)
