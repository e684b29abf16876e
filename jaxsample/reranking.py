"""Selection of the best of several texts by the log-probabilities of their tokens."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _checks, _lookup, _ranking
from jaxsample._core._checks import MAX_VOCAB
from jaxsample._core._public import public, static_integer
from jaxsample._core._pytrees import pytree
from jaxsample._core._sortable import to_sortable


@pytree
class BestOf(NamedTuple):
    """The best texts of each group, the best first.

    Attributes:
      indices: int32 `[..., num]`, in the group.
      scores: float32 `[..., num]`.
    """

    indices: Array
    scores: Array


def _logprobs(name: str, value: Any) -> Array:
    array = jnp.asarray(_checks.held(name, value, "f"), jnp.float32)
    if array.ndim < 2 or 0 in array.shape[-2:]:
        raise ValueError(
            f"{name} must have shape [..., group, length], neither of them 0, got {array.shape}"
        )
    return array


def _by(name: str, value: Any, _: Array) -> str:
    if value not in ("mean", "sum"):
        raise ValueError(f"{name} must be 'mean' or 'sum', got {value!r}")
    return value


@public(
    first="logprobs",
    convert_first=_logprobs,
    lengths=_checks.integer,
    num=static_integer(1, MAX_VOCAB),
    by=_by,
)
def best_of(
    logprobs: ArrayLike,
    lengths: ArrayLike,
    *,
    num: int,
    by: Literal["mean", "sum"] = "mean",
) -> BestOf:
    """Returns the `num` best texts of each group, by the mean or the sum of their log-probs.

    The score of a text is `sum(logprobs[:length])`, divided by its length for "mean". Ties are
    ranked by lower index. A score depends neither on the other texts nor on the padding.

    Args:
      logprobs: floats `[..., group, length]`, of the tokens of each text, as `sample` returns them,
        with any padding. -inf makes the score -inf.
      lengths: integers `[..., group]` in [0, length], the number of tokens of each text, or one
        number for all. 0 is a missing text.
      num: static, in [1, group].
      by: static, "mean" or "sum".

    Returns:
      `(indices, scores)`, each `[..., num]`. A missing text, or one with a length out of range or a
      score of NaN or +inf, is never chosen. If fewer than `num` texts are left, the result is
      padded with -1 and NaN.

    Raises:
      TypeError, ValueError: a wrong dtype, shape, `num` or `by`; the message names the argument.

    References:
      `best_of` in OpenAI's completions, which ranks by the mean, and `cumulative_logprob` in vLLM,
      the sum: https://github.com/vllm-project/vllm.

    >>> import jax.numpy as jnp
    >>> logprobs = jnp.array([[-1.0, -1.0, -1.0], [-2.0, 0.0, 0.0], [-0.5, -0.9, jnp.nan]])
    >>> indices, scores = best_of(logprobs, jnp.array([3, 1, 2]), num=2)
    >>> print(indices, scores)
    [2 0] [-0.7 -1. ]
    """
    x, length = jnp.asarray(logprobs), jnp.asarray(lengths)
    num = _checks.static_integer("num", num, 1, x.shape[-2])
    length = jnp.broadcast_to(length, x.shape[:-1])
    scores = _sum(jnp.where(_lookup.positions(x) < length[..., None], x, 0))
    if by == "mean":
        scores = scores / jnp.maximum(length, 1).astype(jnp.float32)
    has_score = (length >= 1) & (length <= x.shape[-1]) & (scores < jnp.inf)
    lowest = jnp.iinfo(jnp.int32).min  # below -inf
    sortable = to_sortable(_ranking.unsigned_zero(scores))
    ranked, indices = lax.top_k(jnp.where(has_score, sortable, lowest), num)
    missing = ranked == lowest
    scores = jnp.where(missing, jnp.nan, _lookup.take(scores, indices))
    return BestOf(jnp.where(missing, -1, indices), scores)


def _sum(x: Array) -> Array:
    """Returns the sums of the last axis, in an order that does not depend on trailing zeros."""
    while x.shape[-1] > 1:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, x.shape[-1] % 2)])
        x = x[..., ::2] + x[..., 1::2]
    return x[..., 0]
