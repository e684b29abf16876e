"""Stochastic beam search: distinct texts of a model, drawn without replacement."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _checks, _elementary, _lookup, _ranking, _selection
from jaxsample._core._elementary import LOG2_E, product
from jaxsample._core._parameters import IDS
from jaxsample._core._public import public
from jaxsample._core._pytrees import pytree
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, opened
from jaxsample.beams import extended, logits_of_beams
from jaxsample.without_replacement import without_replacement_sample


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class StochasticBeamState:
    """The beams of a stochastic search, both active and ended, in the order of their arrival.

    Attributes:
      tokens: int32 `[..., beams, max_length]`, with the stop token; then -1.
      lengths: int32 `[..., beams]`, with the stop token.
      logprobs: float32 `[..., beams]`, phi, the sum of the log-probabilities of these tokens; -inf
        for a missing beam.
      perturbed: float32 `[..., beams]`, G, minus the logarithm of the arrival time of the beam: a
        Gumbel variable with location phi. -inf for a missing beam.
      active: bool `[..., beams]`, whether the beam has not ended.
      threshold: float32 `[...]`, the largest G of the dropped beams; -inf if none was dropped. NaN
        if a beam was lost to a bad row, since no estimate is unbiased then.
    """

    tokens: Array
    lengths: Array
    logprobs: Array
    perturbed: Array
    active: Array
    threshold: Array

    @property
    def done(self) -> Array:
        """Whether all beams of a search have ended, bool `[...]`."""
        return ~jnp.any(self.active, axis=-1)


def init_stochastic_beams(
    num_beams: int, max_length: int, batch_shape: tuple[int, ...] = ()
) -> StochasticBeamState:
    """Returns the state before the first token: one empty beam.

    Args:
      num_beams: static, at least 1, the number of texts.
      max_length: static, at least 1, the largest number of generated tokens, without the prompt,
        which is not part of the state.
      batch_shape: static, `logits.shape[:-2]` in `stochastic_beam_step`.

    Returns:
      `StochasticBeamState`. All beams have the same prompt, so their logits in the first step may
      be copies.

    Raises:
      TypeError, ValueError: a value outside its range; the message names the argument.

    >>> print(init_stochastic_beams(3, 8).logprobs)
    [  0. -inf -inf]
    """
    num_beams = _checks.static_integer("num_beams", num_beams, 1, 2**16)
    max_length = _checks.static_integer("max_length", max_length, 1, 2**31 - 1)
    shape = (*batch_shape, num_beams)
    first = lax.broadcasted_iota(jnp.int32, shape, len(batch_shape)) == 0
    return StochasticBeamState(
        tokens=jnp.full((*shape, max_length), -1, jnp.int32),
        lengths=jnp.zeros(shape, jnp.int32),
        logprobs=jnp.where(first, jnp.float32(0), -jnp.inf),
        perturbed=jnp.where(first, jnp.float32(jnp.inf), -jnp.inf),  # at time 0
        active=first,
        threshold=jnp.full(batch_shape, -jnp.inf, jnp.float32),
    )


def _state(name: str, value: Any) -> StochasticBeamState:
    _checks.instance(name, value, StochasticBeamState)
    return value


@public(
    first="state",
    convert_first=_state,
    static=("axis_name", "implementation"),
    keys=lambda name, value, state: _checks.keys(name, value, state.active),
    logits=lambda name, value, state: logits_of_beams(name, value, state.active.shape),
    stop_token_ids=lambda name, value, state: (
        value if value is None else IDS(name, value, state.active)
    ),
)
def stochastic_beam_step(
    keys: ArrayLike,
    state: StochasticBeamState,
    logits: ArrayLike,
    *,
    stop_token_ids: ArrayLike | None = None,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> tuple[StochasticBeamState, Array, Array]:
    """Extends the beams of a search that draws distinct texts, and keeps the first to arrive.

    A text with arrival time t and probability e^phi has children, its continuations by a token. The
    first child is the token of `categorical_sample` and arrives at t. The others arrive at
    `t + (times - times[0]) / e^phi`, with the `arrival_times` of `without_replacement_sample`. A
    text that has ended, by a stop token or at `max_length`, keeps its time. The `beams` earliest of
    all of these are the next beams. When the search ends, the beams have the distribution of
    `beams` draws of whole texts without replacement, in order.

    Given the threshold of the last state, a text is among the beams with probability

        q = 1 - exp(-exp(phi - threshold))

    and the sum of `exp(phi) / q * f(text)` over the beams is an unbiased estimate of the mean of f
    over the texts of the model.

    Args:
      keys: one key, split over the searches, or an array of keys `[...]`, one a search: typed
        (`jax.random.key`) or raw uint32. Use new keys in each step, such as
        `request_keys(seeds, positions)`.
      state: from `init_stochastic_beams` or the last call.
      logits: `[..., beams, vocab]`, float32, bfloat16 or float16; -inf is masked. They follow the
        prompt in the first step, then the returned tokens. Logits of beams that have ended or are
        missing may be anything.
      stop_token_ids: integers `[n]` or `[..., n]`, one list a search; negative ids are padding.
        None: texts end at `max_length`.

    Returns:
      `(state, tokens, parents)`: the next state; int32 `[..., beams]`, the new token of each beam,
      -1 if the beam had ended or is missing; int32 `[..., beams]`, the index of the beam in the
      previous state, for `take_beams`. A beam whose row is bad (a NaN, +inf or no finite logit) is
      dropped. Other searches are not affected.

    References:
      Kool, van Hoof and Welling, "Stochastic beams and where to find them: the Gumbel-top-k trick
      for sampling sequences without replacement", arXiv 1903.06059, whose perturbed log-probs have
      the same distribution. The paper draws noise for all tokens and shifts it so that the largest
      value fits; here the race of the children continues from the time of the first child, and
      only a few children need noise.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> state = init_stochastic_beams(4, 2)
    >>> for key in jax.random.split(jax.random.key(0)):
    ...     state, *_ = stochastic_beam_step(key, state, jnp.tile(logits, (4, 1)))
    >>> print(state.tokens.tolist(), jnp.exp(state.logprobs))
    [[0, 1], [1, 0], [0, 0], [0, 2]] [0.15 0.15 0.25 0.1]
    """
    num_beams, x = state.active.shape[-1], opened(logits, axis_name)
    each = jax.vmap(lambda key: jax.random.split(key, num_beams))(jnp.asarray(keys).reshape(-1))
    drawn = without_replacement_sample(
        each.reshape(state.active.shape),
        logits,
        num=min(num_beams, x.vocab),
        axis_name=axis_name,
        implementation=implementation,
    )
    children = _children(state, drawn.tokens, drawn.logprobs, drawn.arrival_times)
    flat = jax.tree.map(lambda x: x.reshape(*x.shape[:-2], -1), children)
    perturbed, places, _ = _selection.top_k(flat.perturbed, num_beams + 1, _ranking.unsigned_zero)
    best = _Children(*(_lookup.take(x, places[..., :-1]) for x in flat))

    there = best.perturbed > -jnp.inf
    tokens = jnp.where(there, best.tokens, -1)
    parents = jnp.where(there, best.parents, _lookup.positions(best.parents))
    lengths = jnp.where(there, _lookup.take(state.lengths, parents), 0)
    ends = (tokens < 0) | (lengths + 1 >= state.tokens.shape[-1])
    if stop_token_ids is not None:
        stops = jnp.asarray(stop_token_ids)[..., None, :]
        ends |= jnp.any(tokens[..., None] == stops, axis=-1)
    texts = extended(state.tokens, parents, tokens, lengths)
    lost = jnp.any(state.active & jnp.isnan(drawn.arrival_times[..., 0]), axis=-1)
    threshold = jnp.maximum(state.threshold, perturbed[..., -1])
    after = StochasticBeamState(
        tokens=jnp.where(there[..., None], texts, -1),
        lengths=jnp.where(tokens >= 0, lengths + 1, lengths),
        logprobs=jnp.where(there, best.logprobs, -jnp.inf),
        perturbed=best.perturbed,
        active=there & ~ends,
        threshold=jnp.where(lost, jnp.nan, threshold),
    )
    return after, tokens, parents


class _Children(NamedTuple):
    """The candidates for the next beams, `[..., beams, n]`: children, and beams that have ended.

    Attributes:
      perturbed: float32; -inf for padding.
      logprobs: float32, of the whole text.
      tokens: int32; -1 for a beam that has ended.
      parents: int32.
    """

    perturbed: Array
    logprobs: Array
    tokens: Array
    parents: Array


def _children(
    state: StochasticBeamState, tokens: Array, logprobs: Array, arrival_times: Array
) -> _Children:
    """Returns the children of the active beams and the next arrival of each, and ended beams."""
    first = jnp.where(state.lengths == 0, 0, arrival_times[..., 0])
    phi = state.logprobs[..., None]
    late = _elementary.log(arrival_times - first[..., None]) - phi
    perturbed = -_log_add_exp(-state.perturbed[..., None], late)
    perturbed = jnp.where(state.active[..., None] & ~jnp.isnan(perturbed), perturbed, -jnp.inf)
    ended = jnp.where(state.active, -jnp.inf, state.perturbed)[..., None]
    none = jnp.full_like(tokens[..., :1], -1)
    found = jnp.concatenate([perturbed, ended], axis=-1)
    return _Children(
        perturbed=found,
        logprobs=jnp.concatenate([phi + logprobs, phi, phi], axis=-1),
        tokens=jnp.concatenate([tokens, none, none], axis=-1),
        parents=lax.broadcasted_iota(jnp.int32, found.shape, found.ndim - 2),
    )


def _log_add_exp(a: Array, b: Array) -> Array:
    """Returns `log(e^a + e^b)`, exactly `a` where b is -inf."""
    a, b = jnp.broadcast_arrays(a, b)
    largest = jnp.maximum(a, b)
    less = jnp.where(a == b, 0, jnp.abs(a - b))
    return largest + _elementary.log(1 + _elementary.exp2(product(less, -LOG2_E)))
