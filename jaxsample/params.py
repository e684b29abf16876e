"""`SamplingParams`: the parameters of every rule, for each row of a batch."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _checks
from jaxsample._core._parameters import (
    BAD_WORDS,
    BIAS,
    BITMASK,
    COUNT,
    COUNT_FROM_1,
    FINITE,
    FLAG,
    FROM_1,
    IDS,
    LOGITS,
    MASK,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    TOP_K,
    WORD_LENGTHS,
    Parameter,
)


def _field(parameter: Parameter) -> Any:
    return dataclasses.field(default=None, metadata={"parameter": parameter})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of each row of a batch; a stage whose fields are None is not compiled.

    A field is a scalar or an array that broadcasts to `logits.shape[:-1]`, or a list of such
    scalars along a last axis: `[..., n]`, where token ids are padded with -1, or `[..., vocab]`.
    All are traced: a new value never compiles anew, only another set of fields or other shapes do.
    Each is explained by the function of its rule. In every list of token ids an id at or above the
    vocabulary, however large, makes its row a bad row.

    Attributes:
      unconditional_logits: `[..., vocab]`, of `guided_logits`, with `guidance_scale`; neutral 1.
      allowed: bool `[..., vocab]`, of `allowed_logits`.
      bitmask: int32 `[..., ceil(vocab / 32)]`, of `bitmask_logits`.
      suppressed_token_ids: `[..., n]`, of `suppressed_logits`.
      bad_words: `[..., words, n]`, of `bad_words_logits`, with `bad_word_lengths` `[..., words]`.
      stop_token_ids: `[..., n]`, barred for the first `min_tokens`, of `min_tokens_logits`.
      no_repeat_ngram_size: at least 0; neutral 0.
      repetition_penalty: finite and above 0; neutral 1.
      presence_penalty: finite; neutral 0.
      frequency_penalty: finite; neutral 0.
      dry_multiplier: finite and at least 0; neutral 0. With `dry_base` (at least 1, 1.75 if not
        given), `dry_allowed_length` (at least 1, 2) and `dry_sequence_breakers` `[..., n]` (none).
      logit_bias_token_ids: `[..., n]`, of `biased_logits`, with `logit_bias` `[..., n]`.
      temperature: finite and at least 0; 0 is greedy, 1 neutral.
      dynatemp_low: finite and at least 0, of `entropy_scaled_logits`, with `dynatemp_high`
        and `dynatemp_exponent` (1 if not given); neutral 1 and 1.
      smoothing_factor: finite and at least 0, neutral 0, with `smoothing_curve` (1 if not given).
      top_k: an integer, at least -1; -1, 0 and anything from `vocab` up are neutral.
      top_p: in [0, 1]; 1 is neutral, 0 keeps the token of rank 0.
      min_p: in [0, 1]; 0 is neutral.
      typical_p: in [0, 1]; 1 is neutral.
      epsilon_cutoff: in [0, 1]; 0 is neutral.
      eta_cutoff: in [0, 1]; 0 is neutral.
      top_a: in [0, 1]; 0 is neutral.
      top_n_sigma: finite; 0 and below are neutral.
      tail_free: in [0, 1]; 1 is neutral.
      top_h: in [0, 1]; 1 is neutral.
      p_less: bool; False is neutral.
      xtc_probability: in [0, 1], neutral 0, with `xtc_threshold` in [0, 1], neutral above 0.5.
      custom: the parameters of each `Rule` in the order, by its name: any pytree of arrays and
        numbers. Its function checks them.

    >>> import numpy as np
    >>> SamplingParams(temperature=0.7, top_p=np.array([0.9, 1.2])).validate()
    Traceback (most recent call last):
    ...
    ValueError: top_p[1] must be in [0, 1], got 1.2
    """

    unconditional_logits: ArrayLike | None = _field(LOGITS)
    guidance_scale: ArrayLike | None = _field(FINITE)
    allowed: ArrayLike | None = _field(MASK)
    bitmask: ArrayLike | None = _field(BITMASK)
    suppressed_token_ids: ArrayLike | None = _field(IDS)
    bad_words: ArrayLike | None = _field(BAD_WORDS)
    bad_word_lengths: ArrayLike | None = _field(WORD_LENGTHS)
    stop_token_ids: ArrayLike | None = _field(IDS)
    min_tokens: ArrayLike | None = _field(COUNT)
    no_repeat_ngram_size: ArrayLike | None = _field(COUNT)
    repetition_penalty: ArrayLike | None = _field(POSITIVE)
    presence_penalty: ArrayLike | None = _field(FINITE)
    frequency_penalty: ArrayLike | None = _field(FINITE)
    dry_multiplier: ArrayLike | None = _field(NOT_NEGATIVE)
    dry_base: ArrayLike | None = _field(FROM_1)
    dry_allowed_length: ArrayLike | None = _field(COUNT_FROM_1)
    dry_sequence_breakers: ArrayLike | None = _field(IDS)
    logit_bias_token_ids: ArrayLike | None = _field(IDS)
    logit_bias: ArrayLike | None = _field(BIAS)
    temperature: ArrayLike | None = _field(NOT_NEGATIVE)
    dynatemp_low: ArrayLike | None = _field(NOT_NEGATIVE)
    dynatemp_high: ArrayLike | None = _field(NOT_NEGATIVE)
    dynatemp_exponent: ArrayLike | None = _field(NOT_NEGATIVE)
    smoothing_factor: ArrayLike | None = _field(NOT_NEGATIVE)
    smoothing_curve: ArrayLike | None = _field(FROM_1)
    top_k: ArrayLike | None = _field(TOP_K)
    top_p: ArrayLike | None = _field(SHARE)
    min_p: ArrayLike | None = _field(SHARE)
    typical_p: ArrayLike | None = _field(SHARE)
    epsilon_cutoff: ArrayLike | None = _field(SHARE)
    eta_cutoff: ArrayLike | None = _field(SHARE)
    top_a: ArrayLike | None = _field(SHARE)
    top_n_sigma: ArrayLike | None = _field(FINITE)
    tail_free: ArrayLike | None = _field(SHARE)
    top_h: ArrayLike | None = _field(SHARE)
    p_less: ArrayLike | None = _field(FLAG)
    xtc_probability: ArrayLike | None = _field(SHARE)
    xtc_threshold: ArrayLike | None = _field(SHARE)
    custom: dict[str, Any] | None = None

    def validate(self) -> None:
        """Checks the values on the host, which traced code cannot do.

        Raises:
          TypeError: a field of the wrong kind of numbers.
          ValueError: a value outside its range; the message names the field, the row and the range.
        """
        for name, parameter, value in given(self):
            parameter.validate(name, value)


def given(params: SamplingParams) -> list[tuple[str, Parameter, Any]]:
    """Returns the fields of stages that are not None: their names, parameters and values."""
    fields = [(f.name, f.metadata["parameter"]) for f in dataclasses.fields(params) if f.metadata]
    found = [(name, parameter, getattr(params, name)) for name, parameter in fields]
    return [(name, parameter, value) for name, parameter, value in found if value is not None]


def converted(name: str, params: SamplingParams, logits: Array) -> SamplingParams:
    """Returns the params with every field an array, so that no number compiles anew."""
    if not isinstance(params, SamplingParams):
        raise TypeError(f"{name} must be a SamplingParams, got {type(params).__name__}")
    if params.custom is not None:
        _checks.instance(f"{name}.custom", params.custom, dict)
    changes = {field: parameter.narrowed(field, x, logits) for field, parameter, x in given(params)}
    return dataclasses.replace(params, **changes)


def of_positions(params: Any, rows: int) -> Any:
    """Returns params of `rows` axes with an axis for the positions of drafts behind them.

    A field that has one axis more than the rows is of each position already.
    """
    if not isinstance(params, SamplingParams):
        return params
    changes: dict[str, Any] = {}
    for field, parameter, value in given(params):
        array = value if isinstance(value, Array) else np.asarray(value)
        axes = array.ndim - len(parameter.axes)
        if 0 < axes <= rows:
            shape = array.shape
            changes[field] = array.reshape(*shape[:axes], 1, *shape[axes:])
    return dataclasses.replace(params, **changes)
