"""Greedy and categorical sampling: functions from logits to tokens."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _checks, _draw, _ranking, _scan
from jaxsample._core._public import public
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, opened


@public()
def greedy_sample(
    logits: ArrayLike, *, axis_name: AxisName = None, implementation: Implementation = None
) -> Array:
    """Returns the token of rank 0: the one with the largest logit, ties broken by lower id.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.

    Returns:
      int32 `[...]`; -1 on a bad row (a NaN, +inf or no finite logit).

    >>> import jax.numpy as jnp
    >>> print(greedy_sample(jnp.array([[0.0, 2.0, 2.0], [0.0, jnp.nan, 1.0]])))
    [ 1 -1]
    """
    rows = _scan.scan(opened(logits, axis_name, implementation))
    return jnp.where(rows.bad, -1, _ranking.best(rows).token)


@public(key=_checks.keys)
def categorical_sample(
    key: ArrayLike,
    logits: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Draws a token of each row with probability `softmax(logits)`.

    A token depends only on the key and the kept logits of its row: not on the batch, the position
    of the row in it, `vmap`, or columns of -inf appended to the vocabulary.

    Args:
      key: one key, split over the rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32. In a decoding loop, `fold_in(request_key, position)`.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked. The noise is float32
        for every dtype. A chunk of 256 tokens that are all more than 32 nats below the likeliest
        is never drawn.

    Returns:
      int32 `[...]`; -1 on a bad row (a NaN, +inf or no finite logit).

    References:
      The Gumbel-max trick: Maddison, Tarlow and Minka, "A* sampling", arXiv 1411.0030.

    >>> import jax, jax.numpy as jnp
    >>> tokens = categorical_sample(jax.random.key(0), jnp.tile(jnp.array([1.0, 2.0]), (4096, 1)))
    >>> print(tokens.mean())
    0.73
    """
    x = opened(logits, axis_name, implementation)
    rows, scale, (sums,) = _scan.scan_and_weigh(x)
    noise = _draw.random_words(jnp.asarray(key))
    tokens = _draw.draw(noise, rows, scale, sums, _ranking.everything(rows))
    return jnp.where(rows.bad, -1, tokens)
