"""All rules in one call: `sample` equals the functions in sequence, for any order."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from composed import LENGTH, VOCAB, a_state, assert_drawn, composed, every_param, only
from rows import every_kind, exhaustive, make, slow, traces

import jaxsample as js
from jaxsample import (
    DEFAULT_ORDER,
    HF_ORDER,
    LLAMA_CPP_ORDER,
    MAXTEXT_ORDER,
    ORDERS,
    SGLANG_JAX_ORDER,
    VLLM_ORDER,
    SamplingParams,
    sample,
)


def assert_composed(x, params, state, order, stages, **options):
    """Returns the output and the logits of the kept tokens."""
    keys = jax.random.split(jax.random.key(1), len(x))
    params = only(params, stages)
    out = sample(keys, x, params, state, order=order, return_kept=True, **options)
    wanted = composed(keys, jnp.asarray(x), params, state, order)
    assert_drawn(out, *wanted)
    return out, wanted[-1]


@pytest.mark.parametrize("name", [slow(name) for name in ORDERS])
def test_sample_equals_its_functions_in_order(name):
    x = every_kind(8, VOCAB)
    stages = itertools.chain(*((s,) if isinstance(s, str) else s for s in ORDERS[name]))
    assert_composed(x, every_param(len(x)), a_state(len(x)), ORDERS[name], [*stages])


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [
        ("top_p", "top_k"),
        (("top_k", "top_p"), "min_p"),
        ("temperature", ("min_p", "top_p", "top_k")),
        ("top_k", "temperature", "top_p"),
        (("top_p", "epsilon_cutoff"), "temperature"),
        ("logit_bias", "xtc"),
    ],
)
def test_sample_equals_its_functions_in_any_order(order):
    x = every_kind(8, VOCAB)
    stages = [*itertools.chain(*((s,) if isinstance(s, str) else s for s in order))]
    assert_composed(x, every_param(len(x)), a_state(len(x)), order, stages)


def assert_processed(x, params, state, order):
    keys = jax.random.split(jax.random.key(1), len(x))
    got = js.process_logits(x, params, state, key=keys, order=order)
    out = sample(keys, x, params, state, order=order, return_kept=True)
    good = np.asarray(out.tokens) >= 0
    np.testing.assert_array_equal(js.categorical_sample(keys, got), out.tokens)
    np.testing.assert_array_equal(js.token_logprobs(got, out.tokens), out.logprobs)
    mask = js.packed_bitmask(np.asarray(got) > -np.inf)
    np.testing.assert_array_equal(mask[good], out.kept_mask[good])
    return got


@pytest.mark.slow
def test_process_logits_returns_the_logits_that_sample_draws_from():
    """For any fused stages; rows whose text exceeds its room are bad."""
    x = make("normal", 4, VOCAB)
    x[1, 7] = np.nan
    stages = ("frequency_penalty", "min_tokens", "temperature", "top_k", "top_p", "xtc")
    params = only(every_param(4), stages)
    got = assert_processed(x, params, a_state(4), DEFAULT_ORDER)
    assert got.dtype == jnp.float32
    state = dataclasses.replace(a_state(4), lengths=np.array([-1, 8, LENGTH, LENGTH + 1]))
    got = assert_processed(x, params, state, DEFAULT_ORDER)
    assert np.isnan(got[jnp.array([0, 3])]).all()
    narrow = js.process_logits(jnp.asarray(x, jnp.bfloat16), SamplingParams(top_k=3))
    assert narrow.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="key must be given if params have xtc_probability"):
        js.process_logits(x, params, state)


@pytest.mark.slow
def test_process_logits_equals_its_functions_in_order():
    x, order = every_kind(8, VOCAB, "bfloat16"), LLAMA_CPP_ORDER
    params, state = only(every_param(len(x)), order), a_state(len(x))
    keys = jax.random.split(jax.random.key(1), len(x))
    wanted = composed(keys, jnp.asarray(x), params, state, order)[-1]
    got = js.process_logits(x, params, state, key=keys, order=order)
    np.testing.assert_array_equal(got, wanted)


MASKS = ("suppressed", "bitmask", "bad_words", "allowed", "min_tokens")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("masks", "rules", "vocab", "dtype"),
    [
        (("bitmask",), ("temperature",), 5003, "bfloat16"),
        slow(("bitmask",), ("temperature", "top_k", "top_p", "min_p"), 5003, "float32"),
        exhaustive(("allowed", "suppressed"), ("top_p", "temperature"), 4096, "float16"),
        slow(MASKS, ("min_p", ("top_k", "top_p")), 5003, "bfloat16"),
        slow(MASKS, (), 300, "float32"),
        slow(("suppressed",), ("temperature",), 33, "float32"),
        slow(("repetition_penalty", "bitmask"), ("temperature",), 4097, "float32"),
    ],
)
def test_masks_before_the_draw_match_their_functions(masks, rules, vocab, dtype):
    """No logits are written for these masks, and masking a NaN or +inf does not repair its row."""
    x = np.array(every_kind(6, vocab, dtype))
    x[0, 3], x[1, -1], x[2] = np.nan, np.inf, -np.inf
    params, state = every_param(len(x), vocab=vocab), a_state(len(x), vocab=vocab)
    params.allowed[0, 3] = params.allowed[1, -1] = False
    params.bitmask[:2], params.bitmask[3] = 0, 0
    params.suppressed_token_ids[4, 1] = vocab
    order, stages = (*masks, *rules), stages_of(masks, rules)
    out, kept = assert_composed(x, params, state, order, stages, num_logprobs=20)
    good = np.asarray(out.tokens) >= 0
    for a, b in zip(out.top_logprobs, js.top_logprobs(kept, num=20), strict=True):
        np.testing.assert_array_equal(a[good], b[good])
    bad = [0, 1, 2, *([3] if "bitmask" in masks else []), *([4] if "suppressed" in masks else [])]
    assert (np.asarray(out.tokens)[bad] == -1).all()
    # If the candidates do not contain a cut, the search covers the remaining tokens.
    wide = dataclasses.replace(params, top_k=np.full(len(x), 0), top_p=np.full(len(x), 0.99))
    if "top_p" in stages:
        assert_composed(x, wide, state, order, stages)


def stages_of(masks, rules):
    return [*masks, *itertools.chain(*((r,) if isinstance(r, str) else r for r in rules))]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_temperature_may_come_last(dtype):
    """Scaling to narrow floats makes tokens on both sides of a cut equal."""
    x = every_kind(8, 5003, dtype)
    params, state = every_param(len(x), vocab=5003), a_state(len(x), vocab=5003)
    order = ("top_k", ("min_p", "top_p"), "temperature")
    stages = ("top_k", "top_p", "min_p", "temperature")
    out, kept = assert_composed(x, params, state, order, stages, num_logprobs=70)
    want = js.top_logprobs(kept, num=70)
    np.testing.assert_array_equal(out.top_logprobs.tokens, want.tokens)
    np.testing.assert_array_equal(out.top_logprobs.logprobs, want.logprobs)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", exhaustive("float16")])
def test_sample_equals_its_functions_in_narrow_floats(dtype):
    x = every_kind(8, VOCAB, dtype)
    assert_composed(x, every_param(len(x)), a_state(len(x)), DEFAULT_ORDER, DEFAULT_ORDER)


@pytest.mark.slow
def test_orders_keep_the_tokens_of_their_systems():
    """p = .4 .3 .2 .1: the order of the rules determines the number of kept tokens."""
    x = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))

    def number(order, **params):
        return int(sample(jax.random.key(0), x, SamplingParams(**params), order=order).num_kept)

    # Of the first three, two have .75 of their mass of .9; of all, three have .75.
    assert number((("top_k", "top_p"),), top_k=3, top_p=0.75) == 3
    assert number(HF_ORDER, top_k=3, top_p=0.75) == 2
    # vLLM: min-p first keeps .4 and .3, of which .57 is reached by one; otherwise by two.
    assert number(VLLM_ORDER, min_p=0.6, top_p=0.57) == 1
    assert number(HF_ORDER, min_p=0.6, top_p=0.57) == 2
    # llama.cpp: the temperature is last and does not affect the kept set.
    assert number(LLAMA_CPP_ORDER, top_p=0.65, temperature=9.0) == 2
    assert number(HF_ORDER, top_p=0.65, temperature=9.0) == 3
    # MaxText cuts in sequence, then scales; sglang-jax scales, then cuts jointly.
    assert number(MAXTEXT_ORDER, top_p=0.65, temperature=9.0) == 2
    assert number(MAXTEXT_ORDER, top_k=3, top_p=0.75) == 2
    assert number(SGLANG_JAX_ORDER, top_p=0.65, temperature=9.0) == 3
    assert number(SGLANG_JAX_ORDER, top_k=3, top_p=0.75) == 3
    assert number(SGLANG_JAX_ORDER, top_k=3, top_p=0.95, min_p=0.6) == 2


@pytest.mark.slow
def test_an_order_has_a_name():
    """All functions with an order accept its name, since they plan their stages in the same way."""
    x, key = np.log(np.float32([[0.4, 0.3, 0.2, 0.1]] * 2)), jax.random.key(0)
    params = SamplingParams(top_p=0.65, temperature=9.0)
    want = js.process_logits(x, params, order=MAXTEXT_ORDER)
    np.testing.assert_array_equal(js.process_logits(x, params, order="maxtext"), want)
    assert {*ORDERS} == {"default", "vllm", "hf", "llama_cpp", "maxtext", "sglang_jax"}
    keys = jax.random.split(key, 2)
    calls = {
        "sample": lambda **o: sample(key, x, params, **o),
        "nearest_draws": lambda **o: js.nearest_draws(key, x, params, num=1, **o),
        "speculative_sample": lambda **o: js.speculative_sample(keys, x, [1], params, **o),
        "rejection_sample": lambda **o: js.rejection_sample(key, x, [1], x[:1], params, **o),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"order must be .* one of \['default', .*got 'gpt'"):
            call(order="gpt")
        jax.eval_shape(lambda call=call: call(order="maxtext"))


@pytest.mark.slow
def test_one_program_serves_every_row():
    """Each row alone, in the batch and under vmap: the same token, and one trace for all values."""
    x = jnp.asarray(every_kind(8, VOCAB))
    params, state = every_param(len(x), 3), a_state(len(x))
    keys = jax.random.split(jax.random.key(1), len(x))
    step = functools.partial(sample, return_kept=True)  # shares the program of other tests
    want = step(keys, x, params, state).tokens
    traced = traces(sample)
    step(keys, x + 1, every_param(len(x), 4), a_state(len(x), 5))
    assert traces(sample) == traced
    row = lambda tree, i: jax.tree.map(lambda a: a[i], tree)  # noqa: E731
    for i in (0, 5, 25, 42):  # normal, peaked, masked
        alone = sample(keys[i], x[i], row(params, i), row(state, i)).tokens
        assert alone == want[i]
    np.testing.assert_array_equal(jax.vmap(sample)(keys, x, params, state).tokens, want)


@pytest.mark.slow
def test_neutral_values_change_nothing():
    """A rule with a neutral value ignores its other values."""
    x = jnp.asarray(every_kind(8, VOCAB))
    batch = len(x)
    shared = {"penalty_window": np.zeros(batch, int), "exempt_token_ids": np.zeros((batch, 2), int)}
    params = dataclasses.replace(every_param(batch), **shared)
    beside = ("bad_words", "stop_token_ids", "logit_bias", "dry_base", "dry_allowed_length")
    beside += ("dry_sequence_breakers", "dynatemp_exponent", "smoothing_curve", "xtc_threshold")
    neutral = {
        name: np.full_like(value, js.NEUTRAL[name])
        for name, value in vars(params).items()
        if name in js.NEUTRAL and name not in beside
    }
    params = dataclasses.replace(params, **neutral)
    params.validate()
    keys = jax.random.split(jax.random.key(1), batch)
    got = sample(keys, x, params, a_state(batch), return_kept=True)
    want = sample(keys, x, SamplingParams(), return_kept=True)
    for a, b in zip(got, want, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a, b)


def lowered(params, state=None, **options):
    x = jax.ShapeDtypeStruct((4, VOCAB), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
    call = lambda keys, x, params, state: sample(keys, x, params, state, **options)  # noqa: E731
    return jax.jit(call).lower(keys, x, params, state).as_text()


@pytest.mark.slow
def test_an_unused_field_costs_nothing():
    """An order of all stages compiles to the program of the two used ones; a state adds only a
    check.
    """
    params = SamplingParams(temperature=0.7, top_p=0.9)
    assert lowered(params) == lowered(params, order=("temperature", "top_p"))
    with_state = lowered(params, a_state(4))
    assert "while" in lowered(params, order=("temperature", "top_p"))  # the search of top-p
    assert len(with_state) < 1.1 * len(lowered(params))
    assert len(lowered(SamplingParams())) < len(lowered(params))


@pytest.mark.exhaustive
def test_log_probs_and_ranks_of_each_mode():
    x = every_kind(3, VOCAB)
    keys, state = jax.random.split(jax.random.key(1), len(x)), a_state(len(x))
    temperature = np.tile(np.float32([0.8, 0, 1]), 9)
    cuts = {"top_k": np.tile([0, 5, 100], 9), "epsilon_cutoff": 0.01, "top_p": 0.9}
    rest = SamplingParams(
        frequency_penalty=0.5, temperature=np.where(temperature == 0, 1, temperature)
    )
    params = dataclasses.replace(rest, temperature=temperature, **cuts)
    logits = {
        "processed_logprobs": js.process_logits(x, params, state),
        "raw_logprobs": jnp.asarray(x),
        "scaled_logprobs": js.process_logits(x, rest, state),
    }
    together = sample(keys, x, params, state, num_logprobs=20, logprobs_mode=tuple(logits))
    for mode, of_mode in logits.items():
        np.testing.assert_array_equal(
            together.logprobs[mode], js.token_logprobs(of_mode, together.tokens)
        )
        np.testing.assert_array_equal(
            together.ranks[mode], js.token_ranks(of_mode, together.tokens)
        )
        top = js.top_logprobs(of_mode, num=20)
        for a, b in zip(together.top_logprobs[mode], top, strict=True):
            np.testing.assert_array_equal(a, b)
    alone = sample(keys, x, params, state, logprobs_mode="scaled_logprobs")
    np.testing.assert_array_equal(alone.logprobs, together.logprobs["scaled_logprobs"])
    np.testing.assert_array_equal(alone.tokens, together.tokens)
    greedy = temperature == 0
    assert (np.asarray(together.logprobs["processed_logprobs"])[greedy] == 0).all()
    assert (np.asarray(together.logprobs["scaled_logprobs"])[greedy] < 0).any()


@pytest.mark.slow
def test_a_rollout_is_replayed_from_its_kept_set():
    x = jnp.asarray(make("normal", 6, VOCAB))
    keys = jax.random.split(jax.random.key(1), 6)
    params = SamplingParams(temperature=0.8, top_p=0.7, top_k=40)
    out = sample(keys, x, params, return_kept=True)

    def replayed(x):
        return js.replay_logprobs(js.scaled_logits(x, 0.8), out.tokens, out.kept_mask)

    np.testing.assert_array_equal(replayed(x), out.logprobs)
    grad = jax.grad(lambda x: jnp.sum(replayed(x)))(x)
    want = jax.grad(lambda x: jnp.sum(sample(keys, x, params).logprobs))(x)
    np.testing.assert_allclose(grad, want, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(grad) != 0, np.asarray(want) != 0)
    # Another policy, with the kept set of the rollout.
    assert np.isfinite(replayed(x + jnp.asarray(make("flat", 6, VOCAB)))).all()


@pytest.mark.slow
def test_bad_rows_are_empty_everywhere():
    x = make("normal", 3, VOCAB)
    x[1, 5] = np.nan
    keys = jax.random.split(jax.random.key(1), 3)
    modes = ("processed_logprobs", "raw_logprobs", "scaled_logprobs")
    options = {"num_logprobs": 4, "return_kept": True, "logprobs_mode": modes}
    out = sample(keys, x, SamplingParams(), **options)
    assert out.tokens[1] == -1
    assert out.num_kept[1] == 0
    assert (out.kept_mask[1] == 0).all()
    assert (out.tokens[::2] >= 0).all()
    for mode in modes:
        assert out.ranks[mode][1] == -1
        assert np.isnan(out.logprobs[mode][1])
        assert (out.top_logprobs[mode].tokens[1] == -1).all()
        assert np.isnan(out.top_logprobs[mode].logprobs[1]).all()


@pytest.mark.slow
def test_xtc_and_the_draw_use_different_keys():
    x = jnp.asarray(make("normal", 3, VOCAB))
    params = SamplingParams(xtc_probability=0.5, xtc_threshold=0.05)
    with jax.debug_key_reuse(True), jax.checking_leaks():
        keys = jax.random.split(jax.random.key(0), 3)
        assert (sample(keys, x, params).tokens >= 0).all()


@pytest.mark.slow
def test_gradients_pass_through_every_kind_of_stage():
    """Compares gradients of the log-probs with those of the functions in sequence."""
    x, state = jnp.asarray(make("normal", 6, VOCAB)), a_state(6)
    stages = ("repetition_penalty", "frequency_penalty", "logit_bias", "temperature", "typical_p")
    params = only(every_param(6), stages)
    params = dataclasses.replace(params, temperature=jnp.full(6, 0.8))
    keys = jax.random.split(jax.random.key(1), 6)
    grad = jax.grad(lambda x: jnp.sum(sample(keys, x, params, state).logprobs))(x)
    want = jax.grad(lambda x: jnp.sum(composed(keys, x, params, state, stages)[1]))(x)
    np.testing.assert_allclose(grad, want, atol=1e-6)
    assert (np.asarray(grad) != 0).any()


X, KEY = np.zeros((2, 40), np.float32), jax.random.key(0)


@pytest.mark.parametrize(
    ("params", "options", "match"),
    [
        (
            {"logit_bias": np.zeros((2, 1))},
            {},
            "params must have logit_bias_token_ids if they have logit_bias",
        ),
        ({"xtc_threshold": 0.1}, {}, "params must have xtc_probability if"),
        ({"dry_base": 2.0}, {}, "params must have dry_multiplier if they have dry_base"),
        ({"frequency_penalty": 1}, {}, "state must be given if params have frequency_penalty"),
        ({"eta_cutoff": 0.1}, {"order": VLLM_ORDER}, "order must contain .* lacks 'eta_cutoff'"),
        ({}, {"order": ("top_q",)}, "order must contain rules and stages .*; got 'top_q'"),
        ({}, {"order": ("top_k", "top_k")}, "order must name a stage once, got 'top_k' twice"),
        ({}, {"order": (("top_k", "logit_bias"),)}, "order must not nest 'logit_bias'"),
        ({}, {"num_logprobs": 41}, r"num_logprobs must be in \[0, 40\], got 41"),
        ({}, {"logprobs_mode": "raw"}, "logprobs_mode must be one of .*, got 'raw'"),
        ({}, {"logprobs_mode": ()}, "logprobs_mode must be one of .* tuple of them"),
        ({}, {"state": a_state(3, 0, 40)}, "state must be of logits of shape"),
    ],
)
def test_errors_name_invalid_arguments(params, options, match):
    with pytest.raises(ValueError, match=match):
        sample(KEY, X, SamplingParams(**params), **options)


def test_validate_knows_every_field():
    every_param(5).validate()
    bad = {
        "repetition_penalty": 0,
        "dry_base": 0.5,
        "dry_allowed_length": 0,
        "logit_bias": [np.inf],
        "smoothing_curve": 0,
        "min_tokens": -1,
        "penalty_window": -1,
        "forced_token_id": -2,
        "sequence_bias": [np.nan],
        "top_n_sigma": np.nan,
        "frequency_penalty": np.inf,
        "xtc_threshold": 1.5,
        "top_h": -0.1,
        "bad_word_lengths": [-1],
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"^{name}.* must be"):
            SamplingParams(**{name: np.asarray(value)}).validate()
    for name, value in (
        ("p_less", 1),
        ("allowed", [1]),
        ("bad_words", [[1.5]]),
        ("bitmask", [1.0]),
    ):
        with pytest.raises(TypeError, match=f"^{name} must hold"):
            SamplingParams(**{name: np.asarray(value)}).validate()
