"""Drafts for speculative decoding: a drawn token and the tokens that nearly won the draw."""

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
    """Draws a token of each row, and returns it with the tokens that came nearest to being drawn.

    The first token is the one of `sample`. A draw is a race: the smallest time wins, first among
    chunks of 256 tokens, then among the tokens of the chunk. The other tokens are ordered by
    `log(time of the chunk / smallest time of a chunk) + log(time / smallest time in the chunk)`,
    the amount by which logits have to differ for the same key to draw that token. So, drawn from
    the logits of a draft model, they are good siblings for a tree of drafts: with `num=2`, one of
    them is usually accepted more often than any single draft could be.

    Args:
      keys: one key, split over the rows, or an array of keys `[...]`, one a row, typed or raw: the
        same keys as for the verification.
      logits: `[..., vocab]`, float32, bfloat16 or float16, of the draft model; -inf is masked.
      params: the parameters of the rules, as in `sample`; None: no rules. With rules, one array of
        logits is written.
      state: the text so far of each row, for rules that depend on it.
      num: static, in [1, vocab]. The tokens do not depend on it.
      order: static, as in `sample`.

    Returns:
      int32 `[..., num]`, padded with -1 if fewer tokens can be drawn; -1 on bad rows (as in
      `sample`).

    Raises:
      TypeError, ValueError: a wrong dtype, shape or order, or a field without the field or the
        state that it requires; the message names the argument.

    References:
      The race with shared noise: Daliri, Musco and Suresh, "Coupling without communication and
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
