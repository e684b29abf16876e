"""Requests in the formats of other systems become rows of params without loss."""

import dataclasses
import re
import types
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from composed import FIELDS as FIELDS_OF_STAGES
from composed import every_param

import jaxsample as js
from jaxsample import NEUTRAL, SamplingParams, requests, set_rows
from jaxsample.params import FIELDS
from jaxsample.stages import STAGES

GUIDE = (Path(__file__).parent.parent / "docs" / "guides" / "requests.md").read_text()

from_requests = SamplingParams.from_requests


def only(request, **options):
    """Returns the values of the row of a request by field, without those of neutral rules."""
    params = from_requests([request], **options)
    return {name: x[0].tolist() for name, x in vars(params).items() if x is not None}


def namespace(**said):
    return types.SimpleNamespace(**said)


VLLM = {
    "n": 1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "repetition_penalty": 1.5,
    "temperature": 0.5,
    "top_p": 0.75,
    "top_k": -1,
    "min_p": 0.125,
    "seed": 3,
    "stop": ["x"],
    "stop_token_ids": [2, 3],
    "max_tokens": 16,
    "min_tokens": 4,
    "logprobs": None,
    "detokenize": True,
    "output_kind": "cumulative",
    "_eos_token_id": 1,
    "_all_stop_token_ids": {1, 2, 3},
    "structured_outputs": None,
    "logit_bias": {5: 1.5},
    "allowed_token_ids": [0, 5],
    "bad_words": ["ab"],
    "_bad_words_token_ids": [[6, 7], [8]],
    "thinking_token_budget": None,
}


def test_vllm_requests_are_read():
    got = only(namespace(**VLLM), vocab_size=9)
    assert got == {
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "repetition_penalty": 1.5,
        "temperature": 0.5,
        "top_p": 0.75,
        "min_p": 0.125,
        "stop_token_ids": [2, 3, 1],
        "min_tokens": 4,
        "logit_bias_token_ids": [5],
        "logit_bias": [1.5],
        "allowed": [i in (0, 5) for i in range(9)],
        "bad_words": [[6, 7], [8, -1]],
        "bad_word_lengths": [2, 1],
    }


def test_openai_requests_are_read():
    said = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 0,
        "top_p": 0.5,
        "logit_bias": {"50256": -100, "7": 2.5},
        "max_completion_tokens": 9,
        "n": 1,
        "response_format": {"type": "text"},
        "stop": None,
        "stream": True,
    }
    assert only(said) == {  # a greedy request needs no top-p
        "temperature": 0,
        "logit_bias_token_ids": [50256, 7],
        "logit_bias": [-100, 2.5],
    }


def test_hugging_face_requests_are_read():
    said = {
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 0,
        "typical_p": 0.5,
        "epsilon_cutoff": 0.25,
        "min_new_tokens": 2,
        "eos_token_id": [3, 4],
        "suppress_tokens": [5],
        "bad_words_ids": [[6]],
        "no_repeat_ngram_size": 3,
        "guidance_scale": 1.5,
        "num_beams": 1,
        "encoder_repetition_penalty": 1.0,
        "max_new_tokens": 20,
        "transformers_version": "5",
        "_from_model_config": True,
    }
    assert only(namespace(**said)) == {
        "temperature": 0.5,
        "typical_p": 0.5,
        "epsilon_cutoff": 0.25,
        "min_tokens": 2,
        "stop_token_ids": [3, 4],
        "suppressed_token_ids": [5],
        "bad_words": [[6]],
        "bad_word_lengths": [1],
        "no_repeat_ngram_size": 3,
        "guidance_scale": 1.5,
    }
    for do_sample in (False, None):  # greedy, as in `generate`
        assert only(namespace(do_sample=do_sample, temperature=0.5, top_k=9)) == {"temperature": 0}
    assert only({"min_new_tokens": 1, "eos_token_id": -1})["stop_token_ids"] == [-1]
    assert only({"min_new_tokens": 1, "eos_token_id": 7})["stop_token_ids"] == [7]


def test_llama_cpp_requests_are_read():
    """llama.cpp's window is -1 for the whole text, and 0 disables the penalties."""
    said = {"repeat_penalty": 1.5, "presence_penalty": 0.5, "repeat_last_n": 64}
    penalties = {"repetition_penalty": 1.5, "presence_penalty": 0.5}
    assert only(said) == penalties | {"penalty_window": 64}
    assert only(said | {"repeat_last_n": -1}) == penalties
    assert only({"penalty_last_n": 0} | said | {"repeat_last_n": None}) == {}
    assert only(said | {"repeat_last_n": None, "penalty_window": 0}) == penalties


@pytest.mark.parametrize("words", [{(1, 2): 1.5, (3,): -np.inf}, [[[1, 2], 1.5], [[3], -np.inf]]])
def test_biases_on_sequences(words):
    params = from_requests(
        [{"sequence_bias": words}, {}], max_sequences=3, max_sequence_length=2, vocab_size=4
    )
    assert params.sequence_bias_tokens.tolist() == [
        [[1, 2], [3, -1], [-1, -1]],
        [[-1, -1]] * 3,
    ]
    assert params.sequence_bias_lengths.tolist() == [[2, 1, 0], [0, 0, 0]]
    assert params.sequence_bias.tolist() == [[1.5, -np.inf, 0], [0, 0, 0]]


def test_gemini_requests_are_read():
    said = {
        "topP": 0.5,
        "topK": 40.0,
        "candidateCount": 1,
        "maxOutputTokens": 9,
        "stopSequences": ["x"],
        "presencePenalty": 0.25,
        "responseMimeType": "text/plain",
    }
    assert only(said) == {"top_p": 0.5, "top_k": 40, "presence_penalty": 0.25}


@dataclasses.dataclass(slots=True)
class Slotted:
    temperature: float = 0.5


class Struct:  # like those of msgspec
    __struct_fields__ = ("temperature",)
    temperature = 0.5


class Extra:  # like pydantic models with extra names
    model_extra = {"temperature": 0.5}  # noqa: RUF012


@pytest.mark.parametrize(
    "request_",
    [{"temperature": 0.5}, namespace(temperature=0.5), Slotted(), Struct(), Extra()],
    ids=["dictionary", "namespace", "slots", "struct", "extra"],
)
def test_requests_of_any_kind(request_):
    assert only(request_) == {"temperature": 0.5}


def test_every_scalar_field_is_read_by_its_own_name():
    """In a batch with an empty request and with no request."""
    given = jax.tree.map(lambda x: x[0], every_param(1, seed=7))
    for name, field in FIELDS.items():
        if field.parameter.axes:
            continue
        usual = {"temperature": 0.5, "top_k": 7, "penalty_window": 7, "forced_token_id": 7}
        value = usual.get(name, np.asarray(getattr(given, name)).item())
        params = from_requests([{}, {name: value}, None], rules=(name,))
        got = getattr(params, name)
        assert got.dtype == (
            bool if name == "p_less" else np.int32 if type(value) is int else np.float32
        )
        empty = 0 if name == "temperature" else NEUTRAL[name]
        np.testing.assert_array_equal(got, np.asarray([NEUTRAL[name], value, empty], got.dtype))


def test_rules_fix_the_shapes_of_a_batch():
    fixed = {
        "rules": (
            "logit_bias",
            "min_tokens",
            "bad_words",
            "suppressed_token_ids",
            "dry_base",
            "exempt_token_ids",
            "bitmask",
        ),
        "max_bias": 3,
        "max_stop_tokens": 2,
        "max_bad_words": 2,
        "max_bad_word_length": 4,
        "max_suppressed": 5,
        "max_breakers": 2,
        "max_exempt": 3,
        "vocab_size": 40,
    }
    many = [
        {"logit_bias": {1: 2, 3: -np.inf}, "bad_words": [[1, 2, 3]], "dry_sequence_breakers": [9]},
        {
            "exempt_token_ids": [8],
            "min_tokens": 3,
            "eos_token_id": 5,
            "suppress_tokens": [1, 2],
            "dry_multiplier": 0.5,
        },
    ]
    got = [from_requests(batch, **fixed) for batch in (many, [None, None], [{}, {"seed": 1}])]
    chex.assert_trees_all_equal_shapes_and_dtypes(*got)
    shapes = {name: x.shape for name, x in vars(got[0]).items() if x is not None}
    assert shapes == {
        "bitmask": (2, 2),
        "suppressed_token_ids": (2, 5),
        "bad_words": (2, 2, 4),
        "bad_word_lengths": (2, 2),
        "stop_token_ids": (2, 2),
        "min_tokens": (2,),
        "exempt_token_ids": (2, 3),
        "dry_multiplier": (2,),
        "dry_base": (2,),
        "dry_allowed_length": (2,),
        "dry_sequence_breakers": (2, 2),
        "logit_bias_token_ids": (2, 3),
        "logit_bias": (2, 3),
    }
    for name, x in vars(got[1]).items():
        assert x is None or (x == NEUTRAL[name]).all()
    for each in got:
        each.validate()


def test_only_the_rules_of_a_request_are_compiled():
    assert vars(from_requests([{}, {"top_p": 1, "top_k": -1, "stop_token_ids": [3]}])) == vars(
        SamplingParams()
    )
    params = from_requests([{"xtc_probability": 0.5}, {"top_k": 0}, {"temperature": 1.0}])
    assert {name for name, x in vars(params).items() if x is not None} == {
        "xtc_probability",
        "xtc_threshold",
    }
    assert vars(from_requests([])) == vars(SamplingParams())


def test_a_long_integer_is_not_cut():
    assert from_requests([{"top_k": 2**40}]).top_k.tolist() == [2**31 - 1]


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"temperature": -1}, r"requests\[1\].temperature must be finite and at least 0, got -1"),
        ({"topP": 1.5}, r"requests\[1\].topP must be in \[0, 1\], got 1.5"),
        ({"top_k": -2}, r"requests\[1\].top_k must be at least -1, got -2"),
        ({"n": 2}, r"requests\[1\].n must be None or 1, got 2: implement it"),
        ({"best_of": 4}, r"\.best_of must be None or 1, got 4"),
        ({"use_beam_search": True}, r"\.use_beam_search must be None or False, got True"),
        ({"responseMimeType": "application/json"}, r"\.responseMimeType must be .* got 'appl"),
        ({"response_format": {"type": "json_object"}}, r"\.response_format must be .* got \{'ty"),
        (
            {"top_q": 0.5},
            r"requests\[1\].top_q must be a field or a name in jaxsample.requests, got 0.5",
        ),
        ({"allowed": [True]}, r"\.allowed must be a field or a name"),
        ({"top_p": 0.5, "topP": 0.5}, r"\.topP must not set top_p a second time, got 0.5 and 0.5"),
        ({"logit_bias": {-1: 2}}, r"\.logit_bias\[0\] must be at least 0, got -1"),
        ({"logit_bias": {"1": np.nan}}, r"\.logit_bias\[0\] must be finite or -inf, got nan"),
        ({"suppress_tokens": [3, 9]}, r"\.suppress_tokens must hold token ids below 9, got 9"),
        ({"allowed_token_ids": []}, r"\.allowed_token_ids must hold one token id or more"),
        ({"bad_words_ids": [[1], [2], [3]]}, r"requests\[1\].bad_words must hold 2 at most, got 3"),
        ({"bad_words_ids": [[1], [2, 3]]}, r"requests\[1\].bad_words\[1\] must hold 1 at most"),
        ({"repeat_last_n": -2}, r"\.repeat_last_n must be at least -1, got -2"),
        ({"sequence_bias": {(): 1}}, r"\.sequence_bias must hold sequences of one token id or"),
        ({"sequence_bias": {(9,): 1}}, r"\.sequence_bias\[0\] must hold token ids below 9, got 9"),
        (
            {"sequence_bias": {(1,): np.inf}},
            r"\.sequence_bias\[0\] must be finite or -inf, got inf",
        ),
        ({"min_p": 0.5}, r"rules must contain 'min_p', set by requests\[1\] to 0.5"),
    ],
)
def test_errors_name_invalid_values(said, match):
    rules = ("temperature", "top_p", "top_k", "logit_bias", "suppressed_token_ids", "bad_words")
    with pytest.raises(ValueError, match=match):
        from_requests([{}, said], rules=rules, vocab_size=9, max_bad_words=2, max_bad_word_length=1)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (3, r"requests\[0\] must be None, a mapping or an object"),
        ({"temperature": "hot"}, r"requests\[0\].temperature must hold real numbers"),
        ({"top_p": True}, r"requests\[0\].top_p must hold real numbers"),
        ({"top_k": 2.5}, r"requests\[0\].top_k must hold integers"),
        ({"top_p": [0.5]}, r"requests\[0\].top_p must be one value"),
        ({"bad_words": ["ab"]}, r"requests\[0\].bad_words\[0\] must be a list of token ids"),
        ({"suppress_tokens": [1.5]}, r"requests\[0\].suppress_tokens must hold integers"),
        ({"logit_bias": {"self": 2}}, r"requests\[0\].logit_bias must hold integers"),
        ({"logit_bias": {1.5: 2}}, r"requests\[0\].logit_bias must hold integers"),
        ({"sequence_bias": [1]}, r"requests\[0\].sequence_bias must map sequences of token ids"),
        ({"logit_bias": [[1, 2]]}, r"requests\[0\].logit_bias must map token ids to numbers"),
    ],
)
def test_errors_name_values_of_the_wrong_kind(said, match):
    with pytest.raises(TypeError, match=match):
        from_requests([said])


def test_the_options_are_checked():
    with pytest.raises(ValueError, match=r"rules must contain names among .*; got 'dry'"):
        from_requests([], rules=("dry",))
    with pytest.raises(ValueError, match="vocab_size must be given for allowed, got None"):
        from_requests([{"allowed_token_ids": [3]}])
    said = {"n": 4, "responseFormat": {"type": "json"}, "plugin": 1}
    handled = ("n", "response_format", "plugin")
    assert vars(from_requests([said], handled=handled)) == vars(SamplingParams())


def test_no_name_is_in_two_tables():
    ignored = [name for names in requests.IGNORED.values() for name in names]
    names = [*requests.TRANSLATED, *requests.REFUSED, *ignored, *FIELDS]
    assert len(names) == len(set(names))


def test_the_guide_has_every_name_that_is_translated_and_runs():
    assert [name for name in requests.TRANSLATED if f"`{name}`" not in GUIDE] == []
    scope = {}
    exec(re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL)[1], scope)
    np.testing.assert_array_equal(scope["params"].temperature, np.eye(32, dtype="f4")[3] * 0.7)


def test_every_field_has_the_rule_that_reads_it():
    rules = {}
    for name, field in FIELDS.items():
        rules.setdefault(field.rule, set()).add(name)
    shared = {field for stage in STAGES.values() for field in stage.shared}
    assert rules == {
        **{name: set(fields) for name, fields in FIELDS_OF_STAGES.items()},
        **{name: {name} for name in shared},
    }


def test_the_neutral_values_are_in_their_ranges_and_cannot_be_changed():
    with pytest.raises(TypeError):
        NEUTRAL["top_p"] = 0.5
    for name, field in FIELDS.items():
        value = np.full((1,) * len(field.parameter.axes), NEUTRAL[name])
        kind = np.int32 if value.dtype == np.int64 else value.dtype
        field.parameter.validate(name, value.astype(kind))


RULES = {
    "rules": ("temperature", "top_p", "logit_bias", "bad_words"),
    "max_bias": 2,
    "max_bad_words": 1,
    "max_bad_word_length": 2,
}
BATCH = [{"top_p": 0.5}, None, {"logit_bias": {1: 2}}, {"bad_words_ids": [[1, 2]]}]


def test_rows_are_set_and_the_others_do_not_change():
    params = from_requests(BATCH, **RULES)
    new = from_requests([{"temperature": 0.5}, {"top_p": 0.1}, {"logit_bias": {3: 4}}], **RULES)
    want = from_requests([{"logit_bias": {3: 4}}, None, BATCH[2], {"temperature": 0.5}], **RULES)
    set_jitted = jax.jit(chex.assert_max_traces(n=1)(set_rows), donate_argnums=0)
    chex.assert_trees_all_equal(set_jitted(params, np.array([3, -1, 0]), new), want)
    chex.assert_trees_all_equal(set_jitted(want, np.array([-1] * 3), new), want)
    compiled = set_jitted.lower(params, np.array([3, -1, 0]), new).compile()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    assert compiled.memory_analysis().alias_size_in_bytes >= size  # updated in place


@pytest.mark.parametrize(
    ("params", "rows", "new", "error", "match"),
    [
        (SamplingParams(top_p=0.5), [0], {}, ValueError, r"params.top_p must have shape \[rows\]"),
        (
            BATCH,
            [0],
            [{"top_p": 0.5}] * 2,
            ValueError,
            r"new.bad_words must have shape \(1, 1, 2\)",
        ),
        (
            BATCH,
            [0],
            {"top_p": np.ones(1)},
            ValueError,
            "new must have the fields bad_words, .*got",
        ),
        (BATCH, [0.5], [{}], TypeError, "rows must hold integers"),
        (BATCH, [0], 3, TypeError, "new must be of type SamplingParams"),
        (SamplingParams(custom={}), [0], {}, ValueError, "params must have no custom params"),
    ],
)
def test_errors_name_invalid_rows(params, rows, new, error, match):
    def made(value):
        return from_requests(value, **RULES) if isinstance(value, list) else value

    new = SamplingParams(**new) if isinstance(new, dict) else made(new)
    with pytest.raises(error, match=match):
        set_rows(made(params), rows, new)


@pytest.mark.slow
def test_a_batch_of_requests_equals_each_alone():
    """One program serves all requests without compiling again."""
    x = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    keys, state = (
        js.request_keys([1, 2, 3, 4], [0] * 4),
        js.init_state(np.ones((4, 2), int), 2, 20, 4),
    )
    params = from_requests(BATCH, **RULES)
    step = jax.jit(chex.assert_max_traces(n=1)(js.sample))
    got = step(keys, x, params, state).tokens
    assert got[1] == x[1].argmax()
    moved = set_rows(params, [0, 2], from_requests([BATCH[2], BATCH[0]], **RULES))
    swap = np.array([2, 1, 0, 3])
    again = step(keys[swap], x[swap], moved, state).tokens
    np.testing.assert_array_equal(again, got[swap])
