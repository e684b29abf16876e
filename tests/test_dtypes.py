"""bfloat16 and float16 logits are read exactly and never rounded again."""

import functools

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from draws import ERROR_RATE, assert_follows, draw
from rows import KINDS, every_kind, make, slow
from scipy import stats

import jaxsample as js
from jaxsample import SamplingParams, sample

NARROW = ("bfloat16", "float16")
KEY = jax.random.key(0)


@pytest.mark.parametrize("dtype", ["bfloat16", slow("float32"), slow("float16")])
def test_rules_that_compute_return_float32_and_rules_that_mask_their_input(dtype):
    x = jax.ShapeDtypeStruct((2, 300), dtype)
    rules = [name for name in catalogue.NAMES if name.endswith("_logits")]
    assert catalogue.COMPUTING.issubset(rules)
    for name in rules:
        function, arguments = catalogue.shapes(name, x)
        expected = jnp.float32 if name in catalogue.COMPUTING else x.dtype
        assert jax.eval_shape(function, *arguments).dtype == expected, name


@pytest.mark.slow
def test_the_temperature_does_not_round():
    x = jnp.array([20, 19.5, 19, 18], jnp.bfloat16)
    want = [-0.5063, -1.3396, -2.1730, -3.8396]
    np.testing.assert_allclose(reference.logprobs(np.float64([20, 19.5, 19, 18]) / 0.6), want, 1e-4)
    keys = jax.random.split(KEY, 64)
    out = sample(keys, jnp.tile(x, (64, 1)), SamplingParams(temperature=0.6))
    np.testing.assert_allclose(out.logprobs, np.take(want, out.tokens), rtol=1e-4)
    assert len(np.unique(out.tokens)) == 4


@pytest.mark.slow
def test_the_greedy_token_of_a_close_pair():
    """300 pairs of adjacent bfloat16 numbers, which many temperatures round to one number."""
    low = np.linspace(16, 32, 300).astype(jnp.bfloat16)
    high = (low.view(np.int16) + 1).view(jnp.bfloat16)
    x = np.stack([low, high], axis=-1)
    for params in (SamplingParams(temperature=0.95, top_k=1), SamplingParams(temperature=0.95)):
        out = sample(KEY, x, params, num_logprobs=1)
        np.testing.assert_array_equal(out.top_logprobs.tokens[:, 0], 1)
    assert (sample(KEY, x, SamplingParams(temperature=0.95, top_k=1)).tokens == 1).all()


def test_small_penalties_and_biases_are_not_lost():
    x = jnp.full(2, 20, jnp.bfloat16)
    counts = jnp.array([0, 4])
    gaps = {
        "presence": js.presence_penalized_logits(x, counts, 0.05),
        "bias": -js.biased_logits(x, jnp.array([1]), jnp.array([0.05])),
        "frequency": js.frequency_penalized_logits(x, counts, 0.05),
    }
    for name, gap in (("presence", 0.05), ("bias", 0.05), ("frequency", 0.2)):
        first, second = np.asarray(gaps[name], np.float64)
        np.testing.assert_allclose(first - second, gap, rtol=1e-4, err_msg=name)


def params_of(batch, seed=0):
    rng = np.random.default_rng(seed)

    def pick(*values):
        return rng.choice(np.float32(values), batch)

    return SamplingParams(
        temperature=pick(0.3, 0.6, 0.95, 1, 1.7),
        top_k=rng.choice(np.int32([-1, 0, 5, 40, 200]), batch),
        top_p=pick(0.5, 0.9, 0.95, 1),
        min_p=pick(0, 0.01, 0.1),
    )


def kept_by_definition(row, params, i, slack):
    """Returns the tokens that a float64 definition keeps for slightly larger or smaller shares."""
    scaled = row.astype(np.float64) / np.float64(params.temperature[i])
    kept = np.where(reference.top_k(scaled, params.top_k[i]), scaled, -np.inf)
    p, m = np.float64(params.top_p[i]), np.float64(params.min_p[i])
    kept = np.where(reference.top_p(kept, p if p == 1 else p * (1 + slack)), kept, -np.inf)
    return np.where(reference.min_p(kept, m * (1 - slack)), kept, -np.inf)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "vocab"), [("bfloat16", 300), slow("float16", 5003)])
def test_kept_sets_and_logprobs_match_the_same_values_in_float64(dtype, vocab):
    near = [kind for kind in KINDS if kind != "offset"]  # far from 0, float32 itself rounds more
    x = np.concatenate([make(kind, 12, vocab, dtype) for kind in near])
    params = params_of(len(x))
    out = sample(jax.random.split(KEY, len(x)), x, params, return_kept=True)
    kept_mask = js.bitmask_logits(jnp.zeros(x.shape), out.kept_mask) == 0
    clear = 0
    for i, row in enumerate(x):
        low, kept, high = (kept_by_definition(row, params, i, s) for s in (-4e-6, 0, 4e-6))
        if np.array_equal(low > -np.inf, high > -np.inf):  # not decided by rounding
            clear += 1
            np.testing.assert_array_equal(kept_mask[i], kept > -np.inf)
            want = reference.logprobs(kept)[out.tokens[i]]
            np.testing.assert_allclose(out.logprobs[i], want, atol=3e-6)
    assert clear > 0.9 * len(x)


@pytest.mark.parametrize("dtype", [slow(dtype) for dtype in NARROW])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 200, "presence_penalty": 0.05}])
def test_200_000_draws_follow_the_softmax_of_float64(dtype, params):
    """Temperature .6 on logits near 20, where adjacent bfloat16 numbers differ by an eighth."""
    x = make("normal", 1, 1000, dtype)[0] + np.asarray(20, jnp.dtype(dtype))
    wide = x.astype(np.float64)
    if "presence_penalty" in params:
        tokens = draw_penalised(x, params)
        wide[:500] -= np.float32(0.05)
    else:
        tokens = draw(x, 200_000, temperature=0.6, **params)
    scaled = wide / np.float32(0.6)
    kept = np.where(reference.top_k(scaled, params.get("top_k", 0)), scaled, -np.inf)
    kept = np.where(reference.top_p(kept, params.get("top_p", 1)), kept, -np.inf)
    assert_follows(tokens, reference.softmax(kept))


def draw_penalised(x, params):
    """Draws tokens of a row whose text contains the first 500 tokens."""
    state = js.init_state(np.zeros((1, 0), int), 0, x.size, 1)
    counts = (jnp.arange(x.size) < 500).astype(jnp.int32)[None]
    state = jax.tree.map(lambda a: a[0], js.SamplerState(**{**vars(state), "counts": counts}))
    given = SamplingParams(temperature=0.6, **params)
    one = lambda key: sample(key, x, given, state).tokens  # noqa: E731
    keys = jax.random.split(KEY, 200_000)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=2000))(keys))


def test_a_softmax_of_rounded_logits_is_detected():
    """The test of the float64 definition fails for the definition in bfloat16."""
    x = make("normal", 1, 1000, "bfloat16")[0] + np.asarray(20, jnp.bfloat16)
    rounded = (x.astype(np.float32) / np.float32(0.6)).astype(jnp.bfloat16)
    p, q = reference.softmax(x.astype(np.float64) / 0.6), reference.softmax(rounded)
    assert 0.5 * np.abs(p - q).sum() > 0.005
    tokens = np.random.default_rng(0).choice(x.size, 200_000, p=q)
    with pytest.raises(AssertionError):
        assert_follows(tokens, p)
    assert stats.chi2.sf(1e9, 99) < ERROR_RATE


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NARROW)
def test_the_draw_matches_the_same_values_in_float32(dtype):
    """Bit for bit, with and without a search, and with the temperature last."""
    x = every_kind(4, 300, dtype)
    params = params_of(len(x), 1)
    keys = jax.random.split(KEY, len(x))
    for order in (js.DEFAULT_ORDER, ("top_k", "top_p", "min_p", "temperature")):
        step = functools.partial(sample, order=order, num_logprobs=5, return_kept=True)
        got, want = step(keys, x, params), step(keys, x.astype(np.float32), params)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a, b)
