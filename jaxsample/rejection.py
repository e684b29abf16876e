"""Speculative decoding by rejection: drafts of any model, texts distributed as the target's."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _checks, _draw, _lookup, _residual
from jaxsample._core._public import public
from jaxsample._core._residual import Distribution
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, Source, opened
from jaxsample.drawing import Choice, chosen
from jaxsample.orders import DEFAULT_ORDER, Order
from jaxsample.params import SamplingParams
from jaxsample.speculation import (
    SpeculativeOutput,
    paths,
    positioned_drafts,
    positioned_logits,
    positioned_params,
    positioned_state,
)
from jaxsample.state import SamplerState, after_drafts

_METHODS = ("chain", "block")

# Data folded into the keys of a step. `sample` draws with a split of a key, and XTC with its fold
# with 1, so drafts that were drawn with the same key share no noise with their verification.
_VERIFICATION, _RULES = 2, 3

_ACCEPTANCE = 2
"""The stream of the noise that accepts drafts; a draw uses streams 0 and 1."""


def _method(name: str, value: Any, _: Array) -> str:
    if value not in _METHODS:
        raise ValueError(f"{name} must be one of {_METHODS}, got {value!r}")
    return str(value)


def _draft_logits(name: str, value: ArrayLike, logits: Array) -> Array:
    drawn_from = _checks.logits(name, value)
    *lead, rows, vocab = logits.shape
    if drawn_from.shape != (*lead, rows - 1, vocab) or rows < 2:
        raise ValueError(
            f"{name} must have shape [..., drafts, vocab] for logits of shape [..., drafts + "
            f"1, vocab], with at least one draft, got {drawn_from.shape} and {logits.shape}"
        )
    return drawn_from


@public(
    convert_first=positioned_logits,
    keys=lambda name, value, logits: _checks.keys(name, value, logits[..., 0, :]),
    draft_tokens=positioned_drafts,
    draft_logits=_draft_logits,
    params=positioned_params,
    state=positioned_state,
    method=_method,
)
def rejection_sample(
    keys: ArrayLike,
    logits: ArrayLike,
    draft_tokens: ArrayLike,
    draft_logits: ArrayLike,
    params: SamplingParams,
    state: SamplerState | None = None,
    *,
    method: str = "chain",
    order: Order = DEFAULT_ORDER,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> SpeculativeOutput:
    """Accepts drafts of a model so that the text has the distribution of the target.

    Use it for drafts that were not drawn with the keys of their positions; for drafts that were,
    `speculative_sample` returns the same text as plain decoding. Let p be the probability of a
    token under the target after its rules, and q under the draft model. "chain" accepts drafts one
    after the other while `u * q < p`, u uniform in [0, 1), and draws the next token from
    `max(p - q, 0)`, normalised. "block" accepts i drafts for the largest i with `u_i < h_i`,

        w_0 = 1,  w_i = min(1, w_{i-1} * p_i / q_i)
        h_i = r / (r + 1 - w_i),  r = sum over tokens of max(w_i * p_{i+1} - q_{i+1}, 0)

    and `h_n = w_n` for n drafts, and draws the next token from `max(w_i * p_{i+1} - q_{i+1}, 0)`.
    On average, it accepts at least as many drafts as "chain". If all drafts are accepted, the next
    token is drawn from p.

    Args:
      keys: one key, split over the rows, or an array of keys `[...]`, one a row *and step*:
        `fold_in(request_key, position of the first draft)`. With one key a position, the step after
        a rejected draft would use the same keys again, which makes "block" biased.
      logits: `[..., n + 1, vocab]`, float32, bfloat16 or float16, of the target, after the text and
        after each draft.
      draft_tokens: integers `[..., n]`, a chain; a negative one ends it.
      draft_logits: `[..., n, vocab]`: each draft was drawn from their softmax, with a key that is
        independent of the others. `process_logits` applies rules to the logits of a draft model.
      params: of the target, of the rows `[...]` or of each position, as in `speculative_sample`.
      state: the text of each row before the drafts, for rules that depend on it.
      method: static, "chain" or "block". XTC, which draws at each position, requires "chain".
      order: static, as in `sample`.

    Returns:
      `SpeculativeOutput` with `depth` n; `logprobs` and `num_kept` are of p, and the fields of
      options are None. If a bad row (as in `sample`, or of the draft model) or a draft with q = 0
      is reached, the token after the accepted drafts is -1. "block" takes into account all drafts
      before the first of these.

    Raises:
      TypeError, ValueError: a wrong dtype, shape, order or method, or a field without the field or
        the state that it requires; the message names the argument.

    References:
      Leviathan, Kalman and Matias, "Fast inference from transformers via speculative decoding",
      arXiv 2211.17192; Chen et al., "Accelerating large language model decoding with speculative
      sampling", arXiv 2302.01318; for block, Sun et al., "Block verification accelerates
      speculative decoding", arXiv 2403.10444.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.5, 0.5, 0.0], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]]))
    >>> out = rejection_sample(jax.random.key(0), logits, [1, 2], logits[:2], SamplingParams())
    >>> print(out.tokens, out.num_accepted)
    [1 2 1] 2
    """
    step_keys, drafts = jnp.asarray(keys), jnp.asarray(draft_tokens)
    x = opened(logits, axis_name, implementation)
    target = _target(step_keys, x, drafts, params, state, order, method)
    p = _residual.of_kept(
        target.rows, target.cut, target.drawn.mass, target.num_kept, target.ranked
    )
    q = _residual.of_all(opened(draft_logits, axis_name, implementation))
    noise = _draw.random_words(_folded(step_keys, jnp.int32(_VERIFICATION)))
    verified = _verified(noise, p, q, drafts, method)
    last = _next_token(noise, p, q, drafts, verified)
    return _output(target, drafts, verified.number, last)


class _Verified(NamedTuple):
    """The accepted drafts of each row.

    Attributes:
      number: int32 `[...]`, of the accepted drafts.
      length: int32 `[...]`, of the drafts that could be accepted.
      factor: float32 `[...]`, of p in the residual after the accepted drafts.
    """

    number: Array
    length: Array
    factor: Array


def _verified(
    noise: Array, p: Distribution, q: Distribution, drafts: Array, method: str
) -> _Verified:
    wide = [(0, 0)] * (drafts.ndim - 1) + [(0, 1)]
    of_p = p.logprobs(jnp.pad(drafts, wide)[..., None])[..., :-1, 0]
    of_q = q.logprobs(drafts[..., None])[..., 0]
    known = (drafts >= 0) & (drafts < p.rows.vocab) & ~p.rows.bad[..., :-1] & ~q.rows.bad
    length = _leading(known & (of_q > -jnp.inf))
    place = _lookup.positions(drafts)
    ratios = _residual.exp(jnp.where(place < length[..., None], of_p - of_q, -jnp.inf))
    uniforms = _uniforms(noise, drafts)
    if method == "chain":
        number = _leading(uniforms < ratios)
        return _Verified(number, length, jnp.ones(number.shape))
    factors = _factors(ratios)
    chances = jnp.where(place + 1 < length[..., None], _chances(p, q, factors), factors[..., 1:])
    accepts = (uniforms < chances) & (place < length[..., None])
    number = jnp.max(jnp.where(accepts, place + 1, 0), axis=-1)
    return _Verified(number, length, _lookup.at(factors, number))


def _uniforms(noise: Array, drafts: Array) -> Array:
    """Returns the uniform noise that accepts each draft, in [0, 1), from 64 random bits."""
    place = _lookup.positions(drafts)
    return _draw.uniforms(noise, place, jnp.full_like(place, _ACCEPTANCE))


def _leading(flags: Array) -> Array:
    """Returns the number of True flags `[..., n]` before the first False one."""
    return _lookup.first_true(~flags)


def _factors(ratios: Array) -> Array:
    """Returns `w_0` to `w_n` of the ratios `p / q` of n drafts."""
    factors = [jnp.ones(ratios.shape[:-1])]
    for ratio in jnp.moveaxis(ratios, -1, 0):
        factors.append(jnp.minimum(factors[-1] * ratio, 1))
    return jnp.stack(factors, axis=-1)


def _chances(p: Distribution, q: Distribution, factors: Array) -> Array:
    """Returns `h_1` to `h_n` of the definition."""
    number, factor = q.rows.row_max.shape[-1], factors[..., 1:]
    if number == 1:
        return factor
    given = factors[..., 1:number]
    rest = _residual.total_excess(given, p, q)
    certain = given == 1
    chances = jnp.where(certain, 1, rest / jnp.where(certain, 1, rest + 1 - given))
    return jnp.concatenate([chances, factor[..., -1:]], axis=-1)


def _next_token(
    noise: Array, p: Distribution, q: Distribution, drafts: Array, verified: _Verified
) -> Array:
    """Returns the token after the accepted drafts, drawn from the residual or from p."""
    number, length, factor = verified
    rejected, place = number < length, jnp.minimum(number, drafts.shape[-1] - 1)
    at_end = p.at(number)
    of_p, over = at_end.all_logprobs(), _residual.log_excess(factor, at_end, q.at(place))
    rest = jnp.where(rejected[..., None], over, of_p)
    # Drawn from p also if the residual rounds to 0.
    token = _residual.drawn(noise, dataclasses.replace(q.rows.source, logits=rest), of_p)
    unknown = ~rejected & (number < drafts.shape[-1]) & (_lookup.at(drafts, place) >= 0)
    return jnp.where(unknown, -1, token)


def _output(target: Choice, drafts: Array, number: Array, last: Array) -> SpeculativeOutput:
    wide = [(0, 0)] * (drafts.ndim - 1) + [(0, 1)]
    tokens = jnp.pad(drafts, wide)
    place, end = _lookup.positions(tokens), number[..., None]
    tokens = jnp.where(place < end, tokens, jnp.where(place == end, last[..., None], -1))
    logprobs = target.logprobs(jnp.maximum(tokens, 0)[..., None])[..., 0]
    return SpeculativeOutput(
        tokens=tokens,
        num_accepted=number,
        nodes=jnp.where(place <= end, place, -1),
        logprobs=jnp.where(tokens >= 0, logprobs, jnp.nan),
        num_kept=jnp.where(tokens >= 0, target.num_kept, 0),
    )


def _folded(keys: Array, data: Array) -> Array:
    return jnp.vectorize(jax.random.fold_in)(keys, data)


def _target(
    keys: Array,
    x: Source,
    drafts: Array,
    params: SamplingParams,
    state: SamplerState | None,
    order: Order,
    method: str,
) -> Choice:
    """Returns the draws of the target after the text and after each draft."""
    if params.xtc_probability is not None and method != "chain":
        raise ValueError("method must be 'chain' if params have xtc_probability")
    if state is not None:
        texts, _ = paths(drafts, None, drafts.shape[-1])
        state = after_drafts(state, texts, is_chain=True)
    places = _lookup.positions(x.logits[..., 0])
    each = _folded(_folded(keys, jnp.int32(_RULES))[..., None], places)
    return chosen(each, x, params, state, order)
