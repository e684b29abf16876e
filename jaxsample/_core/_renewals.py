"""Draws without replacement: the race of `_draw`, continued after each winner.

Token i of a row arrives at an exponential time of rate p_i, and the order of the arrivals is the
order of draws without replacement. The rate of a chunk is the sum of the rates of its tokens that
have not arrived. Exponential times are memoryless: after an arrival, the time to the next arrival
of that chunk is exponential with the remaining rate, and the times of other chunks do not change.
So each further token reads one chunk of logits, the times of the chunks and those of its tokens.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsample._core import _elementary, _lookup, _mass
from jaxsample._core._draw import exponentials, winner
from jaxsample._core._elementary import LOG2_E, product
from jaxsample._core._gather import take_chunk
from jaxsample._core._mass import Scale
from jaxsample._core._rows import Rows
from jaxsample._core._source import CHUNK

State = tuple[Array, Array, Array]
"""The next arrival of each chunk, the tokens so far and their times."""


def arrivals(noise: Array, rows: Rows, scale: Scale, sums: Array, num: int) -> tuple[Array, Array]:
    """Returns the first tokens of each row to arrive, and the times; the first is that of `draw`.

    Args:
      noise: `[..., 2]`, of `_draw.random_words`.
      rows: the logits.
      scale: the scale of `sums`.
      sums: int32 `[..., chunks]`, the weights of all tokens, added up by chunk.
      num: the number of tokens.

    Returns:
      int32 `[..., num]`, undefined where the time is inf and on bad rows; and float32
      `[..., num + 1]`, in units in which the likeliest token of the row has rate 1.
    """
    rates = _mass.rates(sums, scale.shifts)
    chunks = _lookup.positions(rates)
    clocks = exponentials(noise, chunks, jnp.zeros_like(chunks)) / rates

    def arrive(step: Array, state: State) -> State:
        clocks, tokens, times = state
        chunk = winner(clocks, chunks)
        time = _lookup.at(clocks, chunk)
        token, further = _within(noise, rows, chunk, tokens, step)
        clocks = jnp.where(chunks == chunk[..., None], (time + further)[..., None], clocks)
        here = _lookup.positions(tokens) == step
        tokens = jnp.where(here, token[..., None], tokens)
        return clocks, tokens, jnp.where(here, time[..., None], times)

    nothing = jnp.zeros_like(rates, shape=(*rates.shape[:-1], num))
    start = clocks, nothing.astype(jnp.int32) - 1, nothing
    clocks, tokens, times = lax.fori_loop(np.int32(0), np.int32(num), arrive, start)
    return tokens, jnp.concatenate([times, jnp.min(clocks, axis=-1, keepdims=True)], axis=-1)


def _within(
    noise: Array, rows: Rows, chunk: Array, tokens: Array, step: Array
) -> tuple[Array, Array]:
    """Returns the token of a chunk that arrives, and the time to the next arrival of the chunk.

    Args:
      noise: `[..., 2]`.
      rows: the logits.
      chunk: int32 `[...]`.
      tokens: int32 `[..., num]`, the tokens that have arrived, padded with -1.
      step: their number.
    """
    raw, ids = take_chunk(rows, chunk)
    has_arrived = jnp.any(tokens[..., :, None] == ids[..., None, :], axis=-2)
    below = jnp.where(has_arrived, -jnp.inf, rows.read(raw) - rows.row_max[..., None])

    # The noise of the first token is that of `draw`, by place in the chunk. The noise of further
    # ones depends on the token and the number of tokens of its chunk that have arrived.
    earlier = jnp.sum(tokens // CHUNK == chunk[..., None], axis=-1, keepdims=True, dtype=jnp.int32)
    places, own = ids % CHUNK, earlier + 2
    index, stream = jnp.where(step == 0, places, ids), jnp.where(step == 0, 1, own)
    times = exponentials(noise, index, jnp.broadcast_to(stream, ids.shape))
    token = winner(_elementary.log(times) - below, ids)

    left = jnp.where(ids == token[..., None], -jnp.inf, below)
    further = exponentials(noise, ~chunk[..., None], own)[..., 0] / _rate(left)
    return token, further


def _rate(below: Array) -> Array:
    """Returns the sum of `exp(below)` of a chunk `[..., 256]`, as a sum of integers."""
    largest = jnp.max(below, axis=-1)
    largest = jnp.where(largest > -jnp.inf, largest, 0)
    shift = jnp.zeros_like(largest, jnp.int32)
    places = np.arange(CHUNK, dtype=np.int32)
    weights = _mass.weights(below, places, largest[..., None], shift[..., None], product)
    sums = jnp.sum(weights, axis=-1, dtype=jnp.int32)
    return _mass.rates(sums, shift) * _elementary.exp2(product(largest, LOG2_E))
