"""Logits to logits, all tokens kept: how sharp the distribution is."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample import _checks, _chunks, _ranking


def scaled_logits(logits: ArrayLike, temperature: ArrayLike) -> Array:
    """Divides logits by a temperature: `softmax(logits / temperature)` is sharper the lower it is.

    At temperature 0 only the token of rank 0 is kept, with its logit as it was: greedy decoding.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      temperature: finite and at least 0, a scalar or `[...]`, 1 is neutral. Computed as
        `logits * (1 / temperature)` in float32.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, a
      temperature outside its range or so small that the largest logit overflows) are all NaN.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Ackley, Hinton and Sejnowski, "A learning algorithm for Boltzmann machines", 1985.

    >>> import jax
    >>> for temperature in (1.0, 0.5):
    ...     p = jax.nn.softmax(scaled_logits(jax.numpy.array([1.0, 2.0]), temperature))
    ...     print(f"{p[0]:.2f} {p[1]:.2f}")
    0.27 0.73
    0.12 0.88
    """
    logits = _checks.logits(logits)
    return _scaled_logits(logits, _checks.real("temperature", temperature, logits))


@jax.jit
def _scaled_logits(logits: Array, temperature: Array) -> Array:
    temperature = _checks.to_rows(temperature, logits)
    rate, greedy, bad = rate_of(temperature)
    rows = _chunks.look_over(lax.stop_gradient(logits), lax.stop_gradient(rate))
    best = _chunks.positions(logits) == _ranking.best(rows).token[..., None]
    keep = ~greedy[..., None] | best
    bad = (bad | rows.bad)[..., None]
    keep &= (logits > -jnp.inf) & ~bad
    # Other logits stay out of the product: its derivative by the temperature would be inf * 0.
    scaled = rows._replace(rate=rate).read(jnp.where(keep, logits, 0)).astype(logits.dtype)
    return jnp.where(bad, jnp.nan, jnp.where(keep, scaled, -jnp.inf))


def rate_of(temperature: Array) -> tuple[Array, Array, Array]:
    """What each temperature multiplies logits by, whether it is greedy, whether it is bad."""
    # Where subnormal numbers are flushed to 0 they are greedy, so let them be everywhere.
    greedy = (temperature >= 0) & (temperature < np.finfo(np.float32).tiny)
    bad = ~(temperature >= 0) | jnp.isinf(temperature)
    return 1 / jnp.where(greedy | bad, 1, temperature), greedy, bad
