"""`SamplingParams`: the parameters of all rules, for each row of a batch."""

import dataclasses
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxsample import requests as _requests
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
    TOKEN_ID,
    TOP_K,
    WORD_BIAS,
    WORD_LENGTHS,
    Field,
    Parameter,
)
from jaxsample._core._public import public
from jaxsample._core._pytrees import pytree


def _field(parameter: Parameter, neutral: Any, rule: str | None = None) -> Any:
    metadata = {"parameter": parameter, "neutral": neutral, "rule": rule}
    return dataclasses.field(default=None, metadata=metadata)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SamplingParams:
    """Parameters of each row of a batch; a stage whose fields are None is not compiled.

    A field is a scalar or an array that broadcasts to `logits.shape[:-1]`, or it has one more axis:
    `[..., n]` for a list, in which token ids are padded with -1, or `[..., vocab]`. A scalar field
    may also have the shape `[..., 1]`, a column of the batch. All fields are traced: a new value
    never causes a recompilation; another set of fields or other shapes do. The function of each
    rule documents its parameters. In every list of token ids, an id at or above the vocabulary
    makes its row a bad row.

    Params are equal if their fields have the same dtypes, shapes and values. Params of Python
    numbers and NumPy arrays are hashable, so they can be a static argument of `jax.jit`, which
    recompiles for each value. The hash of params with a JAX array raises TypeError.

    Attributes:
      unconditional_logits: `[..., vocab]`, for `guided_logits`, with `guidance_scale`; neutral 1.
      allowed: bool `[..., vocab]`, for `allowed_logits`.
      bitmask: int32 `[..., ceil(vocab / 32)]`, for `bitmask_logits`.
      suppressed_token_ids: `[..., n]`, for `suppressed_logits`.
      bad_words: `[..., words, n]`, for `bad_words_logits`, with `bad_word_lengths` `[..., words]`.
      stop_token_ids: `[..., n]`, masked for the first `min_tokens`, for `min_tokens_logits`.
      no_repeat_ngram_size: at least 0; neutral 0.
      repetition_penalty: finite and above 0; neutral 1.
      presence_penalty: finite; neutral 0.
      frequency_penalty: finite; neutral 0.
      penalty_window: integer, at least 0: the number of last tokens of prompt and output to which
        repetition, presence and frequency penalties apply; 0 is neutral, the whole text. Presence
        and frequency penalties count the output tokens within the window.
      exempt_token_ids: `[..., n]`, tokens that repetition, presence and frequency penalties, DRY
        and XTC do not change: line breaks, punctuation, the end of the text.
      dry_multiplier: finite and at least 0; neutral 0. With `dry_base` (at least 1, default 1.75),
        `dry_allowed_length` (at least 1, default 2) and `dry_sequence_breakers` `[..., n]` (default
        none).
      logit_bias_token_ids: `[..., n]`, for `biased_logits`, with `logit_bias` `[..., n]`.
      sequence_bias_tokens: `[..., words, n]`, for `sequence_biased_logits`, with
        `sequence_bias_lengths` and `sequence_bias` `[..., words]`.
      forced_token_id: integer, the only token not masked, for `forced_logits`; -1 is neutral. In
        all `ORDERS` it comes after masks, penalties and biases, and overrides them.
      temperature: finite and at least 0; 0 is greedy, 1 neutral.
      dynatemp_low: finite and at least 0, for `entropy_scaled_logits`, with `dynatemp_high`
        and `dynatemp_exponent` (default 1); neutral 1 and 1.
      smoothing_factor: finite and at least 0, neutral 0, with `smoothing_curve` (default 1).
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
      custom: the parameters of each `Rule` in the order, by name: any pytree of arrays and numbers,
        which the function of the rule validates.

    >>> import numpy as np
    >>> SamplingParams(temperature=0.7, top_p=np.array([0.9, 1.2])).validate()
    Traceback (most recent call last):
    ...
    ValueError: top_p[1] must be in [0, 1], got 1.2
    """

    unconditional_logits: ArrayLike | None = _field(LOGITS, 0.0, "guidance")
    guidance_scale: ArrayLike | None = _field(FINITE, 1.0, "guidance")
    allowed: ArrayLike | None = _field(MASK, True)
    bitmask: ArrayLike | None = _field(BITMASK, -1)
    suppressed_token_ids: ArrayLike | None = _field(IDS, -1, "suppressed")
    bad_words: ArrayLike | None = _field(BAD_WORDS, -1)
    bad_word_lengths: ArrayLike | None = _field(WORD_LENGTHS, 0, "bad_words")
    stop_token_ids: ArrayLike | None = _field(IDS, -1, "min_tokens")
    min_tokens: ArrayLike | None = _field(COUNT, 0)
    no_repeat_ngram_size: ArrayLike | None = _field(COUNT, 0, "no_repeat_ngram")
    repetition_penalty: ArrayLike | None = _field(POSITIVE, 1.0)
    presence_penalty: ArrayLike | None = _field(FINITE, 0.0)
    frequency_penalty: ArrayLike | None = _field(FINITE, 0.0)
    penalty_window: ArrayLike | None = _field(COUNT, 0)
    exempt_token_ids: ArrayLike | None = _field(IDS, -1)
    dry_multiplier: ArrayLike | None = _field(NOT_NEGATIVE, 0.0, "dry")
    dry_base: ArrayLike | None = _field(FROM_1, 1.75, "dry")
    dry_allowed_length: ArrayLike | None = _field(COUNT_FROM_1, 2, "dry")
    dry_sequence_breakers: ArrayLike | None = _field(IDS, -1, "dry")
    logit_bias_token_ids: ArrayLike | None = _field(IDS, -1, "logit_bias")
    logit_bias: ArrayLike | None = _field(BIAS, 0.0)
    sequence_bias_tokens: ArrayLike | None = _field(BAD_WORDS, -1, "sequence_bias")
    sequence_bias_lengths: ArrayLike | None = _field(WORD_LENGTHS, 0, "sequence_bias")
    sequence_bias: ArrayLike | None = _field(WORD_BIAS, 0.0)
    forced_token_id: ArrayLike | None = _field(TOKEN_ID, -1, "forced")
    temperature: ArrayLike | None = _field(NOT_NEGATIVE, 1.0)
    dynatemp_low: ArrayLike | None = _field(NOT_NEGATIVE, 1.0, "dynatemp")
    dynatemp_high: ArrayLike | None = _field(NOT_NEGATIVE, 1.0, "dynatemp")
    dynatemp_exponent: ArrayLike | None = _field(NOT_NEGATIVE, 1.0, "dynatemp")
    smoothing_factor: ArrayLike | None = _field(NOT_NEGATIVE, 0.0, "smoothing")
    smoothing_curve: ArrayLike | None = _field(FROM_1, 1.0, "smoothing")
    top_k: ArrayLike | None = _field(TOP_K, 0)
    top_p: ArrayLike | None = _field(SHARE, 1.0)
    min_p: ArrayLike | None = _field(SHARE, 0.0)
    typical_p: ArrayLike | None = _field(SHARE, 1.0)
    epsilon_cutoff: ArrayLike | None = _field(SHARE, 0.0)
    eta_cutoff: ArrayLike | None = _field(SHARE, 0.0)
    top_a: ArrayLike | None = _field(SHARE, 0.0)
    top_n_sigma: ArrayLike | None = _field(FINITE, 0.0)
    tail_free: ArrayLike | None = _field(SHARE, 1.0)
    top_h: ArrayLike | None = _field(SHARE, 1.0)
    p_less: ArrayLike | None = _field(FLAG, False)
    xtc_probability: ArrayLike | None = _field(SHARE, 0.0, "xtc")
    xtc_threshold: ArrayLike | None = _field(SHARE, 0.1, "xtc")
    custom: dict[str, Any] | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SamplingParams):
            return NotImplemented
        return self is other or _on_host(self, Tracer) == _on_host(other, Tracer)

    def __hash__(self) -> int:
        return hash(_on_host(self, Array))

    def validate(self) -> None:
        """Checks the values on the host. (Traced code cannot: there, a bad value makes a bad row.)

        Raises:
          TypeError: a field of the wrong kind of numbers.
          ValueError: a value outside its range; the message names the field, the row and the range.
        """
        for name, parameter, value in given(self):
            parameter.validate(name, value)

    @classmethod
    def from_requests(
        cls,
        requests: Iterable[Any],
        *,
        rules: Sequence[str] | None = None,
        max_bias: int = 0,
        max_stop_tokens: int = 0,
        max_suppressed: int = 0,
        max_bad_words: int = 0,
        max_bad_word_length: int = 0,
        max_breakers: int = 0,
        max_exempt: int = 0,
        max_sequences: int = 0,
        max_sequence_length: int = 0,
        vocab_size: int | None = None,
        handled: Sequence[str] = (),
    ) -> "SamplingParams":
        """Returns the params of a batch from one request for each row, on the host.

        A request is a dictionary or an object with the names of vLLM's `SamplingParams`, OpenAI's
        API, Hugging Face's `GenerationConfig`, Gemini's `GenerationConfig` or the fields of this
        class. A name that is absent or None has the value of `NEUTRAL`. None instead of a request
        gives a neutral row, which is greedy if the batch has temperatures.

        A request with `temperature=0`, or with `do_sample` that is not True, is greedy: its rules
        from `dynatemp` and `top_k` to `xtc` are neutral, as in vLLM and Hugging Face. `top_k` of
        -1 or 0 and `eos_token_id=-1` are neutral. Names of other layers, such as `max_tokens`,
        `stop` and `seed`, are ignored; `jaxsample.requests.IGNORED` lists them. With
        `guidance_scale`, the decoding loop must set `unconditional_logits`.

        Args:
          requests: one a row, or None for a row without a request.
          rules: names of fields. The batch gets all fields of the rules of these fields. None: the
            rules that the requests use. With the same `rules` and widths, all batches of a size
            have the same shapes, and programs are compiled once.
          max_bias: the width of `logit_bias`; 0: the length of the longest list, at least 1. The
            same holds for the other widths.
          max_stop_tokens: the width of `stop_token_ids`, which the batch has with `min_tokens`.
          max_suppressed: the width of `suppressed_token_ids`.
          max_bad_words: the number of `bad_words`.
          max_bad_word_length: the width of each of `bad_words`.
          max_breakers: the width of `dry_sequence_breakers`.
          max_exempt: the width of `exempt_token_ids`.
          max_sequences: the number of sequences of `sequence_bias`.
          max_sequence_length: the width of each of these sequences.
          vocab_size: required for `allowed_token_ids` and a rule "allowed" or "bitmask"; token ids
            must be below it.
          handled: names that the caller implements, with any value, such as "n" and
            "response_format".

        Returns:
          `SamplingParams` of NumPy arrays, `[len(requests), *]`.

        Raises:
          TypeError: a request or a value of the wrong kind.
          ValueError: an unknown name, a value that no rule implements, such as `n=2`, a value
            outside its range, a list that is too long, or a rule that is not in `rules`; the
            message names the request, the name and the value.

        >>> params = SamplingParams.from_requests(
        ...     [{"topP": 0.9, "temperature": 0.5}, {"logit_bias": {"7": -100}}, None]
        ... )
        >>> print(params.temperature, params.top_p, params.logit_bias_token_ids.tolist())
        [0.5 1. 0. ] [0.9 1. 1. ] [[-1], [7], [-1]]
        >>> SamplingParams.from_requests([{}, {"temperature": -1}])
        Traceback (most recent call last):
        ...
        ValueError: requests[1].temperature must be finite and at least 0, got -1
        """
        widths = {
            "logit_bias_token_ids": (max_bias,),
            "logit_bias": (max_bias,),
            "stop_token_ids": (max_stop_tokens,),
            "suppressed_token_ids": (max_suppressed,),
            "bad_words": (max_bad_words, max_bad_word_length),
            "bad_word_lengths": (max_bad_words,),
            "dry_sequence_breakers": (max_breakers,),
            "exempt_token_ids": (max_exempt,),
            "sequence_bias_tokens": (max_sequences, max_sequence_length),
            "sequence_bias_lengths": (max_sequences,),
            "sequence_bias": (max_sequences,),
        }
        return cls(**_requests.columns(FIELDS, requests, rules, widths, vocab_size, handled))


def _on_host(params: SamplingParams, refused: type) -> tuple[Any, ...]:
    """Returns hashable values that are equal if and only if the params are equal."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    values = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path).removeprefix(".")
        if isinstance(leaf, refused):
            raise TypeError(
                f"{name} must be a number or a NumPy array to hash or compare params, got a JAX "
                f"array {jax.typeof(leaf)}: pass params to jit as an argument that is not static"
            )
        array = np.asarray(_checks.to_array(name, leaf))
        values.append((array.dtype, array.shape, array.tobytes()))
    return structure, tuple(values)


def _fields() -> dict[str, Field]:
    """Returns the fields of `SamplingParams` by name, without `custom`."""
    found = {f.name: f.metadata for f in dataclasses.fields(SamplingParams) if f.metadata}
    return {
        name: Field(metadata["parameter"], metadata["neutral"], metadata["rule"] or name)
        for name, metadata in found.items()
    }


FIELDS = _fields()

NEUTRAL: Mapping[str, Any] = types.MappingProxyType(
    {name: field.neutral for name, field in FIELDS.items()}
)
"""The neutral value of each field of `SamplingParams`; for a list, the value of its padding. Fields
that modify another one have a usual value: `dry_base` 1.75, `dry_allowed_length` 2,
`xtc_threshold` 0.1."""


def given(params: SamplingParams) -> list[tuple[str, Parameter, Any]]:
    """Returns the names, parameters and values of the fields that are not None."""
    found = [(name, field.parameter, getattr(params, name)) for name, field in FIELDS.items()]
    return [(name, parameter, value) for name, parameter, value in found if value is not None]


def converted(name: str, params: SamplingParams, logits: Array) -> SamplingParams:
    """Returns the params with every field an array, so that no Python number is static."""
    if not isinstance(params, SamplingParams):
        raise TypeError(f"{name} must be a SamplingParams, got {type(params).__name__}")
    if params.custom is not None:
        _checks.instance(f"{name}.custom", params.custom, dict)
    changes = {field: parameter.narrowed(field, x, logits) for field, parameter, x in given(params)}
    return dataclasses.replace(params, **changes)


def _batch(name: str, value: Any) -> SamplingParams:
    """Returns params whose fields have one leading axis, the rows."""
    _checks.instance(name, value, SamplingParams)
    if value.custom is not None:
        raise ValueError(f"{name} must have no custom params, whose axes are not known")
    size = None
    for field, parameter, x in given(value):
        shape, axes = np.shape(x), ("rows", *parameter.axes)
        size = shape[0] if size is None and shape else size
        if len(shape) != len(axes) or shape[0] != size:
            raise ValueError(
                f"{name}.{field} must have shape [{', '.join(axes)}] with as many rows as the "
                f"other fields, got {shape}"
            )
    return converted(name, value, jnp.empty((size or 0, 1)))


def _rows(name: str, value: ArrayLike, _: SamplingParams) -> Array:
    return _checks.integers(name, value)


@public(
    first="params",
    convert_first=_batch,
    rows=_rows,
    new=lambda name, value, _: _batch(name, value),
)
def set_rows(params: SamplingParams, rows: ArrayLike, new: SamplingParams) -> SamplingParams:
    """Assigns rows of a batch of params to new requests: continuous batching in fixed shapes.

    If the params are donated, only the rows that change are written. No value causes a
    recompilation.

    Args:
      params: of a batch, every field `[batch, *]`, without `custom`.
      rows: integers `[n]`, the rows to assign, no row twice; negative ones are padding.
      new: of n rows, with the same fields as `params` and the same widths of lists, as returned by
        `SamplingParams.from_requests` with the same `rules` and widths.

    Returns:
      The params with these rows replaced.

    >>> params = SamplingParams.from_requests([None] * 3, rules=("temperature", "top_p"))
    >>> new = SamplingParams.from_requests([{"top_p": 0.9}], rules=("temperature", "top_p"))
    >>> params = set_rows(params, [1], new)
    >>> print(params.temperature, params.top_p)
    [0. 1. 0.] [1. 0.9 1. ]
    """
    place = jnp.asarray(rows)
    old, fresh = ({name: x for name, _, x in given(p)} for p in (params, new))
    if old.keys() != fresh.keys():
        raise ValueError(f"new must have the fields {', '.join(old)}, got {', '.join(fresh)}")
    for name, x in fresh.items():
        if x.shape != (shape := (*place.shape, *old[name].shape[1:])):
            raise ValueError(f"new.{name} must have shape {shape}, got {x.shape}")
    changes = {
        name: x.at[jnp.where(place < 0, len(x), place)].set(fresh[name], mode="drop")
        for name, x in old.items()
    }
    return dataclasses.replace(params, **changes)


def of_positions(params: Any, rows: int) -> Any:
    """Returns params of `rows` axes with one more axis, for the positions of drafts.

    A field with one axis more than the rows already has it.
    """
    if not isinstance(params, SamplingParams):
        return params
    changes: dict[str, Any] = {
        field: with_positions(field, value, len(parameter.axes), rows)
        for field, parameter, value in given(params)
    }
    return dataclasses.replace(params, **changes)


def with_positions(name: str, value: ArrayLike, trailing: int, rows: int) -> ArrayLike:
    """Returns a value of rows with an axis for positions before its `trailing` last axes."""
    array = _checks.to_array(name, value)
    axes = array.ndim - trailing
    if not 0 < axes <= rows:
        return value
    return array.reshape(*array.shape[:axes], 1, *array.shape[axes:])
