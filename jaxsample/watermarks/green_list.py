"""Green lists: raises the logits of a keyed share of the vocabulary."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betainc
from jax.typing import ArrayLike

from jaxsample._core import _checks
from jaxsample._core._elementary import rounded
from jaxsample._core._parameters import COUNT, INSIDE_0_1, NOT_NEGATIVE
from jaxsample._core._public import public
from jaxsample._core._pytrees import pytree
from jaxsample._core._shards import AxisName
from jaxsample._core._source import opened
from jaxsample.watermarks import _hash, _scoring, _texts


@pytree
class GreenListDetection(NamedTuple):
    """The result of `detect_green_list`.

    Attributes:
      z: float32 `[...]`, the number of green tokens above its mean, in standard deviations.
      p_value: float32 `[...]`, the probability of at least as many in text without the mark.
      green: int32 `[...]`, the number of green tokens.
      scored: int32 `[...]`, the number of tokens scored.
    """

    z: Array
    p_value: Array
    green: Array
    scored: Array


@public(
    secret_key=_hash.keys,
    context=_texts.context,
    gamma=INSIDE_0_1,
    delta=NOT_NEGATIVE,
    scheme=_hash.scheme,
)
def green_list_logits(
    secret_key: ArrayLike,
    logits: ArrayLike,
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
      secret_key: one key for all rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      context: integers `[..., width]`, the last tokens, the latest last (`last_tokens`). A row
        with a negative one, a missing token, is unchanged.
      gamma: in (0, 1), a scalar or `[...]`.
      delta: finite and at least 0, a scalar or `[...]`; 0 is neutral.
      scheme: static. "left_hash": a hash of the whole context and the candidate, usually with a
        context of one token. "self_hash": the smallest of the hashes of the candidate with each
        token of the context, usually three; edits of the context change it less often.

    Returns:
      float32 `[..., vocab]`. A gamma or delta outside its range makes its row NaN throughout; NaN
      and +inf stay.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or scheme; the message names the argument.

    References:
      Kirchenbauer et al., "A watermark for large language models", arXiv 2301.10226, and "On the
      reliability of watermarks for large language models", arXiv 2306.04634.

    >>> import jax, jax.numpy as jnp
    >>> logits = green_list_logits(jax.random.key(0), jnp.zeros(8), jnp.array([5]), gamma=0.5)
    >>> print(jnp.sum(logits == 2), jnp.sum(logits == 0))
    6 2
    """
    x, last = opened(logits, axis_name), jnp.asarray(context)
    share, boost = (x.per_row(a)[..., None] for a in (gamma, delta))
    bad = ~(INSIDE_0_1.inside(share) & NOT_NEGATIVE.inside(boost))
    words = _hash.green_word(jnp.asarray(secret_key), last, x.ids, scheme)
    green = _hash.green(words, jnp.where(bad, 0, share))
    boosted = green & (boost > 0) & _texts.known(last)[..., None]
    wide = x.logits.astype(jnp.float32)
    return jnp.where(bad, jnp.nan, jnp.where(boosted, rounded(wide + boost), wide))


@public(
    first="tokens",
    convert_first=_checks.text,
    secret_key=_hash.keys,
    length=COUNT,
    gamma=INSIDE_0_1,
    width=_texts.width,
    scheme=_hash.scheme,
)
def detect_green_list(
    secret_key: ArrayLike,
    tokens: ArrayLike,
    length: ArrayLike,
    gamma: ArrayLike = 0.25,
    *,
    width: int,
    scheme: str = "left_hash",
) -> GreenListDetection:
    """Counts the green tokens of a text: in text without the mark, a share gamma is green.

    Args:
      secret_key: the key of the mark: one key for all rows, or an array of keys `[...]`.
      tokens: integers `[..., L]`; a negative one is missing, and n-grams with it are not scored.
      length: integer in [0, L], a scalar or `[...]`, the number of valid tokens.
      gamma: in (0, 1), a scalar or `[...]`, as in `green_list_logits`.
      width: static, at least 1, the number of context tokens of the mark.
      scheme: static, "left_hash" or "self_hash", as in `green_list_logits`.

    Returns:
      `(z, p_value, green, scored)`, each `[...]`. The p-value is the exact binomial tail. If no
      token is scored, z is 0 and p_value 1. On a row with a gamma or length outside its range, z
      and p_value are NaN and the numbers -1.

    Raises:
      TypeError, ValueError: a wrong dtype, shape, width or scheme; the message names the argument.

    References:
      Kirchenbauer et al., "A watermark for large language models", arXiv 2301.10226; for repeated
      n-grams, Fernandez et al., "Three bricks to consolidate watermarks", arXiv 2308.00113.

    >>> import jax, jax.numpy as jnp
    >>> found = detect_green_list(jax.random.key(0), jnp.arange(1000), 1000, width=1)
    >>> print(found.green / found.scored, found.p_value > 0.01)
    0.2 True
    """
    text, number = _texts.history(tokens, length)
    share = jnp.broadcast_to(gamma, number.shape)
    bad = ~INSIDE_0_1.inside(share) | (number < 0)
    share = jnp.where(bad, 0.5, share)
    contexts, candidates, valid = _texts.grams(text, number, width)
    words = _hash.green_word(jnp.asarray(secret_key)[..., None], contexts, candidates, scheme)
    words, first = _scoring.first_of_each(valid, words, words)
    scored = _scoring.count(first)
    green = _scoring.count(first & _hash.green(words, share[..., None]))
    n, k = scored.astype(jnp.float32), green.astype(jnp.float32)
    z = (k - share * n) / jnp.sqrt(jnp.maximum(n, 1) * share * (1 - share))
    tail = jnp.where(green > 0, betainc(jnp.maximum(k, 1), n - k + 1, share), 1)
    return GreenListDetection(*_scoring.unless(bad, (z, tail, green, scored)))
