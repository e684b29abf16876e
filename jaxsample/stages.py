"""The stages of `sample`: one record for each rule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _bits, _checks
from jaxsample._core._parameters import BAD_WORDS, IDS, WORD_LENGTHS
from jaxsample._core._source import Source
from jaxsample.constraints import (
    Banned,
    allowed_logits,
    before_min_tokens,
    biased_logits,
    bitmask_logits,
    forced_logits,
    guided_logits,
    suppressed,
    without,
)
from jaxsample.orders import Rule
from jaxsample.params import SamplingParams
from jaxsample.penalties import (
    dry_penalized_logits,
    frequency_penalized_logits,
    no_repeat_ngram_logits,
    presence_penalized_logits,
    repetition_penalized_logits,
)
from jaxsample.scaling import entropy_scaled_logits, scaled_logits, smoothed_logits
from jaxsample.sequences import bad_words, sequence_biased_logits
from jaxsample.state import DraftedState, SamplerState
from jaxsample.truncation import (
    epsilon_logits,
    eta_logits,
    min_p_logits,
    p_less_logits,
    tail_free_logits,
    top_a_logits,
    top_h_logits,
    top_k_logits,
    top_n_sigma_logits,
    top_p_logits,
    typical_p_logits,
    xtc_logits,
)


class StageInput(NamedTuple):
    """The input of a stage.

    Attributes:
      keys: one a row, or None if no stage draws.
      x: the logits after the previous stages.
      given: the fields of the stage that are not None.
      state: the `SamplerState` or None.
    """

    keys: Any
    x: Source
    given: dict[str, Any]
    state: Any

    @property
    def logits(self) -> Array:
        return self.x.logits

    @property
    def axis(self) -> dict[str, Any]:
        """The keyword arguments of a rule without kernels."""
        return {"axis_name": self.x.axis_name}

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of a rule with kernels, which takes `implementation`."""
        return {**self.axis, "implementation": self.x.implementation}


class Stage(NamedTuple):
    """A rule as a stage of `sample`.

    Attributes:
      name: its name in an order.
      apply: returns new logits.
      fields: the fields of `SamplingParams` that it requires.
      optional: the fields that have a default.
      shared: the fields that several stages read. They enable none of these stages.
      needs_state: whether it requires the `SamplerState`.
      counts: whether it is elementwise in the logits and the counts of the tokens.
      drops: whether it is a truncation: it only drops tokens, by their distribution.
      mask: for a mask that does not depend on the logits, returns the packed mask of the tokens
        that it keeps, or the tokens that it bans.
    """

    name: str
    apply: Callable[[StageInput], Array]
    fields: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    needs_state: bool = False
    counts: bool = False
    drops: bool = False
    mask: Callable[[StageInput], Array | Banned] | None = None


def _of(
    name: str,
    rule: Callable[..., Array],
    *fields: str,
    kernels: bool = True,
    drops: bool = False,
    mask: Callable[[StageInput], Array] | None = None,
) -> Stage:
    """Returns the stage of a rule that takes the logits and then its fields."""

    def apply(i: StageInput) -> Array:
        options = i.options if kernels else i.axis
        return rule(i.logits, *(i.given[f] for f in fields), **options)

    return Stage(name, apply, fields, drops=drops, mask=mask)


def _bans(
    name: str, banned: Callable[[StageInput], Banned], *fields: str, needs_state: bool = False
) -> Stage:
    """Returns the stage that masks a few tokens."""

    def apply(i: StageInput) -> Array:
        return without(i.x, banned(i))

    return Stage(name, apply, fields, needs_state=needs_state, mask=banned)


def _by_count(name: str, apply: Callable[[StageInput], Array]) -> Stage:
    """Returns the stage of a penalty that depends on the count of each token."""
    shared = ("penalty_window", "exempt_token_ids")
    return Stage(name, apply, (name,), shared=shared, needs_state=True, counts=True)


def custom(rule: Rule) -> Stage:
    """Returns the stage of a user-defined rule."""

    def apply(i: StageInput) -> Array:
        logits = jnp.asarray(rule.function(i.logits, i.given.get(rule.name), i.state))
        if logits.dtype not in _checks.FLOATS or logits.shape != i.logits.shape:
            raise ValueError(
                f"rule {rule.name!r} must return floating logits of shape {i.logits.shape}, got "
                f"{logits.dtype} of shape {logits.shape}"
            )
        # Written once: XLA would recompute them in each pass of the draw, with other rounding.
        return lax.optimization_barrier(logits)

    return Stage(rule.name, apply)


def _named(i: StageInput, prefix: str) -> dict[str, Any]:
    """Returns the fields of a stage by the names of its function's arguments."""
    return {field.removeprefix(prefix): value for field, value in i.given.items()}


def _allowed(i: StageInput) -> Array:
    return _bits.packed(_checks.per_token("allowed", i.given["allowed"], i.logits, "b"))


def _bitmask(i: StageInput) -> Array:
    return _checks.bitmask("bitmask", i.given["bitmask"], i.logits)


def _suppressed(i: StageInput) -> Banned:
    return suppressed(i.x, IDS("suppressed_token_ids", i.given["suppressed_token_ids"], i.logits))


def _bad_words(i: StageInput) -> Banned:
    words = BAD_WORDS("bad_words", i.given["bad_words"], i.logits)
    lengths = WORD_LENGTHS("bad_word_lengths", i.given["bad_word_lengths"], i.logits)
    return bad_words(i.x, i.state.tokens, i.state.lengths, words, lengths)


def _min_tokens(i: StageInput) -> Banned:
    written = i.state.lengths - i.state.prompt_lengths
    stops = IDS("stop_token_ids", i.given["stop_token_ids"], i.logits)
    return before_min_tokens(i.x, stops, written, i.given["min_tokens"])


def _no_repeat_ngram(i: StageInput) -> Array:
    n = i.given["no_repeat_ngram_size"]
    return no_repeat_ngram_logits(i.logits, i.state.tokens, i.state.lengths, n, **i.axis)


def _repetition(i: StageInput) -> Array:
    seen = _bits.unpacked(i.state.prompt_mask, i.logits.shape[-1]) | (i.state.counts > 0)
    return repetition_penalized_logits(i.logits, seen, i.given["repetition_penalty"], **i.axis)


def _frequency(i: StageInput) -> Array:
    penalty = i.given["frequency_penalty"]
    return frequency_penalized_logits(i.logits, i.state.counts, penalty, **i.axis)


def _presence(i: StageInput) -> Array:
    penalty = i.given["presence_penalty"]
    return presence_penalized_logits(i.logits, i.state.counts, penalty, **i.axis)


def _dry(i: StageInput) -> Array:
    return dry_penalized_logits(
        i.logits, i.state.tokens, i.state.lengths, **_named(i, "dry_"), **i.axis
    )


def _sequence_bias(i: StageInput) -> Array:
    listed = (i.given[f"sequence_bias{part}"] for part in ("_tokens", "_lengths", ""))
    return sequence_biased_logits(i.logits, i.state.tokens, i.state.lengths, *listed, **i.axis)


def _dynatemp(i: StageInput) -> Array:
    return entropy_scaled_logits(i.logits, **_named(i, "dynatemp_"), **i.options)


def _smoothing(i: StageInput) -> Array:
    return smoothed_logits(i.logits, **_named(i, "smoothing_"), **i.options)


def _p_less(i: StageInput) -> Array:
    on = i.x.per_row(i.given["p_less"])
    return jnp.where(on[..., None], p_less_logits(i.logits, **i.options), i.logits)


def _xtc(i: StageInput) -> Array:
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(i.keys.reshape(-1))
    return xtc_logits(keys.reshape(i.keys.shape), i.logits, **_named(i, "xtc_"), **i.options)


_EVERY_STAGE = (
    _of("guidance", guided_logits, "unconditional_logits", "guidance_scale"),
    _of("allowed", allowed_logits, "allowed", kernels=False, mask=_allowed),
    _of("bitmask", bitmask_logits, "bitmask", kernels=False, mask=_bitmask),
    _bans("suppressed", _suppressed, "suppressed_token_ids"),
    _bans("bad_words", _bad_words, "bad_words", "bad_word_lengths", needs_state=True),
    _bans("min_tokens", _min_tokens, "min_tokens", "stop_token_ids", needs_state=True),
    Stage("no_repeat_ngram", _no_repeat_ngram, ("no_repeat_ngram_size",), needs_state=True),
    _by_count("repetition_penalty", _repetition),
    _by_count("frequency_penalty", _frequency),
    _by_count("presence_penalty", _presence),
    Stage(
        "dry",
        _dry,
        ("dry_multiplier",),
        ("dry_base", "dry_allowed_length", "dry_sequence_breakers"),
        ("exempt_token_ids",),
        needs_state=True,
    ),
    _of("logit_bias", biased_logits, "logit_bias_token_ids", "logit_bias", kernels=False),
    Stage(
        "sequence_bias",
        _sequence_bias,
        ("sequence_bias_tokens", "sequence_bias_lengths", "sequence_bias"),
        needs_state=True,
    ),
    _of("forced", forced_logits, "forced_token_id", kernels=False),
    _of("temperature", scaled_logits, "temperature"),
    Stage("dynatemp", _dynatemp, ("dynatemp_low", "dynatemp_high"), ("dynatemp_exponent",)),
    Stage("smoothing", _smoothing, ("smoothing_factor",), ("smoothing_curve",)),
    _of("top_k", top_k_logits, "top_k", drops=True),
    _of("top_p", top_p_logits, "top_p", drops=True),
    _of("min_p", min_p_logits, "min_p", drops=True),
    _of("typical_p", typical_p_logits, "typical_p", drops=True),
    _of("epsilon_cutoff", epsilon_logits, "epsilon_cutoff", drops=True),
    _of("eta_cutoff", eta_logits, "eta_cutoff", drops=True),
    _of("top_a", top_a_logits, "top_a", drops=True),
    _of("top_n_sigma", top_n_sigma_logits, "top_n_sigma", kernels=False, drops=True),
    _of("tail_free", tail_free_logits, "tail_free", drops=True),
    _of("top_h", top_h_logits, "top_h", drops=True),
    Stage("p_less", _p_less, ("p_less",), drops=True),
    Stage(
        "xtc",
        _xtc,
        ("xtc_probability", "xtc_threshold"),
        shared=("exempt_token_ids",),
        drops=True,
    ),
)

STAGES = {stage.name: stage for stage in _EVERY_STAGE}
"""The stages by name."""


def input_of(
    stage: Stage, keys: Array | None, x: Source, params: SamplingParams, state: SamplerState | None
) -> StageInput:
    """Returns the input of a stage."""
    if not stage.fields:  # a user-defined rule
        if isinstance(state, DraftedState):
            state = state.whole(x.shards)
        return StageInput(keys, x, dict(params.custom or {}), state)
    names = (*stage.fields, *stage.optional, *stage.shared)
    fields = {name: getattr(params, name) for name in names}
    given = {field: value for field, value in fields.items() if value is not None}
    return StageInput(keys, x, given, state)
