"""The laws, bit for bit: fused equals composed, and a token depends only on its own key and row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import KINDS, every_kind, exhaustive, make, slow

from jaxsample import (
    SamplingParams,
    categorical_sample,
    greedy_sample,
    min_p_logits,
    sample,
    scaled_logits,
    token_logprobs,
    top_k_logits,
    top_p_logits,
)

TEMPERATURES = np.array([0, 0.2, 0.7, 1, 1.3, 1e4], np.float32)
TOP_KS = np.array([0, 1, 2, 50, 64, 65, 300, 10**6], np.int32)
TOP_PS = np.array([0, 0.1, 0.5, 0.9, 0.95, 0.999, 1], np.float32)
MIN_PS = np.array([0, 1e-5, 0.02, 0.3, 1], np.float32)
ROWS = 360
"""The size of a large batch: tests with the same shape share their programs."""


def random_params(batch: int, seed: int) -> SamplingParams:
    rng = np.random.default_rng(seed)
    return SamplingParams(
        temperature=rng.choice(TEMPERATURES, batch),
        top_k=rng.choice(TOP_KS, batch),
        top_p=rng.choice(TOP_PS, batch),
        min_p=rng.choice(MIN_PS, batch),
    )


def composed(keys, x, params):
    """Computes the definition of `sample`: tokens, log-probs and sizes of the kept sets."""
    if params.temperature is not None:
        x = scaled_logits(x, params.temperature)
    if params.top_k is not None:
        x = top_k_logits(x, params.top_k)
    if params.top_p is not None:
        x = top_p_logits(x, params.top_p)
    if params.min_p is not None:
        x = min_p_logits(x, params.min_p)
    tokens = categorical_sample(keys, x)
    return tokens, token_logprobs(x, tokens), jnp.sum(x > -jnp.inf, axis=-1)


def assert_fused_is_composed(keys, x, params):
    for fused, plain in zip(sample(keys, x, params)[:3], composed(keys, x, params), strict=True):
        np.testing.assert_array_equal(fused, plain)


def keys_of(batch: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [
        (1, "float32"),
        slow(2, "float16"),
        slow(65, "bfloat16"),
        (257, "float16"),
        slow(5003, "float32"),
        (5003, "bfloat16"),
        (8192, "bfloat16"),
    ],
)
def test_fused_is_composed(vocab, dtype):
    x = every_kind(ROWS // len(KINDS), vocab, dtype)
    for seed in range(3):
        assert_fused_is_composed(keys_of(len(x), seed), x, random_params(len(x), seed))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_is_composed_if_candidates_suffice(dtype):
    """No row of these batches needs the search, so each batch takes the fast path."""
    values = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.02}
    params = SamplingParams(**{name: np.full(ROWS, value) for name, value in values.items()})
    for seed in range(2):
        x = make("normal", ROWS, 5003, dtype, seed)
        assert_fused_is_composed(keys_of(ROWS, seed), x, params)


@pytest.mark.slow
@pytest.mark.parametrize("names", [[], ["temperature"], ["top_p"]])
def test_fused_is_composed_with_stages_left_out(names):
    x = every_kind(ROWS // len(KINDS), 5003)
    drawn = random_params(len(x), 7)
    params = SamplingParams(**{name: getattr(drawn, name) for name in names})
    assert_fused_is_composed(keys_of(len(x)), x, params)


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.0, 1.0]) | st.floats(2**-6, 64, width=32),
    k=st.integers(0, 400),
    p=st.floats(0, 1, width=32),
    m=st.floats(0, 1, width=32),
)
def test_fused_is_composed_for_any_parameters(kind, seed, temperature, k, p, m):
    x = make(kind, 64, 5003, "float32", seed)  # the shape of `batch`, to share its programs
    values = {"temperature": temperature, "top_p": p, "min_p": m}
    each = {name: np.full(64, value, np.float32) for name, value in values.items()}
    params = SamplingParams(**each, top_k=np.full(64, k, np.int32))
    assert_fused_is_composed(keys_of(64, seed), x, params)


def draws(keys, x, params):
    """Returns the tokens of every sampler."""
    return {
        "greedy": greedy_sample(x),
        "categorical": categorical_sample(keys, x),
        "sample": sample(keys, x, params).tokens,
    }


def assert_same(got, want):
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def rows_of(params, index):
    return jax.tree.map(lambda parameter: parameter[index], params)


@pytest.fixture(scope="module", params=["float32", exhaustive("bfloat16")])
def batch(request):
    x = every_kind(8, 5003, request.param)[:64]
    params = random_params(64, 3)
    keys = keys_of(64)
    return keys, x, params, draws(keys, x, params)


@pytest.mark.parametrize("size", [slow(1), slow(7), slow(64)])
def test_the_batch_does_not_matter(batch, size):
    keys, x, params, want = batch
    for start in range(0, 64, size)[:4]:
        part = slice(start, start + size)
        got = draws(keys[part], x[part], rows_of(params, part))
        assert_same(got, {name: tokens[part] for name, tokens in want.items()})


@pytest.mark.slow
def test_a_row_alone_has_no_batch_axis(batch):
    keys, x, params, want = batch
    for i in (0, 17, 63):
        got = draws(keys[i], x[i], rows_of(params, i))
        assert_same(got, {name: tokens[i] for name, tokens in want.items()})


def test_the_slot_does_not_matter(batch):
    keys, x, params, want = batch
    order = np.random.default_rng(0).permutation(64)
    got = draws(keys[order], x[order], rows_of(params, order))
    assert_same(got, {name: tokens[order] for name, tokens in want.items()})


@pytest.mark.slow
def test_vmap_scan_and_jit_do_not_matter(batch):
    keys, x, params, want = batch
    assert_same(jax.jit(draws)(keys, x, params), want)
    by_eight = jax.tree.map(lambda a: a.reshape(8, 8, *a.shape[1:]), (keys, x, params))
    for got in (
        jax.vmap(jax.vmap(draws))(*by_eight),
        draws(*by_eight),
        jax.lax.scan(lambda _, row: (None, draws(*row)), None, by_eight)[1],
    ):
        assert_same({name: tokens.reshape(64) for name, tokens in got.items()}, want)


@pytest.mark.exhaustive
def test_jit_can_be_disabled(batch):
    keys, x, params, want = batch
    some = np.arange(0, 64, 8)
    with jax.disable_jit():
        got = draws(keys[some], jnp.asarray(x)[some], rows_of(params, some))
    assert_same(got, {name: tokens[some] for name, tokens in want.items()})


@pytest.mark.slow
@pytest.mark.parametrize("columns", [slow(1), 53, 256, slow(3000)])
def test_masked_columns_after_the_vocabulary_do_not_matter(batch, columns):
    keys, x, params, want = batch
    padding = np.full((64, columns), -np.inf, x.dtype)
    k = np.where(params.top_k == 0, 0, np.minimum(params.top_k, 5003))
    params = SamplingParams(**{**vars(params), "top_k": k})
    assert_same(draws(keys, np.concatenate([x, padding], axis=-1), params), want)


def test_one_key_is_split_over_the_rows():
    x = make("normal", 6, 300).reshape(2, 3, 300)
    key = jax.random.key(5)
    want = categorical_sample(jax.random.split(key, (2, 3)), x)
    np.testing.assert_array_equal(categorical_sample(key, x), want)
    np.testing.assert_array_equal(categorical_sample(jax.random.key_data(key), x), want)


def test_raw_keys_are_typed_keys():
    x = make("normal", 6, 300)
    keys = keys_of(6)
    want = categorical_sample(keys, x)
    np.testing.assert_array_equal(categorical_sample(jax.random.key_data(keys), x), want)


@pytest.mark.slow
def test_other_key_implementations_obey_the_laws_too():
    x = make("normal", 6, 300)
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="rbg"))(jnp.arange(6))
    want = categorical_sample(keys, x)
    assert len(np.unique(want)) > 1
    got = [categorical_sample(keys[i], x[i]) for i in range(6)]
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(jax.vmap(categorical_sample)(keys, x), want)
