"""Drafts for speculative decoding: what was drawn, and what came nearest to being drawn."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _checks, _draw, _ranking, _scan
from jaxsample._core._checks import MAX_VOCAB
from jaxsample._core._public import public, static_integer
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, opened
from jaxsample.drawing import processed_rows
from jaxsample.orders import DEFAULT_ORDER, Order
from jaxsample.params import SamplingParams, converted
from jaxsample.sampler import state_of_rows
from jaxsample.state import SamplerState


@public(
    keys=_checks.keys,
    params=lambda name, value, logits: converted(
        name, SamplingParams() if value is None else value, logits
    ),
    state=state_of_rows,
    num=static_integer(1, MAX_VOCAB),
)
def nearest_draws(
    keys: ArrayLike,
    logits: ArrayLike,
    params: SamplingParams | None = None,
    state: SamplerState | None = None,
    *,
    num: int,
    order: Order = DEFAULT_ORDER,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Draws a token of each row, and returns with it those that came nearest to being drawn.

    The first token is that of `sample`. Others are ordered by the logarithm of the ratio by which
    they lost: that of the times of their chunk of 256 tokens and of the first chunk, plus that of
    their own time and of the first time in their chunk. A token is drawn from other logits with
    the same key if these differ by as much. So of a draft model's logits they are siblings for a
    tree of drafts: with `num=2`, one of both is mostly accepted more often than any single draft
    could be.

    Args:
      keys: one key, split over the rows, or an array of keys `[...]`, one a row: typed or raw, the
        keys that the verified positions are drawn with.
      logits: `[..., vocab]`, float32, bfloat16 or float16, of the draft model; -inf is masked.
      params: what to apply, as in `sample`; None: nothing. With rules, one array of logits is
        written.
      state: what the rows hold so far, for the rules that look back.
      num: static, in [1, vocab]. The tokens do not depend on it.
      order: static, as in `sample`.

    Returns:
      int32 `[..., num]`, -1 where fewer tokens can be drawn and on bad rows (as in `sample`).

    Raises:
      TypeError, ValueError: a wrong dtype, shape or order, a field without the other one or the
        state that it needs; the message names the argument.

    References:
      The shared race is that of Daliri, Musco and Suresh, "Coupling without communication and
      drafter-invariant speculative decoding", arXiv 2408.07978.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([0.6, 0.3, 0.1, 0.0]))
    >>> print(nearest_draws(jax.random.key(1), logits, num=4))
    [ 2 0 1 -1]
    """
    x = opened(logits, axis_name, implementation)
    num = _checks.static_integer("num", num, 1, x.vocab)
    key, given = jnp.asarray(keys), SamplingParams() if params is None else params
    processed = processed_rows(key, x, given, state, order)
    rows, scale, (sums,) = _scan.scan_and_weigh(opened(processed, axis_name, implementation))
    noise, everything = _draw.random_words(key), _ranking.everything(rows)
    tokens = _draw.nearest(noise, rows, scale, sums, everything, num)
    return jnp.where(rows.bad[..., None], -1, tokens)
