"""Detectors of the watermarks of `jaxsample.watermark`: from the text and the key alone.

A p-value is the probability, over keys, that text without the mark scores as high. Text repeats
itself, and so does the keyed function: what repeats is scored once, or the scores would not be
independent. For the same reason texts that share their commonest n-grams score alike under one key,
the more so the narrower the context; float32 tells p-values down to 1e-38.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betainc, gammaincc, ndtr
from jax.typing import ArrayLike

from jaxsample import _keyed
from jaxsample._core import _checks
from jaxsample._core._parameters import COUNT, INSIDE_0_1
from jaxsample._core._public import public, static_integer


class GreenListDetection(NamedTuple):
    """The result of `detect_green_list`.

    Attributes:
      z: float32 `[...]`, how many standard deviations more green tokens than expected.
      p_value: float32 `[...]`, the probability of so many in text without the mark.
      green: int32 `[...]`, the number of green tokens.
      scored: int32 `[...]`, the number of tokens scored.
    """

    z: Array
    p_value: Array
    green: Array
    scored: Array


class ScoreDetection(NamedTuple):
    """The result of `detect_synthid` and `detect_gumbel`.

    Attributes:
      score: float32 `[...]`.
      p_value: float32 `[...]`, the probability of such a score in text without the mark.
      scored: int32 `[...]`, the number of tokens scored.
    """

    score: Array
    p_value: Array
    scored: Array


@public(
    rows="tokens",
    convert_rows=_checks.text,
    key=_keyed.keys,
    length=COUNT,
    gamma=INSIDE_0_1,
    width=_keyed.width,
    scheme=_keyed.scheme,
)
def detect_green_list(
    key: ArrayLike,
    tokens: ArrayLike,
    length: ArrayLike,
    gamma: ArrayLike = 0.25,
    *,
    width: int,
    scheme: str = "left_hash",
) -> GreenListDetection:
    """Counts green tokens: in text that `green_list_logits` did not mark, a share gamma of them.

    Args:
      key: as the text was marked with: one key for all rows, or an array of keys `[...]`.
      tokens: integers `[..., L]`; a negative one is missing, and what needs it is not scored.
      length: integer in [0, L], a scalar or `[...]`: how many of the tokens there are.
      gamma: in (0, 1), a scalar or `[...]`, as the text was marked with.
      width: static, at least 1, the number of tokens of the context that it was marked with.
      scheme: static, "left_hash" or "self_hash", as it was marked with.

    Returns:
      `(z, p_value, green, scored)`, each `[...]`. The p-value is the exact binomial tail. Without
      a token to score z is 0 and p_value 1. On a row with a gamma or length outside its range they
      are NaN and the numbers -1.

    Raises:
      TypeError, ValueError: a wrong dtype, shape, width or scheme; the message names the argument.

    References:
      Kirchenbauer et al., "A watermark for large language models", arXiv 2301.10226; on repeated
      tokens Fernandez et al., "Three bricks to consolidate watermarks", arXiv 2308.00113.

    >>> import jax, jax.numpy as jnp
    >>> found = detect_green_list(jax.random.key(0), jnp.arange(1000), 1000, width=1)
    >>> print(found.green / found.scored, found.p_value > 0.01)
    0.2 True
    """
    text, number = _keyed.history(tokens, length)
    share = jnp.broadcast_to(gamma, number.shape)
    bad = ~INSIDE_0_1.inside(share) | (number < 0)
    share = jnp.where(bad, 0.5, share)
    contexts, candidates, valid = _keyed.grams(text, number, width)
    words = _keyed.green_word(jnp.asarray(key)[..., None], contexts, candidates, scheme)
    words, first = _keyed.first_of_each(valid, words, words)
    scored = _count(first)
    green = _count(first & _keyed.green(words, share[..., None]))
    n, k = scored.astype(jnp.float32), green.astype(jnp.float32)
    z = (k - share * n) / jnp.sqrt(jnp.maximum(n, 1) * share * (1 - share))
    tail = jnp.where(green > 0, betainc(jnp.maximum(k, 1), n - k + 1, share), 1)
    return GreenListDetection(*_unless(bad, (z, tail, green, scored)))


@public(
    rows="tokens",
    convert_rows=_checks.text,
    key=_keyed.keys,
    length=COUNT,
    depth=static_integer(1, _keyed.BITS),
    width=_keyed.width,
)
def detect_synthid(
    key: ArrayLike, tokens: ArrayLike, length: ArrayLike, *, depth: int = 30, width: int
) -> ScoreDetection:
    """Scores a text by the coins of its tokens: in text that `synthid_logits` did not mark, 1/2.

    The score is the mean of the coins over tokens and layers, with weights that fall linearly from
    the first layer to a tenth at the last, where the tournament has less left to decide. Tokens
    that follow a repeated context are not scored.

    Args:
      key: as the text was marked with: one key for all rows, or an array of keys `[...]`.
      tokens: integers `[..., L]`; a negative one is missing, and what needs it is not scored.
      length: integer in [0, L], a scalar or `[...]`: how many of the tokens there are.
      depth: static, in [1, 32], as the text was marked with.
      width: static, at least 1, the number of tokens of the context that it was marked with.

    Returns:
      `(score, p_value, scored)`, each `[...]`. The p-value is that of a normal distribution with
      the score's exact mean and variance, at most 2% too large down to 1e-6 at 30 layers and 200
      tokens; fewer make it larger. Without a token to score the score is 1/2 and p_value 1.
      On a row with a length outside its range they are NaN and the number -1.

    Raises:
      TypeError, ValueError: a wrong dtype, shape, depth or width; the message names the argument.

    References:
      Dathathri et al., "Scalable watermarking for identifying large language model outputs",
      Nature 634, 2024: the weighted mean.

    >>> import jax, jax.numpy as jnp
    >>> found = detect_synthid(jax.random.key(0), jnp.arange(1000), 1000, width=4)
    >>> print(found.score, found.p_value > 0.01)
    0.5 True
    """
    text, number = _keyed.history(tokens, length)
    contexts, candidates, valid = _keyed.grams(text, number, width)
    seed = _keyed.fold(jnp.asarray(key)[..., None], contexts)
    words, first = _keyed.first_of_each(valid, seed.first, _keyed.word(seed, candidates))
    scored = _count(first)
    # Linear from 10 to 1, as integers: the sums are exact.
    weights = [10 * (depth - 1) - 9 * layer for layer in range(depth)] if depth > 1 else [1]
    heads = [_count(first & _keyed.coin(words, jnp.int32(layer))) for layer in range(depth)]
    total = jnp.zeros_like(scored)
    for weight, head in zip(weights, heads, strict=True):
        total += weight * head
    n = jnp.maximum(scored, 1).astype(jnp.float32)
    # Half a unit less: of whole numbers, a normal distribution would miss half of this one.
    excess = (2 * total - 1 - scored * sum(weights)).astype(jnp.float32)
    deviation = jnp.sqrt(n * sum(weight**2 for weight in weights))
    some = scored > 0
    score = jnp.where(some, total.astype(jnp.float32) / (n * sum(weights)), 0.5)
    tail = jnp.where(some, ndtr(-excess / deviation), 1)
    return ScoreDetection(*_unless(number < 0, (score, tail, scored)))


@public(rows="tokens", convert_rows=_checks.text, key=_keyed.keys, length=COUNT, width=_keyed.width)
def detect_gumbel(
    key: ArrayLike, tokens: ArrayLike, length: ArrayLike, *, width: int
) -> ScoreDetection:
    """Scores a text by the noise of its tokens: those of `gumbel_watermark_sample` have much.

    The score is the sum of `-log(1 - u)` over tokens, u being their noise: in text without the mark
    each term has mean 1.

    Args:
      key: as the text was marked with: one key for all rows, or an array of keys `[...]`.
      tokens: integers `[..., L]`; a negative one is missing, and what needs it is not scored.
      length: integer in [0, L], a scalar or `[...]`: how many of the tokens there are.
      width: static, at least 1, the number of tokens of the context that it was marked with.

    Returns:
      `(score, p_value, scored)`, each `[...]`. The p-value is the exact tail of the gamma
      distribution. Without a token to score the score is 0 and p_value 1. On a row with a length
      outside its range they are NaN and the number -1.

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
    text, number = _keyed.history(tokens, length)
    contexts, candidates, valid = _keyed.grams(text, number, width)
    seed = _keyed.fold(jnp.asarray(key)[..., None], contexts)
    words = _keyed.word(seed, candidates)
    surprise, first = _keyed.first_of_each(valid, words, -jnp.log(_keyed.uniform(seed, words)))
    score = jnp.sum(jnp.where(first, surprise, 0), axis=-1)
    scored = _count(first)
    tail = gammaincc(jnp.maximum(scored, 1).astype(jnp.float32), score)
    return ScoreDetection(*_unless(number < 0, (score, jnp.where(scored > 0, tail, 1), scored)))


def _count(mask: Array) -> Array:
    return jnp.sum(mask, axis=-1, dtype=jnp.int32)


def _unless(bad: Array, results: tuple[Array, ...]) -> list[Array]:
    """Returns the results, but NaN or -1 on bad rows."""
    missing = [-1 if jnp.issubdtype(a.dtype, jnp.integer) else jnp.nan for a in results]
    return [jnp.where(bad, m, a) for m, a in zip(missing, results, strict=True)]
