"""The stages of `sample`, a name for each rule, and the orders in which systems apply them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsample._core import _bits, _checks, _shards
from jaxsample._core._chunks import Source
from jaxsample._core._parameters import BAD_WORDS, IDS, WORD_LENGTHS
from jaxsample._core._prefix import Rules
from jaxsample.constraints import (
    Banned,
    allowed_logits,
    bad_words,
    before_min_tokens,
    biased_logits,
    bitmask_logits,
    guided_logits,
    suppressed,
    without,
)
from jaxsample.params import SamplingParams
from jaxsample.penalties import (
    dry_penalized_logits,
    frequency_penalized_logits,
    no_repeat_ngram_logits,
    presence_penalized_logits,
    repetition_penalized_logits,
)
from jaxsample.scaling import entropy_scaled_logits, scaled_logits, smoothed_logits
from jaxsample.state import SamplerState
from jaxsample.truncation import (
    cut_by,
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

Order = tuple[str | tuple[str, ...], ...]
"""Names of stages. A nested tuple is judged jointly: each of its stages on the same distribution,
and what all of them keep is kept."""

DEFAULT_ORDER: Order = (
    "guidance",
    "allowed",
    "bitmask",
    "suppressed",
    "bad_words",
    "min_tokens",
    "no_repeat_ngram",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "dry",
    "bias",
    "temperature",
    "entropy_temperature",
    "smoothing",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon",
    "eta",
    "top_a",
    "top_n_sigma",
    "tail_free",
    "top_h",
    "p_less",
    "xtc",
)
"""Constraints, penalties, bias, temperature, top-k, top-p, min-p, then the others."""

VLLM_ORDER: Order = (
    "bitmask",
    "allowed",
    "bad_words",
    "min_tokens",
    "bias",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "temperature",
    "min_p",
    "top_k",
    "top_p",
)
"""The order of vLLM, and its stages."""

HF_ORDER: Order = (
    "guidance",
    "bias",
    "repetition_penalty",
    "no_repeat_ngram",
    "bad_words",
    "min_tokens",
    "allowed",
    "suppressed",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon",
    "eta",
)
"""The order of Hugging Face transformers' `generate`, and its stages."""

LLAMA_CPP_ORDER: Order = (
    "bitmask",
    "bias",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "dry",
    "top_n_sigma",
    "top_k",
    "typical_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
    "entropy_temperature",
)
"""The order of llama.cpp's default chain, and its stages."""


class _Input(NamedTuple):
    """The input of a stage.

    Attributes:
      keys: one a row.
      x: the logits, as the stages before left them.
      given: the params of the stage that are not None.
      state: the `SamplerState`, or None for a stage that does not look back.
    """

    keys: Array
    x: Source
    given: dict[str, Any]
    state: Any

    @property
    def logits(self) -> Array:
        return self.x.logits

    @property
    def axis(self) -> dict[str, Any]:
        """The options of a rule that looks at each token alone."""
        return {"axis_name": self.x.axis_name}

    @property
    def looks(self) -> dict[str, Any]:
        """The options of a rule that looks at all of the distribution."""
        return {**self.axis, "implementation": self.x.implementation}


class _Stage(NamedTuple):
    """The application of a stage.

    Attributes:
      apply: to its input, for new logits.
      fields: the params that it needs.
      optional: the params that it has a default for.
      remembers: whether it needs the state.
      drops: whether it only drops tokens, by looking at all of the distribution.
      mask: gives what it leaves, packed, or what it takes away, if it does so whatever the logits.
    """

    apply: Callable[[_Input], Array]
    fields: tuple[str, ...]
    optional: tuple[str, ...] = ()
    remembers: bool = False
    drops: bool = False
    mask: Callable[[_Input], Array | Banned] | None = None


def _of(
    rule: Callable[..., Array],
    *fields: str,
    looks: bool = True,
    drops: bool = False,
    mask: Callable[[_Input], Array] | None = None,
) -> _Stage:
    """Returns the stage of a rule that takes the logits and then its fields."""

    def apply(i: _Input) -> Array:
        options = i.looks if looks else i.axis
        return rule(i.logits, *(i.given[f] for f in fields), **options)

    return _Stage(apply, fields, drops=drops, mask=mask)


def _named(i: _Input, prefix: str) -> dict[str, Any]:
    """Returns the params of a stage by the names that its function has for them."""
    return {field.removeprefix(prefix): value for field, value in i.given.items()}


def _bans(banned: Callable[[_Input], Banned], *fields: str, remembers: bool = False) -> _Stage:
    """Returns the stage that masks a few tokens."""

    def apply(i: _Input) -> Array:
        return without(i.x, banned(i))

    return _Stage(apply, fields, remembers=remembers, mask=banned)


def _allowed(i: _Input) -> Array:
    return _bits.packed(_checks.per_token("allowed", i.given["allowed"], i.logits, "b"))


def _bitmask(i: _Input) -> Array:
    return _checks.bitmask("bitmask", i.given["bitmask"], i.logits)


def _suppressed(i: _Input) -> Banned:
    return suppressed(i.x, IDS("suppressed_token_ids", i.given["suppressed_token_ids"], i.logits))


def _bad_words(i: _Input) -> Banned:
    words = BAD_WORDS("bad_words", i.given["bad_words"], i.logits)
    lengths = WORD_LENGTHS("bad_word_lengths", i.given["bad_word_lengths"], i.logits)
    return bad_words(i.x, i.state.tokens, i.state.lengths, words, lengths)


def _min_tokens(i: _Input) -> Banned:
    written = i.state.lengths - i.state.prompt_lengths
    stops = IDS("stop_token_ids", i.given["stop_token_ids"], i.logits)
    return before_min_tokens(i.x, stops, written, i.given["min_tokens"])


def _no_repeat_ngram(i: _Input) -> Array:
    n = i.given["no_repeat_ngram"]
    return no_repeat_ngram_logits(i.logits, i.state.tokens, i.state.lengths, n, **i.axis)


def _repetition(i: _Input) -> Array:
    seen = _bits.unpacked(i.state.prompt_mask, i.logits.shape[-1]) | (i.state.counts > 0)
    return repetition_penalized_logits(i.logits, seen, i.given["repetition_penalty"], **i.axis)


def _frequency(i: _Input) -> Array:
    penalty = i.given["frequency_penalty"]
    return frequency_penalized_logits(i.logits, i.state.counts, penalty, **i.axis)


def _presence(i: _Input) -> Array:
    penalty = i.given["presence_penalty"]
    return presence_penalized_logits(i.logits, i.state.counts, penalty, **i.axis)


def _dry(i: _Input) -> Array:
    return dry_penalized_logits(
        i.logits, i.state.tokens, i.state.lengths, **_named(i, "dry_"), **i.axis
    )


def _entropy_temperature(i: _Input) -> Array:
    return entropy_scaled_logits(i.logits, **_named(i, "temperature_"), **i.looks)


def _smoothing(i: _Input) -> Array:
    return smoothed_logits(i.logits, **_named(i, "smoothing_"), **i.looks)


def _p_less(i: _Input) -> Array:
    on = i.x.per_row(i.given["p_less"])
    return jnp.where(on[..., None], p_less_logits(i.logits, **i.looks), i.logits)


def _xtc(i: _Input) -> Array:
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(i.keys.reshape(-1))
    chance, threshold = i.given["xtc_probability"], i.given["xtc_threshold"]
    return xtc_logits(keys.reshape(i.keys.shape), i.logits, chance, threshold, **i.looks)


_STAGES = {
    "guidance": _of(guided_logits, "unconditional_logits", "guidance_scale"),
    "allowed": _of(allowed_logits, "allowed", looks=False, mask=_allowed),
    "bitmask": _of(bitmask_logits, "bitmask", looks=False, mask=_bitmask),
    "suppressed": _bans(_suppressed, "suppressed_token_ids"),
    "bad_words": _bans(_bad_words, "bad_words", "bad_word_lengths", remembers=True),
    "min_tokens": _bans(_min_tokens, "min_tokens", "stop_token_ids", remembers=True),
    "no_repeat_ngram": _Stage(_no_repeat_ngram, ("no_repeat_ngram",), remembers=True),
    "repetition_penalty": _Stage(_repetition, ("repetition_penalty",), remembers=True),
    "frequency_penalty": _Stage(_frequency, ("frequency_penalty",), remembers=True),
    "presence_penalty": _Stage(_presence, ("presence_penalty",), remembers=True),
    "dry": _Stage(
        _dry,
        ("dry_multiplier",),
        ("dry_base", "dry_allowed_length", "dry_breakers"),
        remembers=True,
    ),
    "bias": _of(biased_logits, "bias_token_ids", "bias", looks=False),
    "temperature": _of(scaled_logits, "temperature"),
    "entropy_temperature": _Stage(
        _entropy_temperature, ("temperature_low", "temperature_high"), ("temperature_exponent",)
    ),
    "smoothing": _Stage(_smoothing, ("smoothing_factor",), ("smoothing_curve",)),
    "top_k": _of(top_k_logits, "top_k", drops=True),
    "top_p": _of(top_p_logits, "top_p", drops=True),
    "min_p": _of(min_p_logits, "min_p", drops=True),
    "typical_p": _of(typical_p_logits, "typical_p", drops=True),
    "epsilon": _of(epsilon_logits, "epsilon", drops=True),
    "eta": _of(eta_logits, "eta", drops=True),
    "top_a": _of(top_a_logits, "top_a", drops=True),
    "top_n_sigma": _of(top_n_sigma_logits, "top_n_sigma", looks=False, drops=True),
    "tail_free": _of(tail_free_logits, "tail_free", drops=True),
    "top_h": _of(top_h_logits, "top_h", drops=True),
    "p_less": _Stage(_p_less, ("p_less",), drops=True),
    "xtc": _Stage(_xtc, ("xtc_probability", "xtc_threshold"), drops=True),
}

_PREFIX = {"top_k", "top_p", "min_p"}
"""The stages that are settled together, by the best candidates alone wherever they suffice."""

_TEMPERATURE = ("temperature",)


class Plan(NamedTuple):
    """The groups of stages that `sample` applies, each to one distribution.

    Attributes:
      first: the groups that are applied one after the other.
      masks: the stages behind them that only mask, whatever the logits.
      scales: whether the temperature comes then.
      last: the groups of top-k, top-p and min-p at the end, which the draw looks through.
      scales_after: whether the temperature comes behind them.
    """

    first: tuple[tuple[str, ...], ...]
    masks: tuple[str, ...]
    scales: bool
    last: tuple[tuple[str, ...], ...]
    scales_after: bool


def planned(params: SamplingParams, state: SamplerState | None, order: Order) -> Plan:
    """Returns the plan of the stages that the params ask for."""
    groups = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in order]
    _check_order(groups)
    asked = {name for name, stage in _STAGES.items() if _is_asked(stage, params, state)}
    if missing := sorted(asked.difference(*groups)):
        raise ValueError(f"order must name every stage that params ask for, {missing[0]!r} too")
    active = [tuple(name for name in group if name in asked) for group in groups]
    active = [group for group in active if group]
    end = len(active) - (active[-1:] == [_TEMPERATURE])
    start = end
    while start and _PREFIX.issuperset(active[start - 1]):
        start -= 1
    if start == end:  # nothing is cut: it scales what the others leave
        start = end = len(active)
    scales = active[:start][-1:] == [_TEMPERATURE]
    first, last = active[: start - scales], active[start:end]
    masks: list[str] = []
    while first and all(_STAGES[name].mask for name in first[-1]):
        masks += first.pop()
    return Plan(tuple(first), tuple(masks), scales, tuple(last), end < len(active))


def applied(
    groups: tuple[tuple[str, ...], ...],
    keys: Array,
    x: Source,
    params: SamplingParams,
    state: SamplerState | None,
) -> Source:
    """Returns the logits after some groups of stages."""
    for is_prefix, some in itertools.groupby(groups, _PREFIX.issuperset):
        if is_prefix:
            cut = cut_by(x, rules_of(tuple(some), x, params))
            x = dataclasses.replace(x, logits=cut)
            continue
        for group in some:
            results = [_STAGES[name].apply(_input(name, keys, x, params, state)) for name in group]
            # Logits are kept as they are or -inf, and the least is what all of them keep.
            x = dataclasses.replace(x, logits=functools.reduce(jnp.minimum, results))
    return x


def _input(
    name: str, keys: Array, x: Source, params: SamplingParams, state: SamplerState | None
) -> _Input:
    stage = _STAGES[name]
    fields = {field: getattr(params, field) for field in (*stage.fields, *stage.optional)}
    given = {field: value for field, value in fields.items() if value is not None}
    return _Input(keys, x, given, state)


def mask_of(
    names: tuple[str, ...],
    keys: Array,
    x: Source,
    params: SamplingParams,
    state: SamplerState | None,
) -> tuple[Array | None, Array]:
    """Returns the tokens that stages leave, packed, and the rows `[...]` with a bad parameter."""
    words, bad = None, jnp.array(False)
    for name in names:
        mask: Any = _STAGES[name].mask
        left = mask(_input(name, keys, x, params, state))
        if not isinstance(left, Banned):
            words = left if words is None else words & left
            continue
        if words is None:
            *lead, vocab = x.logits.shape
            words = jnp.full((*lead, -(-vocab // _bits.WORD)), -1, jnp.int32)
        places = _shards.places(x.logits, left.ids, x.shards)
        words, bad = _bits.cleared(words, places, left.where), bad | left.bad
    return words, bad


def rules_of(groups: tuple[tuple[str, ...], ...], x: Source, params: SamplingParams) -> Rules:
    """Returns the rules of groups of top-k, top-p and min-p."""
    names = itertools.chain(*groups)
    values = {name: x.per_row(getattr(params, name)) for name in names}
    return Rules(values, groups)


def _is_asked(stage: _Stage, params: SamplingParams, state: SamplerState | None) -> bool:
    fields = (*stage.fields, *stage.optional)
    given = [name for name in fields if getattr(params, name) is not None]
    for name in stage.fields:
        if given and name not in given:
            raise ValueError(f"params must have {name} where they have {given[0]}")
    if given and stage.remembers and state is None:
        raise ValueError(f"state must be given where params have {given[0]}")
    return bool(given)


def _check_order(groups: list[tuple[str, ...]]) -> None:
    names = list(itertools.chain(*groups))
    for name in names:
        if name not in _STAGES:
            raise ValueError(f"order must hold names of {', '.join(_STAGES)}; got {name!r}")
        if names.count(name) > 1:
            raise ValueError(f"order must name a stage once, got {name!r} twice")
    for group in groups:
        for name in group:
            if len(group) > 1 and not _STAGES[name].drops:
                raise ValueError(f"order must not nest {name!r}: it is not a truncation")
