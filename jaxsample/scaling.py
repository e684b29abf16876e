"""Temperature and smoothing: functions of logits that make a distribution sharper or flatter."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _elementary, _moments, _ranking, _rows, _scan, _shards
from jaxsample._core._elementary import product, rounded
from jaxsample._core._parameters import FROM_1, NOT_NEGATIVE
from jaxsample._core._public import public
from jaxsample._core._rows import Rows
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, Source, opened


@public(temperature=NOT_NEGATIVE)
def scaled_logits(
    logits: ArrayLike,
    temperature: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Divides logits by a temperature; a lower one makes `softmax(logits / temperature)` sharper.

    A temperature of 0, or one so small that the largest logit overflows, keeps only the token of
    rank 0, with its logit unchanged: greedy decoding.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      temperature: finite and at least 0, a scalar or `[...]`, 1 is neutral. Computed as
        `logits * (1 / temperature)` in float32.

    Returns:
      float32 `[..., vocab]`. Bad rows (a NaN, +inf or no finite logit, a temperature outside its
      range) are NaN throughout.

    References:
      Ackley, Hinton and Sejnowski, "A learning algorithm for Boltzmann machines", 1985.

    >>> import jax
    >>> for temperature in (1.0, 0.5):
    ...     p = jax.nn.softmax(scaled_logits(jax.numpy.array([1.0, 2.0]), temperature))
    ...     print(f"{p[0]:.2f} {p[1]:.2f}")
    0.27 0.73
    0.12 0.88
    """
    x = opened(logits, axis_name, implementation)
    return _scaled(x, _scan.scan(x), x.per_row(temperature))


def _scaled(x: Source, rows: Rows, temperature: Array) -> Array:
    """Returns the logits of scanned rows, divided by one temperature per row."""
    divisor, greedy, bad = divisor_of(temperature)
    rows = _rows.scaled_after(rows, 1 / lax.stop_gradient(divisor))
    best = rows.ids == _ranking.best(rows).token[..., None]
    keep = ~(greedy | rows.overflows)[..., None] | best
    bad = (bad | rows.bad)[..., None]
    keep &= (x.logits > -jnp.inf) & ~bad
    # Other logits stay out of the product: its derivative by the temperature would be inf * 0.
    scaled = rows.divided_by(divisor).read(jnp.where(keep, x.logits, 0))
    return jnp.where(bad, jnp.nan, jnp.where(keep, scaled, -jnp.inf))


@public(low=NOT_NEGATIVE, high=NOT_NEGATIVE, exponent=NOT_NEGATIVE)
def entropy_scaled_logits(
    logits: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    exponent: ArrayLike = 1.0,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Divides logits by a temperature that rises with the entropy: dynamic temperature.

    `temperature = low + (high - low) * (entropy / log(n))**exponent`, where n is the number of
    tokens that are not masked; a single token gives `low`. As in `scaled_logits`, a temperature of
    0, or one so small that the largest logit overflows, keeps only the token of rank 0.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      low: finite and at least 0, a scalar or `[...]`; with `high`, 1 is neutral.
      high: finite and at least 0, a scalar or `[...]`.
      exponent: finite and at least 0, a scalar or `[...]`.

    Returns:
      float32 `[..., vocab]`. Bad rows (a NaN, +inf or no finite logit, a parameter outside its
      range) are NaN throughout.

    References:
      Dynamic temperature in koboldcpp and llama.cpp: https://github.com/ggml-org/llama.cpp.

    >>> import jax.numpy as jnp
    >>> print(entropy_scaled_logits(jnp.array([[1.0, 1.0], [0.0, 80.0]]), 0.5, 2.0))
    [[  0.5   0.5]
     [  0.  160. ]]
    """
    x = opened(logits, axis_name, implementation)
    low, high, exponent = map(x.per_row, (low, high, exponent))
    rows, scale, (sums, number) = _scan.scan_and_weigh(x, counted=True)
    entropy, _ = _moments.entropy(rows, scale, sums)
    most = _elementary.log(number.astype(jnp.float32))
    share = jnp.where(most > 0, jnp.minimum(entropy / most, 1), 0)
    power = _elementary.exp2(exponent * (_elementary.log(share) * _elementary.LOG2_E))
    share = lax.stop_gradient(jnp.where(exponent == 0, 1, power))
    temperature = low + rounded((high - low) * share)
    good = [NOT_NEGATIVE.inside(parameter) for parameter in (low, high, exponent)]
    return _scaled(
        x, rows, jnp.where(functools.reduce(jnp.logical_and, good), temperature, jnp.nan)
    )


@public(factor=NOT_NEGATIVE, curve=FROM_1)
def smoothed_logits(
    logits: ArrayLike,
    factor: ArrayLike,
    curve: ArrayLike = 1.0,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Lowers logits by a polynomial of their distance d from the largest: quadratic smoothing.

    Returns `max - factor * d**2 * (3 - curve) / 2 - factor * d**3 * (curve - 1) / 2`: logits near
    the maximum come closer to it, and distant ones move away from it.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      factor: finite and at least 0, a scalar or `[...]`; 0 is neutral.
      curve: finite and at least 1, a scalar or `[...]`; 1 leaves only the quadratic term.

    Returns:
      float32 `[..., vocab]`. Bad rows (a NaN, +inf or no finite logit, a parameter outside its
      range) are NaN throughout.

    References:
      Quadratic sampling in text-generation-webui, pull requests 5403 and 5551, 2024.

    >>> import jax.numpy as jnp
    >>> print(smoothed_logits(jnp.array([5.0, 4.5, 2.0]), 1.0))
    [ 5.    4.75 -4.  ]
    """
    x = opened(logits, axis_name, implementation)
    factor, curve = (x.per_row(parameter)[..., None] for parameter in (factor, curve))
    rows = _scan.scan(x)
    bad = ~(NOT_NEGATIVE.inside(factor) & FROM_1.inside(curve)) | rows.bad[..., None]
    wide = x.logits.astype(jnp.float32)
    finite = (wide > -jnp.inf) & ~bad
    best = _ranking.best(rows).token[..., None]
    row_max = jnp.where(bad, 0, _shards.take(wide, best, x.shards))
    distance = row_max - jnp.where(finite, wide, 0)
    bend = (3 - curve) / 2 + product((curve - 1) / 2, distance)
    # The maximum prevents contraction into a fused multiply-add, as in `product`; it keeps +inf.
    fall = jnp.maximum(factor * distance * distance * bend, np.finfo(np.float32).min)
    smoothed = rounded(row_max - fall)
    smoothed = jnp.where(finite & (factor != 0), smoothed, wide)
    return jnp.where(bad, jnp.nan, smoothed)


def divisor_of(temperature: Array) -> tuple[Array, Array, Array]:
    """Returns the divisor of each temperature, whether it is greedy, and whether it is bad."""
    # Some platforms flush subnormal numbers to 0, so they are greedy on all platforms.
    greedy = (temperature >= 0) & (temperature < np.finfo(np.float32).tiny)
    bad = ~NOT_NEGATIVE.inside(temperature)
    return jnp.where(greedy | bad, 1, temperature), greedy, bad
