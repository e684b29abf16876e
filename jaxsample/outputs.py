"""The output of `sample`, and the options that select its fields."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxsample._core import _bits, _checks, _ranking
from jaxsample._core._checks import MAX_VOCAB
from jaxsample._core._public import static_integer
from jaxsample._core._pytrees import pytree
from jaxsample._core._source import Source
from jaxsample.drawing import Choice, chosen, log_kept_mass, processed_rows, uncut
from jaxsample.logprobs import TopLogprobs, logprobs_of, token_ranks, top_logprobs
from jaxsample.orders import Order
from jaxsample.params import SamplingParams
from jaxsample.state import SamplerState

_MODES = ("processed_logprobs", "raw_logprobs", "scaled_logprobs")


@pytree
class SampleOutput(NamedTuple):
    """The output of `sample`.

    Attributes:
      tokens: int32 `[...]`; -1, or `bad_token`, on a bad row.
      logprobs: float32 `[...]`, of each token, under the distribution of the draw or of another
        `logprobs_mode`; NaN on a bad row. Differentiable in the logits. If `logprobs_mode` is a
        tuple, a dictionary by mode, as are `ranks`, `top_logprobs` and `token_id_logprobs`.
      num_kept: int32 `[...]`, the number of kept tokens, which the draw chose from; 0 on a bad row.
      ranks: int32 `[...]`, the rank of each token, from 0; -1 on a bad row. None without
        `num_logprobs`.
      top_logprobs: `(logprobs, tokens)`, `[..., num_logprobs]`, the likeliest tokens. None without
        `num_logprobs`.
      token_id_logprobs: float32 `[..., n]`, of `logprob_token_ids`: -inf for a token that has
        probability 0; NaN on a bad row and for ids outside the vocabulary. Differentiable in the
        logits. None without these ids.
      kept_mask: int32 `[..., ceil(vocab / 32)]`, the kept tokens as a packed mask, for
        `replay_logprobs`; empty on a bad row. None without `return_kept`.
      kept_ids: int32 `[..., num_kept_ids]`, the first kept tokens in the order of the ranking,
        padded with -1; all -1 on a bad row. None without `num_kept_ids`.
      log_kept_mass: float32 `[...]`, the log of the probability of the kept tokens before
        truncation, at most 0; NaN on a bad row. Without a gradient. None without
        `return_kept_mass`.
      entropy: float32 `[...]`, of the distribution of the draw, in nats; NaN on a bad row. Without
        a gradient. None without `return_entropy`.
      logits: `[..., vocab]`, as `process_logits` returns them. None without `return_logits`.
    """

    tokens: Array
    logprobs: Any
    num_kept: Array
    ranks: Any = None
    top_logprobs: Any = None
    token_id_logprobs: Any = None
    kept_mask: Array | None = None
    kept_ids: Array | None = None
    log_kept_mass: Array | None = None
    entropy: Array | None = None
    logits: Array | None = None


class Options(NamedTuple):
    """The static options of `sample`; see its docstring."""

    order: Order
    num_logprobs: int
    logprobs_mode: str | tuple[str, ...]
    return_kept: bool
    num_kept_ids: int
    return_kept_mass: bool
    return_entropy: bool
    return_logits: bool


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
    "num_kept_ids": static_integer(0, MAX_VOCAB),
    "return_kept_mass": _bool,
    "return_entropy": _bool,
    "return_logits": _bool,
}
"""The converters of the static options of `sample`."""


def sample_rows(
    keys: Array,
    x: Source,
    params: SamplingParams,
    state: SamplerState | None,
    options: Options,
    token_ids: Array | None,
) -> SampleOutput:
    """Draws a token of each row of a source, as `sample`; `token_ids` are `[..., n]` or None."""
    for name in ("num_logprobs", "num_kept_ids"):
        _checks.static_integer(name, getattr(options, name), 0, x.vocab)
    given = (keys, x, params, state, options.order)
    choice = chosen(*given)
    out = _output(choice, options, token_ids)
    if options.return_kept_mass:
        out = out._replace(log_kept_mass=log_kept_mass(choice, *given))
    if options.return_logits:
        out = out._replace(logits=processed_rows(*given))

    def of_mode(mode: str) -> SampleOutput:
        if mode == "processed_logprobs":
            return out
        return _with_logprobs(
            out, uncut(*given) if mode == "scaled_logprobs" else x, options, token_ids
        )

    if isinstance(options.logprobs_mode, str):
        return of_mode(options.logprobs_mode)
    by_mode = {mode: of_mode(mode) for mode in options.logprobs_mode}
    names = ("logprobs", "ranks", "top_logprobs", "token_id_logprobs")
    fields: Any = {
        name: {mode: getattr(each, name) for mode, each in by_mode.items()}
        for name in names
        if getattr(out, name) is not None
    }
    return out._replace(**fields)


def _output(choice: Choice, options: Options, token_ids: Array | None) -> SampleOutput:
    """Returns the output, with the log-probabilities of the distribution of the draw."""
    rows, tokens = choice.rows, choice.drawn.tokens
    out = SampleOutput(
        tokens=choice.tokens,
        logprobs=choice.logprobs(tokens[..., None])[..., 0],
        num_kept=choice.num_kept,
    )
    num_logprobs, num_kept_ids = options.num_logprobs, options.num_kept_ids
    if num_logprobs or num_kept_ids:
        first = choice.first(max(num_logprobs, num_kept_ids))
    if num_logprobs:
        top = first[..., :num_logprobs]
        logprobs = jnp.where(top < 0, -jnp.inf, choice.logprobs(top))
        out = out._replace(
            ranks=jnp.where(rows.bad, -1, _ranking.rank(rows, tokens)),
            top_logprobs=TopLogprobs(jnp.where(rows.bad[..., None], jnp.nan, logprobs), top),
        )
    if token_ids is not None:
        out = out._replace(token_id_logprobs=choice.logprobs(token_ids))
    if options.return_kept:
        out = out._replace(kept_mask=_bits.packed(choice.kept()))
    if num_kept_ids:
        out = out._replace(kept_ids=first[..., :num_kept_ids])
    return out._replace(entropy=choice.entropy()) if options.return_entropy else out


def _with_logprobs(
    out: SampleOutput, x: Source, options: Options, token_ids: Array | None
) -> SampleOutput:
    """Returns the output with log-probabilities and ranks of other logits."""
    bad = (out.tokens < 0)[..., None]
    ids = out.tokens[..., None]
    if token_ids is not None:
        ids = jnp.concatenate([ids, token_ids], axis=-1)
    logprobs = jnp.where(bad, jnp.nan, logprobs_of(x, ids))
    out = out._replace(logprobs=logprobs[..., 0])
    if token_ids is not None:
        out = out._replace(token_id_logprobs=logprobs[..., 1:])
    if not options.num_logprobs:
        return out
    top = top_logprobs(x.logits, num=options.num_logprobs, axis_name=x.axis_name)
    top = TopLogprobs(jnp.where(bad, jnp.nan, top.logprobs), jnp.where(bad, -1, top.tokens))
    ranks = token_ranks(x.logits, out.tokens, axis_name=x.axis_name)
    return out._replace(ranks=ranks, top_logprobs=top)
