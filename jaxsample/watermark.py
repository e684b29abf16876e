"""Watermarks: a keyed mark on generated text, which the holder of the key can detect.

What is marked depends on the key, the last few tokens (the context) and the candidate token, by a
keyed pseudo-random function of integers alone. All rows share one key, and it must be a key that
nothing else draws from. The detectors are in `jaxsample.detection`; they know the text and the key,
and neither the model nor the prompt.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample import _keyed
from jaxsample._core import _checks, _chunks, _elementary, _mass, _scan, _shards
from jaxsample._core._chunks import CHUNK, Rows, Source, opened
from jaxsample._core._parameters import COUNT, FLAG, INSIDE_0_1, NOT_NEGATIVE
from jaxsample._core._public import public, static_integer
from jaxsample._core._shards import AxisName, Shards
from jaxsample._keyed import Seed


@public(
    key=_keyed.keys,
    context=_keyed.context,
    gamma=INSIDE_0_1,
    delta=NOT_NEGATIVE,
    scheme=_keyed.scheme,
)
def green_list_logits(
    logits: ArrayLike,
    key: ArrayLike,
    context: ArrayLike,
    gamma: ArrayLike = 0.25,
    delta: ArrayLike = 2.0,
    *,
    scheme: str = "left_hash",
    axis_name: AxisName = None,
) -> Array:
    """Adds delta to the logits of green tokens: a keyed share gamma of the vocabulary.

    Each token is green with probability gamma, independently of the others.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      key: one key for all rows, or an array of keys `[...]`, one a row: typed (`jax.random.key`)
        or raw uint32.
      context: integers `[..., width]`, the last tokens, the latest last (`last_tokens`). A row
        with a negative one, which tells of a missing token, is left as it is.
      gamma: in (0, 1), a scalar or `[...]`.
      delta: finite and at least 0, a scalar or `[...]`; 0 is neutral.
      scheme: static. "left_hash": green depends on the whole context and the candidate, usually
        with a context of one token. "self_hash": on the candidate and that token of the context
        with which it has the least hash, so that an edit nearby seldom changes it; usually with
        three, at the price of a hash for each.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.

    Returns:
      float32 `[..., vocab]`. A NaN or +inf stays, a gamma or delta outside its range makes its row
      NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or scheme; the message names the argument.

    References:
      Kirchenbauer et al., "A watermark for large language models", arXiv 2301.10226, and "On the
      reliability of watermarks for large language models", arXiv 2306.04634.

    >>> import jax, jax.numpy as jnp
    >>> logits = green_list_logits(jnp.zeros(8), jax.random.key(0), jnp.array([5]), gamma=0.5)
    >>> print(jnp.sum(logits == 2), jnp.sum(logits == 0))
    6 2
    """
    x, last = opened(logits, axis_name), jnp.asarray(context)
    share, boost = (x.per_row(a)[..., None] for a in (gamma, delta))
    bad = ~(INSIDE_0_1.inside(share) & NOT_NEGATIVE.inside(boost))
    words = _keyed.green_word(jnp.asarray(key), last, x.ids, scheme)
    green = _keyed.green(words, jnp.where(bad, 0, share))
    boosted = green & (boost > 0) & _keyed.known(last)[..., None]
    wide = x.logits.astype(jnp.float32)
    return jnp.where(bad, jnp.nan, jnp.where(boosted, _chunks.settle(wide + boost), wide))


@public(key=_keyed.keys, context=_keyed.context, active=FLAG, depth=static_integer(1, _keyed.BITS))
def synthid_logits(
    logits: ArrayLike,
    key: ArrayLike,
    context: ArrayLike,
    active: ArrayLike = True,
    *,
    depth: int = 30,
    axis_name: AxisName = None,
) -> Array:
    """Plays a tournament: draws from the result are marked, and on average over keys unbiased.

    In each of `depth` layers a keyed coin g, 0 or 1, is thrown for each token, and
    `p <- p * (1 + g - sum(g * p))` with `p = softmax(logits)`: two tokens drawn from p meet and one
    with g = 1 wins. Logits are those of the last p up to a constant.

    Text stays unbiased only if no context is used twice: `active=~context_repeated(...)`.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      key: one key for all rows, or an array of keys `[...]`, one a row: typed (`jax.random.key`)
        or raw uint32.
      context: integers `[..., width]`, the last tokens, the latest last (`last_tokens`); four in
        the paper. A row with a negative one, which tells of a missing token, is left as it is.
      active: bool, a scalar or `[...]`; rows where it is False are left as they are.
      depth: static, in [1, 32].
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.

    Returns:
      float32 `[..., vocab]`, differentiable in the logits. Bad rows (a NaN, +inf or no finite
      logit) are left as they are.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or depth; the message names the argument.

    References:
      Dathathri et al., "Scalable watermarking for identifying large language model outputs",
      Nature 634, 2024.

    >>> import jax, jax.numpy as jnp
    >>> key, context = jax.random.key(0), jnp.array([3, 1, 4, 1])
    >>> print(jax.nn.softmax(synthid_logits(jnp.zeros(4), key, context, depth=1)))
    [0.31 0.31 0.31 0.06]
    """
    x, last = opened(logits, axis_name, "xla"), jnp.asarray(context)
    seed = _keyed.fold(jnp.asarray(key), last)
    rows = _scan.scan(x)
    on = (x.per_row(active) & _keyed.known(last) & ~rows.bad)[..., None]

    def play(layer: Array, below: Array) -> Array:
        # Tied to the loop: the compiler would write the words of the whole vocabulary down.
        here, layer = lax.optimization_barrier((seed, layer))
        share = _losers(below, here, layer, x.shards)
        won, lost = _elementary.log(1 + share)[..., None], _elementary.log(share)[..., None]
        g = _keyed.coin(_keyed.word(here, x.ids), layer)
        return below + jnp.where(g, won, lost)

    # Other rows stay out of the arithmetic: their gradients would be NaN. Below the maximum, where
    # float32 is finest: far from 0 it would swallow the shares.
    row_max = rows.row_max[..., None]
    wide = x.logits.astype(jnp.float32)
    below = jnp.where(on, wide - row_max, 0)
    played = lax.fori_loop(0, depth, play, below) + row_max
    return jnp.where(on, _chunks.settle(played), wide)


@jax.custom_jvp
def _losers(x: Array, seed: Seed, layer: Array, shards: Shards | None) -> Array:
    """Returns the share of probability `[...]` with g = 0.

    A token with g = 0 keeps that share of its own probability, and one with g = 1 gains it.
    """
    rows = _scan.scan(Source(x, shards=shards, implementation="xla"))
    scale = _chunks.probability(rows)
    lost = _chunks.mass(rows, scale, lambda _, ids: ~_keyed.coin(_keyed.word(seed, ids), layer))
    share = _mass.to_float(lost) / _mass.to_float(_chunks.mass(rows, scale))
    # A share too small to be counted is no ban.
    return jnp.maximum(share, 2.0**-_mass.FRACTION_BITS)


@_losers.defjvp
def _losers_jvp(
    primals: tuple[Array, Seed, Array, Shards | None],
    tangents: tuple[Array, Seed, Array, Shards | None],
) -> tuple[Array, Array]:
    x, seed, layer, shards = primals
    share = _losers(*primals)
    lost = ~_keyed.coin(_keyed.word(seed, _shards.ids(x, shards)), layer)
    softmax = _shards.softmax(x, shards)
    change = softmax * (jnp.where(lost, 1, 0) - share[..., None]) * tangents[0]
    return share, _shards.total(jnp.sum(change, axis=-1), shards)


@public(key=_keyed.keys, context=_keyed.context)
def gumbel_watermark_sample(
    key: ArrayLike, logits: ArrayLike, context: ArrayLike, *, axis_name: AxisName = None
) -> Array:
    """Returns the token with the largest `log(u) / p`, u uniform noise keyed by context and token.

    Given key and context the token is determined; over random keys it is an exact draw from
    `p = softmax(logits)`. What follows a repeated context is no new draw, and texts that start
    alike go on alike: other draws come from another key, or for a first few tokens without a full
    context from `categorical_sample`.

    Args:
      key: one key for all rows, or an array of keys `[...]`, one a row: typed (`jax.random.key`)
        or raw uint32.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked. The noise has 64 random
        bits whatever the dtype.
      context: integers `[..., width]`, the last tokens, the latest last (`last_tokens`). A missing
        one, -1, is a token like others.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.

    Returns:
      int32 `[...]`; -1 on a bad row (a NaN, +inf or no finite logit).

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Aaronson, "Watermarking of large language models", 2022; Kuditipudi et al., "Robust
      distortion-free watermarks for language models", arXiv 2307.15593.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.tile(jnp.array([1.0, 2.0]), (4096, 1))
    >>> tokens = gumbel_watermark_sample(jax.random.key(0), logits, jnp.arange(4096)[:, None])
    >>> print(tokens.mean())
    0.73
    """
    x = opened(logits, axis_name, "xla")
    rows = _scan.scan(x)
    seed = _keyed.fold(jnp.asarray(key), jnp.asarray(context))

    def lead(raw: Array, ids: Array, _: np.ndarray) -> Array:
        return _lead(rows, seed, rows.read(raw), ids)

    leads = _chunks.chunk_maxima(rows.source, lead)
    chunk = _first_largest(leads)
    raw, ids = _chunks.take_chunk(rows, chunk)
    tokens = chunk * CHUNK + _first_largest(
        _chunks.to_sortable(_lead(rows, seed, rows.read(raw), ids))
    )
    return jnp.where(rows.bad, -1, tokens)


def _lead(rows: Rows, seed: Seed, x: Array, ids: Array) -> Array:
    """Returns the score of each token, `log(p / -log(u))` up to a constant of the row.

    The detector's uniform noise is `1 - u`, which is small, and precise, where a token is ahead.
    """
    noise = _keyed.uniform(seed, _keyed.word(seed, ids))
    time = -_elementary.log1m(jnp.minimum(noise, np.float32(1 - 2.0**-24)))
    row_max = _checks.to_elements(rows.row_max, x)
    return (x - row_max) - _elementary.log(time)


def _first_largest(keys: Array) -> Array:
    """Returns the lowest index of each row's largest key."""
    return _chunks.first_true(keys == jnp.max(keys, axis=-1, keepdims=True))


@public(rows="tokens", convert_rows=_checks.text, length=COUNT, width=_keyed.width)
def last_tokens(tokens: ArrayLike, length: ArrayLike, *, width: int) -> Array:
    """Returns the last tokens of a history: the context of the next token.

    Args:
      tokens: integers `[..., L]`.
      length: integer in [0, L], a scalar or `[...]`: how many of the tokens there are.
      width: static, at least 1.

    Returns:
      int32 `[..., width]`, the latest last; -1 where there are fewer, and for a length outside its
      range.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or width; the message names the argument.

    >>> import jax.numpy as jnp
    >>> print(last_tokens(jnp.array([[7, 8, 9]] * 2), jnp.array([3, 1]), width=2))
    [[ 8  9]
     [-1  7]]
    """
    text, number = _keyed.history(tokens, length)
    padded = jnp.concatenate([jnp.full((*text.shape[:-1], width), -1, jnp.int32), text], -1)
    take = jnp.vectorize(
        lambda row, start: lax.dynamic_slice_in_dim(row, start, width), signature="(n),()->(w)"
    )
    return jnp.where(number[..., None] < 0, -1, take(padded, number))


@public(rows="tokens", convert_rows=_checks.text, length=COUNT, width=_keyed.width)
def context_repeated(tokens: ArrayLike, length: ArrayLike, *, width: int) -> Array:
    """Whether the last tokens of a history stand anywhere earlier in it, too.

    Args:
      tokens: integers `[..., L]`.
      length: integer in [0, L], a scalar or `[...]`: how many of the tokens there are.
      width: static, at least 1, the number of last tokens.

    Returns:
      bool `[...]`; False where there are fewer than `width`, and for a length outside its range.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or width; the message names the argument.

    >>> import jax.numpy as jnp
    >>> print(context_repeated(jnp.array([[1, 2, 3, 1, 2]] * 2), jnp.array([5, 4]), width=2))
    [ True False]
    """
    text, number = _keyed.history(tokens, length)
    last = last_tokens(text, number, width=width)
    earlier, _, within = _keyed.grams(text, number, width)
    same = jnp.all(earlier == last[..., None, :], axis=-1)
    return jnp.any(same & within, axis=-1) & _keyed.known(last)
