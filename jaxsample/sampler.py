"""`sample`: the stages that the params ask for, in order, then the draw, in one program."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _checks, _chunks, _draw, _normalizer, _prefix, _ranking, _scan, _shards
from jaxsample._core._checks import MAX_VOCAB
from jaxsample._core._chunks import Implementation, Rows, Source, opened
from jaxsample._core._draw import Drawn
from jaxsample._core._prefix import Candidates
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

_MODES = ("processed_logprobs", "raw_logprobs", "scaled_logprobs")


class SampleOutput(NamedTuple):
    """The output of `sample`.

    Attributes:
      tokens: int32 `[...]`; -1, or `bad_token`, on a bad row.
      logprobs: float32 `[...]`, of each token, under the distribution that it was drawn from
        unless `logprobs_mode` says otherwise; NaN on a bad row. Differentiable in the logits. Where
        `logprobs_mode` is a tuple, a dictionary by mode, as are `ranks` and `top_logprobs`.
      num_kept: int32 `[...]`, the number of tokens that the draw chose from; 0 on a bad row.
      ranks: int32 `[...]`, the place of each token in the ranking, from 0; -1 on a bad row. None
        without `num_logprobs`.
      top_logprobs: `(logprobs, tokens)`, `[..., num_logprobs]`, the likeliest tokens. None without
        `num_logprobs`.
      kept_mask: int32 `[..., ceil(vocab / 32)]`, the tokens that the draw chose from, packed, for
        `replay_logprobs`; empty on a bad row. None without `return_kept`.
    """

    tokens: Array
    logprobs: Any
    num_kept: Array
    ranks: Any = None
    top_logprobs: Any = None
    kept_mask: Array | None = None


def checked_state(name: str, value: Any, shape: tuple[int, ...]) -> SamplerState | None:
    """Returns the state of logits of a shape, or None."""
    if not isinstance(value, SamplerState | None):
        raise TypeError(f"{name} must be a SamplerState or None, got {type(value).__name__}")
    if value is not None and value.counts.shape != shape:
        raise ValueError(f"{name} must be of logits of shape {value.counts.shape}, got {shape}")
    return value


def state_of_rows(name: str, value: Any, logits: Array) -> SamplerState | None:
    """Returns the state of logits, or None."""
    return checked_state(name, value, logits.shape)


def _modes(name: str, value: Any, _: Array) -> str | tuple[str, ...]:
    modes = value if isinstance(value, tuple) else (value,)
    if not modes or not set(modes) <= {*_MODES}:
        raise ValueError(f"{name} must be one of {_MODES} or a tuple of them, got {value!r}")
    return value


def _bool(name: str, value: Any, _: Array) -> bool:
    return bool(value)


OPTION_CONVERTERS: dict[str, Any] = {
    "num_logprobs": static_integer(0, MAX_VOCAB),
    "logprobs_mode": _modes,
    "return_kept": _bool,
}
"""The converters of the static options of `sample`."""


@public(
    key=_checks.keys,
    params=converted,
    state=state_of_rows,
    bad_token=static_integer(-1, MAX_VOCAB),
    **OPTION_CONVERTERS,
)
def sample(
    key: ArrayLike,
    logits: ArrayLike,
    params: SamplingParams,
    state: SamplerState | None = None,
    *,
    order: Order = DEFAULT_ORDER,
    num_logprobs: int = 0,
    logprobs_mode: str | tuple[str, ...] = "processed_logprobs",
    return_kept: bool = False,
    bad_token: int = -1,
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
      order: static, the names of the stages, as `DEFAULT_ORDER`, or a name of `ORDERS`: "vllm",
        "hf", "llama_cpp", "maxtext", "sglang_jax". A nested tuple judges its stages on the same
        distribution, and a `Rule` is a rule of the caller.
      num_logprobs: static, in [0, vocab]: also return the likeliest tokens and the token's rank.
      logprobs_mode: static, "processed_logprobs", of the distribution that was drawn from;
        "raw_logprobs", of the logits as they were given; or "scaled_logprobs", of the logits after
        all rules but those that drop tokens by their distribution, with greedy rows at temperature
        1: what a policy is trained on. A tuple asks for several.
      return_kept: static, also return which tokens the draw chose from.
      bad_token: static, in [-1, vocab), the token that bad rows get: that of padding in a loop that
        does not look for -1, which it must not write as text. Their log-probability stays NaN and
        `num_kept` 0.

    Returns:
      `SampleOutput`. A bad row (a NaN, +inf or no finite logit, none left by the rules, a
      parameter outside its range) gets `bad_token` and log-probability NaN and touches no other
      row.

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
    bad_token = _checks.static_integer("bad_token", bad_token, -1, x.vocab - 1)
    options = Options(order, num_logprobs, logprobs_mode, return_kept)
    out = sample_rows(jnp.asarray(key), x, params, state, options)
    if bad_token < 0:
        return out
    return out._replace(tokens=jnp.where(out.tokens < 0, bad_token, out.tokens))


class Options(NamedTuple):
    """The static options of `sample`, as it explains them."""

    order: Order
    num_logprobs: int
    logprobs_mode: str | tuple[str, ...]
    return_kept: bool


def sample_rows(
    keys: Array, x: Source, params: SamplingParams, state: SamplerState | None, options: Options
) -> SampleOutput:
    """Draws a token of each row of a source, as `sample`."""
    num_logprobs = _checks.static_integer("num_logprobs", options.num_logprobs, 0, x.vocab)
    out = _output(chosen(keys, x, params, state, options.order), num_logprobs, options.return_kept)

    def of_mode(mode: str) -> SampleOutput:
        if mode == "processed_logprobs":
            return out
        if mode == "scaled_logprobs":
            scaled = _uncut(keys, x, params, state, options.order)
            return _with_logprobs(out, scaled, num_logprobs)
        return _with_logprobs(out, x, num_logprobs)

    if isinstance(options.logprobs_mode, str):
        return of_mode(options.logprobs_mode)
    by_mode = {mode: of_mode(mode) for mode in options.logprobs_mode}
    names = ("logprobs", "ranks", "top_logprobs") if num_logprobs else ("logprobs",)
    fields: Any = {n: {mode: getattr(each, n) for mode, each in by_mode.items()} for n in names}
    return out._replace(**fields)


def _uncut(
    keys: Array, x: Source, params: SamplingParams, state: SamplerState | None, order: Order
) -> Source:
    """Returns the logits after the rules that drop no token, greedy rows at temperature 1."""
    if params.temperature is not None:
        temperature = jnp.asarray(params.temperature)
        params = dataclasses.replace(
            params, temperature=jnp.where(temperature == 0, 1, temperature)
        )
    groups = planned(params, state, order).groups
    kept = tuple(group for group in groups if not any(stage.drops for stage in group))
    return applied(kept, keys, x, params, state)


@public(
    static=("order", "axis_name", "implementation"),
    params=converted,
    state=state_of_rows,
    key=lambda name, value, logits: None if value is None else _checks.keys(name, value, logits),
)
def process_logits(
    logits: ArrayLike,
    params: SamplingParams,
    state: SamplerState | None = None,
    *,
    key: ArrayLike | None = None,
    order: Order = DEFAULT_ORDER,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Applies the rules that the params ask for, in order, without a draw.

    Returns the logits that `sample` draws from: with the same keys,
    `categorical_sample(key, process_logits(logits, params, state))` returns its tokens and
    `token_logprobs` its log-probabilities, bit for bit. `sample` is faster, since it writes no
    logits where it needs none.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      params: what to apply; fields that are None cost nothing.
      state: what the rows hold so far, for the rules that look back.
      key: that of `sample`, for `xtc`, the only rule that draws; None without it.
      order: static, as in `sample`.

    Returns:
      `[..., vocab]`, -inf for masked tokens; float32 if a rule computes new logits, else in the
      dtype of the logits. Differentiable in the logits. A bad row holds a NaN or no finite logit.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or order, a field without the other one, the
        state or the key that it needs; the message names the argument.

    >>> import jax, jax.numpy as jnp
    >>> params = SamplingParams(temperature=0.5, top_k=2)
    >>> print(process_logits(jnp.array([1.0, 3.0, 2.0]), params))
    [-inf 6. 4.]
    """
    x = opened(logits, axis_name, implementation)
    keys = None if key is None else jnp.asarray(key)
    return processed_rows(keys, x, params, state, order)


def processed_rows(
    keys: Array | None,
    x: Source,
    params: SamplingParams,
    state: SamplerState | None,
    order: Order,
) -> Array:
    """Returns the logits `[..., vocab]` that `sample` draws from."""
    if keys is None and params.xtc_probability is not None:
        raise ValueError("key must be given where params have xtc_probability")
    plan = planned(params, state, order)
    processed = applied(plan.groups, keys, x, params, state).logits
    if state is None:
        return processed
    return jnp.where(_outgrown(state)[..., None], jnp.nan, processed)


def _outgrown(state: SamplerState) -> Array:
    """Returns the rows `[...]` whose text has no room or no length."""
    return (state.lengths < 0) | (state.lengths > state.tokens.shape[-1])


def _with_logprobs(out: SampleOutput, x: Source, num_logprobs: int) -> SampleOutput:
    """Returns the output with log-probabilities and ranks of other logits."""
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


class Choice(NamedTuple):
    """The draw of each row, and the kept tokens that it chose from.

    Attributes:
      x: the logits, scaled by no temperature, and the masks.
      rows: `x`, scanned, with its temperature; bad where a parameter is, too.
      cut: the end of the kept tokens.
      drawn: the token, and the mass and the number of the kept ones.
      ranked: the candidates, or None: the draw did not look for them.
      divisor: the temperature as a divisor, with its gradient, or None.
    """

    x: Source
    rows: Rows
    cut: Cut
    drawn: Drawn
    ranked: Candidates | None
    divisor: Array | None

    @property
    def tokens(self) -> Array:
        """The tokens, -1 on bad rows."""
        return jnp.where(self.rows.bad, -1, self.drawn.tokens)

    @property
    def num_kept(self) -> Array:
        """The number of kept tokens, 0 on bad rows."""
        return jnp.where(self.rows.bad, 0, self.drawn.num_kept)

    def kept(self) -> Array:
        """Returns which tokens are kept, bool `[..., vocab]`."""
        masked = self.x.masked()
        keep = _ranking.is_kept(self.rows.read_to_cut(masked), self.rows.ids, self.cut)
        return keep & (self.rows.read(masked) > -jnp.inf) & ~self.rows.bad[..., None]

    def logprobs(self, tokens: Array) -> Array:
        """Returns the log-probabilities of kept tokens `[..., n]`."""
        keep, scaled = self.kept(), self.rows.divided_by(self.divisor)
        # Only the gradient reads `kept_logits`: their mass is known.
        kept_logits = jnp.where(keep, scaled.read(jnp.where(keep, self.x.logits, 0)), -jnp.inf)
        taken = _shards.take(self.x.logits, tokens, self.x.shards)
        taken = scaled.read(jnp.where(self.rows.bad[..., None], 0, taken))
        return _normalizer.logprobs(self.rows, self.drawn.mass, kept_logits, taken)


def chosen(
    keys: Array, x: Source, params: SamplingParams, state: SamplerState | None, order: Order
) -> Choice:
    """Applies the rules, the last of them fused with the draw, and draws."""
    plan = planned(params, state, order)
    processed = applied(plan.first, keys, x, params, state)
    mask, bad = mask_of(plan.masks, keys, processed, params, state)
    if state is not None:
        bad |= _outgrown(state)
    temperature: Any = params.temperature if plan.scales or plan.scales_after else None
    return _drawn(
        keys,
        opened(processed.logits, x.axis_name, x.implementation, mask),
        temperature,
        rules_of(plan.last, x, params),
        plan.scales_after,
        bad,
    )


def _drawn(
    keys: Array,
    x: Source,
    temperature: Array | None,
    rules: Rules,
    scales_after: bool,
    bad: Array,
) -> Choice:
    """Draws from logits that are scaled and cut, in either order; fused."""
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
    return Choice(x, rows._replace(bad=rows.bad | bad), cut, drawn, ranked, divisor)


def _output(choice: Choice, num_logprobs: int, return_kept: bool) -> SampleOutput:
    rows, tokens = choice.rows, choice.drawn.tokens
    out = SampleOutput(
        tokens=choice.tokens,
        logprobs=choice.logprobs(tokens[..., None])[..., 0],
        num_kept=choice.num_kept,
    )
    if num_logprobs:
        top, to_cut = _first_tokens(rows, choice.ranked, num_logprobs)
        inside = _ranking.is_kept(to_cut, top.token, choice.cut) & (top.logit > -jnp.inf)
        top_logprobs = choice.logprobs(top.token)
        out = out._replace(
            ranks=jnp.where(rows.bad, -1, _ranking.rank(rows, tokens)),
            top_logprobs=TopLogprobs(
                jnp.where(inside | rows.bad[..., None], top_logprobs, -jnp.inf),
                jnp.where(inside & ~rows.bad[..., None], top.token, -1),
            ),
        )
    return out._replace(kept_mask=packed_bitmask(choice.kept())) if return_kept else out


def _first_tokens(rows: Rows, ranked: Candidates | None, number: int) -> tuple[Cut, Array]:
    """Returns the first tokens of the ranking, and the logits by which they are cut."""

    def found() -> tuple[Cut, Array]:
        top, raw = _ranking.first(rows, number)
        return top, rows.read_to_cut(raw)

    if ranked is None or number > ranked.tokens.token.shape[-1]:
        return found()
    top = Cut(*(of[..., :number] for of in ranked.tokens))
    return lax.cond(jnp.all(ranked.complete | rows.bad), lambda: (top, top.logit), found)
