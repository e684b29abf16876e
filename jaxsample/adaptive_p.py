"""Adaptive-p: draws tokens so that their mean probability approaches a target."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _checks, _chunks, _elementary, _normalizer, _scan, _shards
from jaxsample._core._elementary import LOG2_E, rounded
from jaxsample._core._parameters import FINITE, NOT_NEGATIVE, Parameter
from jaxsample._core._public import public
from jaxsample._core._pytrees import pytree
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, opened
from jaxsample.sampling import categorical_sample

_MAX_DECAY = np.float32(0.99)
_DECAY = Parameter(
    "iuf", f"in [0, {_MAX_DECAY:.2f}]", lambda decay: (decay >= 0) & (decay <= _MAX_DECAY)
)
_TARGET = Parameter("iuf", "at most 1", lambda target: target <= 1)
_PEAK, _SHARPNESS, _WIDTH = 5, 10, 0.3


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptivePParams:
    """Parameters of adaptive-p; each field is a scalar or broadcasts to `logits.shape[:-1]`.

    Attributes:
      target: the target of the mean probability, at most 1; a negative one is neutral.
      decay: in [0, 0.99], the decay of the mean, which spans about `1 / (1 - decay)` tokens.

    >>> AdaptivePParams(target=0.5, decay=1).validate()
    Traceback (most recent call last):
    ...
    ValueError: decay must be in [0, 0.99], got 1
    """

    target: ArrayLike
    decay: ArrayLike = 0.9

    def validate(self) -> None:
        """Checks the values on the host. (Traced code cannot: there, a bad value makes a bad row.)

        Raises:
          TypeError: a field that holds no real numbers.
          ValueError: a value outside its range; the message names the field, the row and the range.
        """
        _TARGET.validate("target", self.target)
        _DECAY.validate("decay", self.decay)


@pytree
class AdaptivePState(NamedTuple):
    """The state of adaptive-p: a decaying mean of the probabilities of the drawn tokens.

    Attributes:
      weighted_sum: float32 `[...]`, finite.
      total_weight: float32 `[...]`, finite and at least 0; 0 is an empty mean.
    """

    weighted_sum: Array
    total_weight: Array


def init_adaptive_p(params: AdaptivePParams, rows_shape: tuple[int, ...] = ()) -> AdaptivePState:
    """Returns the state before the first token, as if past tokens had had the target probability.

        total_weight = 1 / (1 - decay),  weighted_sum = target total_weight

    Args:
      params: fields that are scalars or broadcast to `rows_shape`.
      rows_shape: static, the `logits.shape[:-1]` of the draws.

    Returns:
      `AdaptivePState(weighted_sum, total_weight)`, float32 in the shape of the rows.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    >>> print(*init_adaptive_p(AdaptivePParams(target=0.5, decay=0.9)))
    5.0 10.0
    """
    _checks.instance("params", params, AdaptivePParams)
    rows = jnp.empty((*rows_shape, 1))
    target, decay = (
        _checks.to_rows(_checks.real(name, getattr(params, name), rows), rows)
        for name in ("target", "decay")
    )
    total_weight = 1 / (1 - decay)
    return AdaptivePState(jnp.maximum(target, 0) * total_weight, total_weight)


def _adaptive_p_params(name: str, value: Any, logits: Array) -> AdaptivePParams:
    _checks.instance(name, value, AdaptivePParams)
    target, decay = _TARGET("target", value.target, logits), _DECAY("decay", value.decay, logits)
    return AdaptivePParams(target=target, decay=decay)


def _adaptive_p_state(name: str, value: Any, logits: Array) -> AdaptivePState:
    _checks.instance(name, value, AdaptivePState)
    fields = value._asdict().items()
    return AdaptivePState(**{field: FINITE(field, of_it, logits) for field, of_it in fields})


@public(key=_checks.keys, params=_adaptive_p_params, state=_adaptive_p_state)
def adaptive_p_sample(
    key: ArrayLike,
    logits: ArrayLike,
    params: AdaptivePParams,
    state: AdaptivePState,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> tuple[Array, AdaptivePState]:
    """Draws tokens with probabilities close to a goal, which the mean of past draws corrects.

        goal = clip(2 target - weighted_sum / total_weight, 0, 1)
        d = |p - goal| / 0.3
        draw from softmax(5 - 10 d^2 / (1 + d))
        weighted_sum <- p(drawn token) + decay weighted_sum
        total_weight <- 1 + decay total_weight

    No token is dropped, and all unlikely tokens have nearly the same d = goal / 0.3. Truncate the
    logits first, for example with `min_p_logits`.

    Args:
      key: one key, split over the rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32. In a decoding loop, `fold_in(request_key, position)`.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      params: `AdaptivePParams(target, decay)`.
      state: from `init_adaptive_p` or the last call; its fields are scalars or `[...]`.

    Returns:
      The tokens, int32 `[...]`, and the next state. If the target is negative, the token is that of
      `categorical_sample(key, logits)`, and the state is unchanged. A bad row (a NaN, +inf or no
      finite logit, a parameter or state outside its range) gets token -1, keeps its state and does
      not affect other rows.

    References:
      llama.cpp's adaptive-p.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([0.75, 0.25]))
    >>> params = AdaptivePParams(target=0.0)
    >>> tokens, state = adaptive_p_sample(jax.random.key(0), logits, params, AdaptivePState(0, 0))
    >>> print(tokens, *state)
    1 0.25 1.0
    """
    x = lax.stop_gradient(opened(logits, axis_name, implementation))
    target, decay = map(x.per_row, lax.stop_gradient((params.target, params.decay)))
    state = AdaptivePState(*map(x.per_row, lax.stop_gradient(state)))
    bad = ~(_TARGET.inside(target) & _DECAY.inside(decay))
    bad |= ~(jnp.isfinite(state.weighted_sum) & NOT_NEGATIVE.inside(state.total_weight))
    rows, scale, (sums,) = _scan.scan_and_weigh(x)
    mass = _chunks.added_up(sums, scale)

    average = state.weighted_sum / jnp.where(state.total_weight > 0, state.total_weight, 1)
    goal = jnp.where(state.total_weight > 0, 2 * target - average, target)
    goal = lax.optimization_barrier(jnp.clip(goal, 0, 1))
    logprobs = _normalizer.logprobs(rows, mass, x.logits, x.logits)
    distance = rounded(
        jnp.abs(_elementary.exp2(logprobs * LOG2_E) - goal[..., None]) * (1 / _WIDTH)
    )
    adapted = _PEAK - rounded(_SHARPNESS * distance * distance / (1 + distance))
    adapted = jnp.where(x.logits == -jnp.inf, -jnp.inf, adapted)
    adapted = jnp.where((target < 0)[..., None], x.logits.astype(jnp.float32), adapted)
    adapted = jnp.where(bad[..., None], jnp.nan, adapted)
    # Written once: XLA would recompute them in each pass of the draw, with other rounding.
    tokens = categorical_sample(key, lax.optimization_barrier(adapted), axis_name=axis_name)

    chosen = _shards.take(x.logits, tokens[..., None], x.shards)
    chosen = _normalizer.logprobs(rows, mass, x.logits, chosen)[..., 0]
    p = rounded(_elementary.exp2(chosen * LOG2_E))
    weighted_sum, total_weight = (rounded(decay * past) for past in state)
    following = AdaptivePState(p + weighted_sum, 1 + total_weight)
    stays = (tokens < 0) | (target < 0)
    return tokens, jax.tree.map(lambda old, new: jnp.where(stays, old, new), state, following)
