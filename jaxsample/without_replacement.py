"""Sampling without replacement: several distinct tokens of each row."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _checks, _chunks, _draw, _mass, _normalizer, _renewals, _scan, _shards
from jaxsample._core._checks import MAX_VOCAB
from jaxsample._core._public import public, static_integer
from jaxsample._core._pytrees import pytree
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, opened


@pytree
class WithoutReplacement(NamedTuple):
    """Distinct tokens in the order in which they were drawn.

    Attributes:
      tokens: int32 `[..., num]`.
      logprobs: float32 `[..., num]`, `log softmax(logits)` of the tokens.
      arrival_times: float32 `[..., num + 1]`, ascending; the last one is of the next token.
    """

    tokens: Array
    logprobs: Array
    arrival_times: Array


@public(keys=_checks.keys, num=static_integer(1, MAX_VOCAB))
def without_replacement_sample(
    keys: ArrayLike,
    logits: ArrayLike,
    *,
    num: int,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> WithoutReplacement:
    """Draws `num` distinct tokens of each row, each from the softmax of the remaining tokens.

    Token i arrives at an exponentially distributed time with rate `p_i = softmax(logits)_i`, and
    the first `num` tokens to arrive are returned. This is the order of Gumbel-top-k, where
    `exp(-g)` is the arrival time of a token with perturbed log-probability g. The first token
    equals that of `categorical_sample` with the same key.

    Let kappa be the last of the arrival times. Given kappa, token i is drawn with probability
    `q_i = 1 - exp(-p_i * kappa)`, and the sum of `p_i / q_i * f(i)` over the drawn tokens is an
    unbiased estimate of the mean of f under the softmax. With q held constant, its gradient is an
    unbiased estimate of the gradient.

    A stochastic beam search needs only these times. If a text of log-probability phi arrives at
    time t, its children arrive at `t + (arrival_times - arrival_times[0]) / exp(phi)`, the first of
    them at t.

    Args:
      keys: one key, split over the rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked. The rate of a chunk of
        256 tokens is rounded to 2**-42 of the likeliest token's rate until one of its tokens is
        drawn, so a chunk that is more than 32 nats below the likeliest token is never drawn. Nor
        are tokens whose time overflows float32, about 87 nats below it.
      num: static, in [1, vocab]. Each token and time is independent of it.

    Returns:
      `(tokens, logprobs, arrival_times)`, `[..., num]`, `[..., num]` and `[..., num + 1]`. If fewer
      tokens can be drawn, they are padded with -1, -inf and inf. -1 and NaN on a bad row (a NaN,
      +inf or no finite logit). `logprobs` is differentiable in the logits; tokens and times are
      constants under differentiation.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or `num`; the message names the argument.

    References:
      Kool, van Hoof and Welling, "Stochastic beams and where to find them", arXiv 1903.06059, and
      "Estimating gradients for discrete random variables by sampling without replacement", arXiv
      2002.06043.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([0.6, 0.3, 0.1, 0.0]))
    >>> tokens, logprobs, times = without_replacement_sample(jax.random.key(1), logits, num=4)
    >>> print(tokens, jnp.exp(logprobs))
    [ 2 0 1 -1] [0.1 0.6 0.3 0. ]
    """
    x = opened(logits, axis_name, implementation)
    num = _checks.static_integer("num", num, 1, x.vocab)
    rows, scale, (sums,) = _scan.scan_and_weigh(x)
    mass, bad = _chunks.added_up(sums, scale), rows.bad[..., None]
    noise = _draw.random_words(jnp.asarray(keys))
    tokens, times = _renewals.arrivals(noise, rows, scale, sums, num)
    times = times * (_mass.to_float(mass) * 2.0**-_mass.FRACTION_BITS)[..., None]

    logprobs = _normalizer.logprobs(rows, mass, x.logits, _shards.take(x.logits, tokens, x.shards))
    drawn = bad | (times[..., :-1] < jnp.inf)
    return WithoutReplacement(
        jnp.where(drawn & ~bad, tokens, -1),
        jnp.where(drawn, logprobs, -jnp.inf),
        jnp.where(bad, jnp.nan, times),
    )
