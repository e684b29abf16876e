"""The Gumbel watermark: a draw with keyed noise."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaincc
from jax.typing import ArrayLike

from jaxsample._core import _checks, _chunks, _elementary, _gather, _lookup, _scan
from jaxsample._core._parameters import COUNT
from jaxsample._core._public import public
from jaxsample._core._rows import Rows
from jaxsample._core._shards import AxisName
from jaxsample._core._sortable import to_sortable
from jaxsample._core._source import CHUNK, opened
from jaxsample.watermarks import _hash, _scoring, _texts
from jaxsample.watermarks._hash import Seed
from jaxsample.watermarks._scoring import ScoreDetection


@public(secret_key=_hash.keys, context=_texts.context)
def gumbel_watermark_sample(
    secret_key: ArrayLike, logits: ArrayLike, context: ArrayLike, *, axis_name: AxisName = None
) -> Array:
    """Returns the token with the largest `log(u) / p`, u uniform noise keyed by context and token.

    The token is a function of key and context. Over random keys, it is an exact draw from
    `p = softmax(logits)`. A repeated context repeats the noise, and texts with the same start
    continue in the same way. For different texts, use different keys, or draw the first tokens with
    `categorical_sample`.

    Args:
      secret_key: one key for all rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked. The noise has 64 random
        bits for every dtype.
      context: integers `[..., width]`, the last tokens, the latest last (`last_tokens`). A missing
        one, -1, is hashed like any other.

    Returns:
      int32 `[...]`; -1 on a bad row (a NaN, +inf or no finite logit).

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
    seed = _hash.fold(jnp.asarray(secret_key), jnp.asarray(context))

    def lead(raw: Array, ids: Array, _: np.ndarray) -> Array:
        return _lead(rows, seed, rows.read(raw), ids)

    leads = _chunks.chunk_maxima(rows.source, lead)
    chunk = _first_largest(leads)
    raw, ids = _gather.take_chunk(rows, chunk)
    tokens = chunk * CHUNK + _first_largest(to_sortable(_lead(rows, seed, rows.read(raw), ids)))
    return jnp.where(rows.bad, -1, tokens)


def _lead(rows: Rows, seed: Seed, x: Array, ids: Array) -> Array:
    """Returns the score of each token, `log(p / -log(u))` up to a constant of the row.

    The noise of the detector is `1 - u`, which is small, and so precise, for tokens with high
    scores.
    """
    noise = _hash.uniform(seed, _hash.word(seed, ids))
    time = -_elementary.log1m(jnp.minimum(noise, np.float32(1 - 2.0**-24)))
    row_max = _checks.to_elements(rows.row_max, x)
    return (x - row_max) - _elementary.log(time)


def _first_largest(keys: Array) -> Array:
    """Returns the lowest index of the largest sortable integer of each row."""
    return _lookup.first_true(keys == jnp.max(keys, axis=-1, keepdims=True))


@public(
    first="tokens",
    convert_first=_checks.text,
    secret_key=_hash.keys,
    length=COUNT,
    width=_texts.width,
)
def detect_gumbel(
    secret_key: ArrayLike, tokens: ArrayLike, length: ArrayLike, *, width: int
) -> ScoreDetection:
    """Scores a text by the keyed noise of its tokens, which is large in marked text.

    The score is the sum of `-log(1 - u)` over the tokens, where u is the noise of
    `gumbel_watermark_sample`. In text without the mark each term has mean 1.

    Args:
      secret_key: the key of the mark: one key for all rows, or an array of keys `[...]`.
      tokens: integers `[..., L]`; a negative one is missing, and n-grams with it are not scored.
      length: integer in [0, L], a scalar or `[...]`, the number of valid tokens.
      width: static, at least 1, the number of context tokens of the mark.

    Returns:
      `(score, p_value, scored)`, each `[...]`. The p-value is the exact tail of the gamma
      distribution. If no token is scored, the score is 0 and p_value 1. On a row with a length
      outside its range, score and p_value are NaN and the number -1.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or width; the message names the argument.

    References:
      Aaronson, "Watermarking of large language models", 2022; Fernandez et al., "Three bricks to
      consolidate watermarks", arXiv 2308.00113: the gamma distribution.

    >>> import jax, jax.numpy as jnp
    >>> found = detect_gumbel(jax.random.key(0), jnp.arange(1000), 1000, width=2)
    >>> print(found.score / 998, found.p_value > 0.01)
    1.0 True
    """
    text, number = _texts.history(tokens, length)
    contexts, candidates, valid = _texts.grams(text, number, width)
    seed = _hash.fold(jnp.asarray(secret_key)[..., None], contexts)
    words = _hash.word(seed, candidates)
    surprise, first = _scoring.first_of_each(valid, words, -jnp.log(_hash.uniform(seed, words)))
    score = jnp.sum(jnp.where(first, surprise, 0), axis=-1)
    scored = _scoring.count(first)
    tail = gammaincc(jnp.maximum(scored, 1).astype(jnp.float32), score)
    return ScoreDetection(
        *_scoring.unless(number < 0, (score, jnp.where(scored > 0, tail, 1), scored))
    )
