"""Log-probabilities and ranks of tokens under the softmax of the logits."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _checks, _chunks, _normalizer, _ranking, _scan, _shards
from jaxsample._core._checks import MAX_VOCAB
from jaxsample._core._parameters import BITMASK
from jaxsample._core._public import public, static_integer
from jaxsample._core._pytrees import pytree
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, Source, opened


@pytree
class TopLogprobs(NamedTuple):
    """The likeliest tokens, in the order of the ranking.

    Attributes:
      logprobs: float32 `[..., num]`.
      tokens: int32 `[..., num]`.
    """

    logprobs: Array
    tokens: Array


@public(tokens=_checks.tokens)
def token_logprobs(
    logits: ArrayLike,
    tokens: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Returns the log-probability of a token of each row: `logits[token] - log(sum(exp(logits)))`.

    Differentiable in the logits, to any order.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      tokens: integers `[...]` in [0, vocab).

    Returns:
      float32 `[...]`, -inf for a masked token; NaN on a bad row (a NaN, +inf or no finite logit)
      and for a token outside the vocabulary.

    >>> import jax.numpy as jnp
    >>> print(token_logprobs(jnp.array([1.0, 2.0]), 1))
    -0.313
    """
    x = opened(logits, axis_name, implementation)
    return logprobs_of(x, jnp.asarray(tokens)[..., None])[..., 0]


def logprobs_of(x: Source, tokens: Array) -> Array:
    """Returns the log-probabilities of tokens `[..., n]` under the softmax of the masked logits."""
    rows, scale, (sums,) = _scan.scan_and_weigh(x)
    mass = _chunks.added_up(sums, scale)
    logprobs = _normalizer.logprobs(rows, mass, x.masked(), x.take(tokens))
    inside = (tokens >= 0) & (tokens < rows.vocab)
    return jnp.where(inside, logprobs, jnp.nan)


@public(num=static_integer(1, MAX_VOCAB))
def top_logprobs(logits: ArrayLike, *, num: int, axis_name: AxisName = None) -> TopLogprobs:
    """Returns the `num` likeliest tokens and their log-probabilities, in the order of the ranking.

    Differentiable in the logits.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      num: static, in [1, vocab].

    Returns:
      `(logprobs, tokens)`, each `[..., num]`, padded with -inf and -1 if fewer tokens are not
      masked. NaN and -1 on a bad row (a NaN, +inf or no finite logit).

    Raises:
      TypeError, ValueError: a wrong dtype, shape or `num`; the message names the argument.

    >>> import jax.numpy as jnp
    >>> logprobs, tokens = top_logprobs(jnp.log(jnp.array([0.2, 0.5, 0.3])), num=2)
    >>> print(jnp.exp(logprobs), tokens)
    [0.5 0.3] [1 2]
    """
    x = opened(logits, axis_name, "xla")
    num = _checks.static_integer("num", num, 1, x.vocab)
    rows = _scan.scan(x)
    top = _ranking.candidates(rows, num)
    mass = _chunks.mass(rows, _chunks.probability(rows))
    chosen = _shards.take(x.logits, top.token, x.shards)
    logprobs = _normalizer.logprobs(rows, mass, x.logits, chosen)
    masked = rows.bad[..., None] | (top.logit == -jnp.inf)
    return TopLogprobs(logprobs, jnp.where(masked, -1, top.token))


@public(tokens=_checks.tokens)
def token_ranks(logits: ArrayLike, tokens: ArrayLike, *, axis_name: AxisName = None) -> Array:
    """Returns the rank of a token of each row: by logit, equal logits by lower id.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      tokens: integers `[...]` in [0, vocab).

    Returns:
      int32 `[...]`, 0 for the greedy token; -1 on a bad row (a NaN, +inf or no finite logit) and
      for a token outside the vocabulary.

    >>> import jax.numpy as jnp
    >>> print(token_ranks(jnp.array([[1.0, 3.0, 3.0]] * 3), jnp.arange(3)))
    [2 0 1]
    """
    rows = _scan.scan(opened(logits, axis_name, "xla"))
    ids = jnp.asarray(tokens)
    inside = (ids >= 0) & (ids < rows.vocab)
    return jnp.where(inside & ~rows.bad, _ranking.rank(rows, ids), -1)


@public(tokens=_checks.tokens, kept_mask=BITMASK)
def replay_logprobs(
    logits: ArrayLike,
    tokens: ArrayLike,
    kept_mask: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Returns the log-probability of a token of each row within the kept set of an earlier draw.

    Computes `logits[token] - log(sum(exp(logits[kept])))`, differentiable in the logits. Training
    on a rollout needs the kept set of the policy that drew it: truncating the logits of the trained
    policy may keep other tokens.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16, with the scaling of the draw applied.
      tokens: integers `[...]` in [0, vocab).
      kept_mask: int32 `[..., ceil(vocab / 32)]`, from `sample(..., return_kept=True)`.

    Returns:
      float32 `[...]`, -inf for a token outside the mask; NaN on a bad row (a NaN, +inf or no finite
      logit in the mask) and for a token outside the vocabulary.

    >>> import jax.numpy as jnp
    >>> print(replay_logprobs(jnp.array([1.0, 2.0, 3.0]), 1, jnp.array([0b011])))
    -0.313
    """
    x = opened(logits, axis_name, implementation, jnp.asarray(kept_mask))
    return logprobs_of(x, jnp.asarray(tokens)[..., None])[..., 0]
