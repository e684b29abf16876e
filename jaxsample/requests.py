"""Translation of the requests of serving systems to the fields of `SamplingParams`.

Requests are dictionaries or objects with the names of vLLM's `SamplingParams`, OpenAI's API,
Hugging Face's `GenerationConfig` and Gemini's `GenerationConfig`. Names in camel case are converted
to snake case. A name that is in none of the tables below raises an error, so nothing is ignored
silently.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxsample._core import _checks
from jaxsample._core._bits import WORD
from jaxsample._core._parameters import COUNT, TOP_K, Field

TRANSLATED = {
    "allowed_token_ids": "allowed",
    "bad_words_ids": "bad_words",
    "_bad_words_token_ids": "bad_words",
    "eos_token_id": "stop_token_ids",
    "_all_stop_token_ids": "stop_token_ids",
    "min_new_tokens": "min_tokens",
    "penalty_last_n": "penalty_window",
    "repeat_last_n": "penalty_window",
    "repeat_penalty": "repetition_penalty",
    "suppress_tokens": "suppressed_token_ids",
}
"""Names of other systems, and the fields that they become, besides the names of the fields."""

REFUSED: dict[str, tuple[Any, ...]] = {
    # Several texts for a request, and searches among texts.
    "n": (1,),
    "best_of": (1,),
    "candidate_count": (1,),
    "num_return_sequences": (1,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "use_beam_search": (False,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    # Structured output, whose grammar computes `bitmask`.
    "response_format": ({"type": "text"},),
    "response_mime_type": ("text/plain",),
    "response_schema": (),
    "response_json_schema": (),
    "structured_outputs": (),
    "guided_decoding": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    # Rules of other systems that are not in the library.
    "logits_processors": (),
    "extra_args": (),
    "thinking_token_budget": (-1,),
    "thinking_config": (),
    "trace_decode_token_ids": (),
    "min_length": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "force_words_ids": (),
    "constraints": (),
    "begin_suppress_tokens": (),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "watermarking_config": (),
}
"""Names that affect the draw and have no field, each with its neutral values."""

IGNORED = {
    "lengths and stops, of the loop": (
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"),
        *("max_length", "max_time", "stop", "stop_sequences", "stop_strings", "ignore_eos"),
        *("include_stop_str_in_output", "repetition_detection"),
    ),
    "keys, of `request_keys`": ("seed",),
    "results, of the options of `sample`": (
        *("logprobs", "top_logprobs", "response_logprobs", "prompt_logprobs", "flat_logprobs"),
        *("logprob_token_ids", "prompt_logprob_token_ids", "prompt_logprob_start"),
        *("output_scores", "output_logits", "output_attentions", "output_hidden_states"),
        *("return_dict_in_generate", "return_token_ids", "return_tokens_as_token_ids"),
    ),
    "texts and the connection, of the server": (
        *("model", "messages", "prompt", "input", "instructions", "system_instruction"),
        *("contents", "user", "metadata", "store", "service_tier", "safety_identifier"),
        *("safety_settings", "labels", "prompt_cache_key", "cached_content", "http_options"),
        *("stream", "stream_options", "stream_interval", "output_kind", "priority"),
        *("request_id", "echo", "suffix", "tools", "tool_choice", "tool_config"),
        *("parallel_tool_calls", "functions", "function_call", "automatic_function_calling"),
        *("reasoning_effort", "verbosity", "modalities", "response_modalities", "audio"),
        *("audio_timestamp", "speech_config", "media_resolution", "prediction"),
        *("web_search_options", "chat_template", "chat_template_kwargs"),
        *("add_generation_prompt", "continue_final_message", "add_special_tokens"),
        *("skip_special_tokens", "spaces_between_special_tokens", "detokenize"),
        *("output_text_buffer_length", "truncate_prompt_tokens", "pad_token_id", "bos_token_id"),
        *("decoder_start_token_id", "transformers_version"),
    ),
    "the cache, drafts and compilation, of the engine": (
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"),
        *("skip_reading_prefix_cache", "skip_clone", "kv_transfer_params", "cache_salt"),
        *("routed_experts_prompt_start", "prefill_chunk_size", "compile_config"),
        *("disable_compile", "continuous_batching_config", "is_assistant"),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_early_exit"),
        *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind"),
        *("assistant_ensemble_weight", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
        *("speculation_type", "use_mtp"),
    ),
    "without an effect on a draw from one text": (
        *("renormalize_logits", "early_stopping", "length_penalty"),
    ),
}
"""Names that are implemented by other layers, by layer."""

_IGNORED = frozenset(name for names in IGNORED.values() for name in names)

_NOT_IN_REQUESTS = (
    "unconditional_logits",
    "allowed",
    "bitmask",
    "bad_word_lengths",
    "logit_bias_token_ids",
    "sequence_bias_tokens",
    "sequence_bias_lengths",
)
"""Fields that a request cannot set by name: masks of the decoding loop, and lengths of lists."""

_OF_WINDOW = ("repetition_penalty", "presence_penalty", "frequency_penalty")
"""The penalties that llama.cpp disables for a window of 0 tokens."""

_AT_TEMPERATURE = (
    *("dynatemp", "smoothing", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff"),
    *("eta_cutoff", "top_a", "top_n_sigma", "tail_free", "top_h", "p_less", "xtc"),
)
"""The rules that vLLM and Hugging Face do not apply to a greedy request."""


def columns(
    fields: Mapping[str, Field],
    requests: Iterable[Any],
    rules: Sequence[str] | None,
    widths: Mapping[str, Sequence[int]],
    vocab_size: int | None,
    handled: Sequence[str],
) -> dict[str, Any]:
    """Returns the arrays of a batch by field, for `SamplingParams.from_requests`.

    Args:
      fields: the fields of `SamplingParams`, by name.
      widths: the widths of the lists of a field, by name; 0: the length of the longest list.
    """
    given = list(requests)
    rows = [
        {} if request is None else _row(f"requests[{i}]", request, fields, vocab_size, handled)
        for i, request in enumerate(given)
    ]
    asked = _asked(rows, fields, rules)
    for request, row in zip(given, rows, strict=True):
        if request is None:
            row["temperature"] = 0.0
    names = [name for name, field in fields.items() if field.rule in asked]
    return {
        name: _column(name, fields[name], rows, widths.get(name, ()), vocab_size)
        for name in names
        if name != "unconditional_logits"
    }


def _row(
    place: str,
    request: Any,
    fields: Mapping[str, Field],
    vocab_size: int | None,
    handled: Sequence[str],
) -> dict[str, Any]:
    """Returns the values of a request by field."""
    values = _attributes(place, request)
    greedy = "do_sample" in values and not values.pop("do_sample")
    if values.get("_bad_words_token_ids") is not None:
        values.pop("bad_words", None)  # the same words as texts
    row: dict[str, Any] = {}
    off: tuple[str, ...] = ()
    for original, value in values.items():
        name = re.sub("(?<=[a-z])[A-Z]", lambda letter: "_" + letter[0].lower(), original)
        if value is None or name in _IGNORED or name in handled or original in handled:
            continue
        source = f"{place}.{original}"
        if name in REFUSED:
            _check_neutral(source, value, REFUSED[name])
            continue
        field = TRANSLATED.get(name, name)
        if TRANSLATED.get(name) == "penalty_window":
            # In llama.cpp 0 is no token and -1 the whole text. The range is that of top-k.
            TOP_K.validate(source, np.asarray(value))
            off = _OF_WINDOW if value == 0 else ()
            value = 0 if value == -1 else value
        if field not in fields or name in _NOT_IN_REQUESTS:
            raise ValueError(
                f"{source} must be a field or a name in jaxsample.requests, got {value!r}"
            )
        for name, x in _values(source, field, value, vocab_size).items():
            _add(row, source, name, x, fields[name])
    row = {name: x for name, x in row.items() if name not in off}
    if greedy:
        row["temperature"] = 0.0
    if row.get("temperature") == 0:
        return {name: x for name, x in row.items() if fields[name].rule not in _AT_TEMPERATURE}
    return row


def _attributes(place: str, request: Any) -> dict[str, Any]:
    """Returns the values of a request, by the names of the request."""
    if isinstance(request, Mapping):
        values = dict(request)
    else:
        kind = type(request)
        names = getattr(kind, "__struct_fields__", None)  # of msgspec
        names = names or getattr(kind, "__dataclass_fields__", None)
        if names is None and not hasattr(request, "__dict__"):
            raise TypeError(
                f"{place} must be None, a mapping or an object with attributes, got {request!r}"
            )
        values = {name: getattr(request, name) for name in names or vars(request)}
        values |= getattr(request, "model_extra", None) or {}  # of pydantic
    # Other names with a leading underscore are private attributes.
    return {name: x for name, x in values.items() if name[:1] != "_" or name in TRANSLATED}


def _check_neutral(place: str, value: Any, neutral: tuple[Any, ...]) -> None:
    """Raises an error unless a value is neutral."""
    empty = isinstance(value, list | tuple | dict | set | str) and not value
    if not empty and value not in neutral:
        allowed = " or ".join(map(repr, (None, *neutral)))
        raise ValueError(
            f"{place} must be {allowed}, got {value!r}: implement it in the decoding loop "
            "and add its name to `handled`"
        )


def _values(place: str, field: str, value: Any, vocab_size: int | None) -> dict[str, Any]:
    """Returns the fields that a value becomes."""
    match field:
        case "logit_bias":
            if not isinstance(value, Mapping):
                raise TypeError(f"{place} must map token ids to numbers, got {value!r}")
            ids = [int(x) if isinstance(x, str) and x.isdecimal() else x for x in value]
            return {
                "logit_bias_token_ids": _ids(place, ids, vocab_size),
                "logit_bias": list(value.values()),
            }
        case "sequence_bias":
            return _sequence_bias(place, value, vocab_size)
        case "bad_words":
            words = [_ids(f"{place}[{i}]", word, vocab_size) for i, word in enumerate(value)]
            return {"bad_words": words, "bad_word_lengths": [len(word) for word in words]}
        case "allowed":
            if not len(value):
                raise ValueError(f"{place} must hold one token id or more, got {value!r}")
            return {field: _ids(place, value, vocab_size)}
        case "stop_token_ids":
            listed = list(value) if isinstance(value, Iterable) else [value]
            return {field: _ids(place, [token for token in listed if token != -1], vocab_size)}
        case "suppressed_token_ids" | "dry_sequence_breakers" | "exempt_token_ids":
            return {field: _ids(place, value, vocab_size)}
    if np.ndim(value):
        raise TypeError(f"{place} must be one value, got {value!r}")
    scalar = np.asarray(value).item()
    if isinstance(scalar, float) and scalar.is_integer():
        scalar = int(scalar)  # Gemini's topK is a number with a point
    return {field: 0 if field == "top_k" and scalar == -1 else scalar}


def _sequence_bias(place: str, value: Any, vocab_size: int | None) -> dict[str, Any]:
    """Returns the fields of biases on sequences: a mapping of ids to biases, or a list of pairs."""
    pairs = value.items() if isinstance(value, Mapping) else value
    if not isinstance(pairs, Iterable) or not all(_is_pair(pair) for pair in pairs):
        raise TypeError(f"{place} must map sequences of token ids to numbers, got {value!r}")
    sequences = [_ids(f"{place}[{i}]", ids, vocab_size) for i, (ids, _) in enumerate(pairs)]
    if not all(sequences):
        raise ValueError(f"{place} must hold sequences of one token id or more, got {value!r}")
    return {
        "sequence_bias_tokens": sequences,
        "sequence_bias_lengths": [len(ids) for ids in sequences],
        "sequence_bias": [bias for _, bias in pairs],
    }


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _ids(place: str, value: Any, vocab_size: int | None) -> list[int]:
    """Returns a list of token ids."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{place} must be a list of token ids, got {value!r}")
    ids = list(value)
    if ids:
        COUNT.validate(place, np.asarray(ids))
    limit = _checks.MAX_VOCAB if vocab_size is None else vocab_size
    if any(token >= limit for token in ids):
        raise ValueError(f"{place} must hold token ids below {limit}, got {max(ids)}")
    return [int(token) for token in ids]


def _add(row: dict[str, Any], place: str, name: str, value: Any, field: Field) -> None:
    """Adds a field to a row; lists that several names give are joined."""
    if name in ("logit_bias", "sequence_bias") or not isinstance(value, list):
        field.parameter.validate(place, np.asarray(value))
    if name in row and not isinstance(value, list):
        raise ValueError(
            f"{place} must not set {name} a second time, got {row[name]!r} and {value!r}"
        )
    if name in row:
        known = row[name]
        # vLLM's `_all_stop_token_ids` repeats the other stop tokens.
        value = known + [x for x in value if name != "stop_token_ids" or x not in known]
    row[name] = value


def _asked(
    rows: list[dict[str, Any]], fields: Mapping[str, Field], rules: Sequence[str] | None
) -> set[str]:
    """Returns the rules of the batch."""
    for name in rules or ():
        if name not in fields:
            raise ValueError(f"rules must contain names among {', '.join(fields)}; got {name!r}")
    allowed = None if rules is None else {fields[name].rule for name in rules}
    asked = set()
    for i, row in enumerate(rows):
        for name, value in row.items():
            # Most requests have stop tokens; without `min_tokens` they need no rule.
            if name == "stop_token_ids" or value in ([], fields[name].neutral):
                continue
            if allowed is not None and fields[name].rule not in allowed:
                raise ValueError(f"rules must contain {name!r}, set by requests[{i}] to {value!r}")
            asked.add(fields[name].rule)
    return asked if allowed is None else allowed


def _column(
    name: str,
    field: Field,
    rows: list[dict[str, Any]],
    widths: Sequence[int],
    vocab_size: int | None,
) -> np.ndarray:
    """Returns the array of a field."""
    kinds, axes = field.parameter.kinds, field.parameter.axes
    dtype = np.bool_ if kinds == "b" else np.float32 if "f" in kinds else np.int32
    if not axes:
        values = [row.get(name, field.neutral) for row in rows]
        if dtype == np.int32:  # a number of 64 bits becomes the nearest that fits
            values = [min(value, 2**31 - 1) for value in values]
        return np.array(values, dtype)
    if name in ("allowed", "bitmask"):
        return _mask(name, field, rows, vocab_size, dtype)
    places = [f"requests[{i}].{name}" for i in range(len(rows))]
    return _padded(places, [row.get(name, []) for row in rows], field.neutral, dtype, widths)


def _mask(
    name: str, field: Field, rows: list[dict[str, Any]], vocab_size: int | None, dtype: Any
) -> np.ndarray:
    """Returns the mask of each row, of all tokens for requests without one."""
    if vocab_size is None:
        raise ValueError(f"vocab_size must be given for {name}, got None")
    width = vocab_size if name == "allowed" else -(-vocab_size // WORD)
    mask = np.full((len(rows), width), field.neutral, dtype)
    for i, row in enumerate(rows):
        if name in row:
            mask[i] = False
            mask[i, row[name]] = True
    return mask


def _padded(
    places: list[str], lists: list[list[Any]], fill: Any, dtype: Any, widths: Sequence[int]
) -> np.ndarray:
    """Returns lists, or lists of lists, as one array."""
    width, *inner = widths
    for place, items in zip(places, lists, strict=True):
        if width and len(items) > width:
            raise ValueError(f"{place} must hold {width} at most, got {len(items)}")
    width = width or max(1, *map(len, lists), 1)
    if inner:
        words = [word for items in lists for word in [*items, *[[]] * (width - len(items))]]
        each = [f"{place}[{j}]" for place in places for j in range(width)]
        return _padded(each, words, fill, dtype, inner).reshape(len(lists), width, -1)
    array = np.full((len(lists), width), fill, dtype)
    for row, items in zip(array, lists, strict=True):
        row[: len(items)] = items
    return array
