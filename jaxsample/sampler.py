"""`sample`: the stages that the params ask for, in order, then the draw, in one program."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _checks, _chunks, _draw, _normalizer, _prefix, _ranking, _scan, _shards
from jaxsample._core._checks import MAX_VOCAB
from jaxsample._core._chunks import Implementation, Rows, Source, opened
from jaxsample._core._public import public, static_integer
from jaxsample._core._ranking import Cut
from jaxsample._core._search import Kept, Rules
from jaxsample._core._shards import AxisName
from jaxsample.constraints import packed_bitmask
from jaxsample.logprobs import TopLogprobs, token_logprobs, token_ranks, top_logprobs
from jaxsample.orders import DEFAULT_ORDER, Order
from jaxsample.params import SamplingParams, converted
from jaxsample.scaling import divisor_of
from jaxsample.stages import applied, mask_of, planned, rules_of
from jaxsample.state import SamplerState

_MODES = ("processed_logprobs", "raw_logprobs")


class SampleOutput(NamedTuple):
    """The output of `sample`.

    Attributes:
      tokens: int32 `[...]`; -1 on a bad row.
      logprobs: float32 `[...]`, of each token, under the distribution that it was drawn from
        unless `logprobs_mode` says otherwise; NaN on a bad row. Differentiable in the logits.
      num_kept: int32 `[...]`, the number of tokens that the draw chose from; 0 on a bad row.
      ranks: int32 `[...]`, the place of each token in the ranking, from 0; -1 on a bad row. None
        without `num_logprobs`.
      top_logprobs: `(logprobs, tokens)`, `[..., num_logprobs]`, the likeliest tokens. None without
        `num_logprobs`.
      kept_mask: int32 `[..., ceil(vocab / 32)]`, the tokens that the draw chose from, packed, for
        `replay_logprobs`; empty on a bad row. None without `return_kept`.
    """

    tokens: Array
    logprobs: Array
    num_kept: Array
    ranks: Array | None = None
    top_logprobs: TopLogprobs | None = None
    kept_mask: Array | None = None


def _state(name: str, value: Any, logits: Array) -> SamplerState | None:
    if not isinstance(value, SamplerState | None):
        raise TypeError(f"{name} must be a SamplerState or None, got {type(value).__name__}")
    if value is not None and value.counts.shape != logits.shape:
        raise ValueError(
            f"{name} must be of logits of shape {value.counts.shape}, got {logits.shape}"
        )
    return value


def _mode(name: str, value: Any, _: Array) -> str:
    if value not in _MODES:
        raise ValueError(f"{name} must be one of {_MODES}, got {value!r}")
    return str(value)


def _bool(name: str, value: Any, _: Array) -> bool:
    return bool(value)


@public(
    key=_checks.keys,
    params=converted,
    state=_state,
    num_logprobs=static_integer(0, MAX_VOCAB),
    logprobs_mode=_mode,
    return_kept=_bool,
)
def sample(
    key: ArrayLike,
    logits: ArrayLike,
    params: SamplingParams,
    state: SamplerState | None = None,
    *,
    order: Order = DEFAULT_ORDER,
    num_logprobs: int = 0,
    logprobs_mode: str = "processed_logprobs",
    return_kept: bool = False,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> SampleOutput:
    """Applies the rules that the params ask for, in order, and draws a token of each row.

    Returns the same tokens as the composition of the functions of its stages, bit for bit.
    Temperature, top-k, top-p and min-p at the end of the order, and the masks just in front of them
    (`allowed`, `bitmask`, `suppressed`, `bad_words`, `min_tokens`), are fused with the draw: fewer
    passes over the logits, and no intermediate logits are written:

        categorical_sample(key, min_p_logits(top_p_logits(top_k_logits(
            scaled_logits(logits, temperature), top_k), top_p), min_p))

    (`xtc` takes its own draw from `fold_in(key, 1)` of each row's key.) A token depends on the
    key of its row, its logits, params and state alone.

    Args:
      key: one key, split over the rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32. In a decoding loop, of `request_keys(seeds, positions)`.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked. They are read as they
        are, computed with in float32 and never rounded again.
      params: what to apply; fields that are None cost nothing.
      state: what the rows hold so far, for the rules that look back.
      order: static, the names of the stages; `DEFAULT_ORDER`, `VLLM_ORDER`, `HF_ORDER` and
        `LLAMA_CPP_ORDER` are there. A nested tuple judges its stages on the same distribution, and
        a `Rule` is a rule of the caller.
      num_logprobs: static, in [0, vocab]: also return the likeliest tokens and the token's rank.
      logprobs_mode: static, "processed_logprobs", of the distribution that was drawn from, or
        "raw_logprobs", of the logits as they were given.
      return_kept: static, also return which tokens the draw chose from.

    Returns:
      `SampleOutput`. A bad row (a NaN, +inf or no finite logit, none left by the rules, a
      parameter outside its range) gets token -1 and log-probability NaN and touches no other row.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or order, a field without the other one or the
        state that it needs; the message names the argument.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    >>> keys = jax.vmap(jax.random.key)(jnp.array([1, 2]))
    >>> params = SamplingParams(temperature=jnp.array([1.0, 0.0]), top_p=0.7)
    >>> out = sample(keys, logits, params)
    >>> print(out.num_kept, out.tokens[1], out.logprobs[1])
    [2 1] 2 0.0
    """
    x = opened(logits, axis_name, implementation)
    num_logprobs = _checks.static_integer("num_logprobs", num_logprobs, 0, x.vocab)
    keys, plan = jnp.asarray(key), planned(params, state, order)
    processed = applied(plan.first, keys, x, params, state)
    mask, bad = mask_of(plan.masks, keys, processed, params, state)
    if state is not None:
        bad |= (state.lengths < 0) | (state.lengths > state.tokens.shape[-1])
    temperature: Any = params.temperature if plan.scales or plan.scales_after else None
    raw = logprobs_mode == "raw_logprobs"
    out = _drawn(
        keys,
        opened(processed.logits, axis_name, implementation, mask),
        temperature,
        rules_of(plan.last, x, params),
        plan.scales_after,
        bad,
        0 if raw else num_logprobs,
        return_kept,
    )
    return _with_raw_logprobs(out, x, num_logprobs) if raw else out


def _with_raw_logprobs(out: SampleOutput, x: Source, num_logprobs: int) -> SampleOutput:
    """Returns the output with log-probabilities and ranks of the logits as they were given."""
    out = out._replace(
        logprobs=token_logprobs(
            x.logits, out.tokens, axis_name=x.axis_name, implementation=x.implementation
        )
    )
    if not num_logprobs:
        return out
    top = top_logprobs(x.logits, num=num_logprobs, axis_name=x.axis_name)
    bad = (out.tokens < 0)[..., None]
    top = TopLogprobs(jnp.where(bad, jnp.nan, top.logprobs), jnp.where(bad, -1, top.tokens))
    ranks = token_ranks(x.logits, out.tokens, axis_name=x.axis_name)
    return out._replace(ranks=ranks, top_logprobs=top)


def _drawn(
    keys: Array,
    x: Source,
    temperature: Array | None,
    rules: Rules,
    scales_after: bool,
    bad: Array,
    num_logprobs: int,
    return_kept: bool,
) -> SampleOutput:
    """Returns the draw from logits that are scaled and cut, in either order; fused."""
    divisor: Any = None
    beta: Any = None
    greedy: Any = None
    if temperature is not None:
        divisor, greedy, outside = divisor_of(x.per_row(temperature))
        beta = 1 / lax.stop_gradient(divisor)  # what is kept and drawn has no gradient
        bad |= outside
    rules, outside = _prefix.checked(x.vocab, rules)

    noise = _draw.random_words(keys)
    if rules.values:
        rows, top = _scan.scan_and_rank(x, None if scales_after else beta)
        scaled = _chunks.scaled_after(rows, beta) if scales_after else rows
        if temperature is not None:
            greedy |= scaled.overflows
        bad |= outside
        rules = dataclasses.replace(rules, greedy=greedy)
        rows = rows._replace(bad=rows.bad | bad)
        drawn, cut = _draw.draw_prefix(noise, rows, top, rules, beta if scales_after else None)
        rows = scaled
        # A temperature behind the cut may make equal what the candidates are ranked by.
        ranked = None if scales_after else top
    else:
        ranked = None
        rows, scale, kept = _scan.scan_and_weigh(x, beta, counted=True)
        if temperature is not None:
            greedy |= rows.overflows
        drawn, cut = _draw.draw_all(noise, rows, scale, Kept(*kept), greedy)
    rows = rows._replace(bad=rows.bad | bad)
    tokens = drawn.tokens

    # Only the gradient reads `kept_logits`: their mass is known.
    masked = x.masked()
    keep = _ranking.is_kept(rows.read_to_cut(masked), rows.ids, cut)
    keep &= (rows.read(masked) > -jnp.inf) & ~rows.bad[..., None]
    scaled = rows.divided_by(divisor)
    kept_logits = jnp.where(keep, scaled.read(jnp.where(keep, x.logits, 0)), -jnp.inf)

    def logprobs_of(tokens: Array) -> Array:
        chosen = _shards.take(x.logits, tokens, x.shards)
        chosen = scaled.read(jnp.where(rows.bad[..., None], 0, chosen))
        return _normalizer.logprobs(rows, drawn.mass, kept_logits, chosen)

    out = SampleOutput(
        tokens=jnp.where(rows.bad, -1, tokens),
        logprobs=logprobs_of(tokens[..., None])[..., 0],
        num_kept=jnp.where(rows.bad, 0, drawn.num_kept),
    )
    if num_logprobs:
        top, to_cut = _first_tokens(rows, ranked, num_logprobs)
        inside = _ranking.is_kept(to_cut, top.token, cut) & (top.logit > -jnp.inf)
        top_logprobs = logprobs_of(top.token)
        out = out._replace(
            ranks=jnp.where(rows.bad, -1, _ranking.rank(rows, tokens)),
            top_logprobs=TopLogprobs(
                jnp.where(inside | rows.bad[..., None], top_logprobs, -jnp.inf),
                jnp.where(inside & ~rows.bad[..., None], top.token, -1),
            ),
        )
    return out._replace(kept_mask=packed_bitmask(keep)) if return_kept else out


def _first_tokens(rows: Rows, ranked: Cut | None, number: int) -> tuple[Cut, Array]:
    """Returns the first tokens of the ranking, and the logits by which they are cut.

    Those that are `ranked` already, if they are as many.
    """
    if ranked is not None and number <= ranked.token.shape[-1]:
        top = Cut(*(of[..., :number] for of in ranked))
        return top, top.logit
    top, raw = _ranking.first(rows, number)
    return top, rows.read_to_cut(raw)
