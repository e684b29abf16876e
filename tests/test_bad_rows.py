"""Bad rows get token -1 and NaN and affect no other row; errors name bad shapes and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import make, slow

import jaxsample as js
from jaxsample import SamplingParams, sample

PARAMS = {"temperature": 0.9, "top_k": 300, "top_p": 0.95, "min_p": 0.01}
BAD_LOGITS = {"nan": np.nan, "-nan": -np.nan, "+inf": np.inf}
BAD_PARAMS = {
    "temperature": [-1.0, np.nan, np.inf, -np.inf],
    "top_k": [-2, -(2**31)],
    "top_p": [-0.1, 1.1, np.nan, np.inf],
    "min_p": [-0.1, 1.1, np.nan, np.inf],
}


def keys_of(batch):
    return jax.vmap(jax.random.key)(jnp.arange(batch))


def outputs(x, **params):
    """Returns the outputs of all functions for three rows."""
    p = {name: np.broadcast_to(params.get(name, value), 3) for name, value in PARAMS.items()}
    keys, tokens = keys_of(3), jnp.array([1, 2, 3])
    drawn = sample(keys, x, SamplingParams(**p))
    top = js.top_logprobs(x, num=3)
    return {
        "scaled": js.scaled_logits(x, p["temperature"]),
        "top_k": js.top_k_logits(x, p["top_k"]),
        "top_p": js.top_p_logits(x, p["top_p"]),
        "min_p": js.min_p_logits(x, p["min_p"]),
        "greedy": js.greedy_sample(x),
        "categorical": js.categorical_sample(keys, x),
        "tokens": drawn.tokens,
        "logprobs": drawn.logprobs,
        "num_kept": drawn.num_kept,
        "token_logprobs": js.token_logprobs(x, tokens),
        "ranks": js.token_ranks(x, tokens),
        "top_logprobs": top.logprobs,
        "top_tokens": top.tokens,
    }


def assert_bad(name, values):
    if name == "num_kept":
        assert (values == 0).all(), name
    elif np.issubdtype(np.asarray(values).dtype, np.integer):
        assert (values == -1).all(), name
    else:
        assert np.isnan(np.asarray(values, np.float32)).all(), name


@pytest.fixture(
    scope="module", params=[(300, "float32"), slow((5003, "float32")), slow((5003, "bfloat16"))]
)
def good(request):
    vocab, dtype = request.param
    x = make("normal", 3, vocab, dtype)
    return x, outputs(x)


@pytest.mark.parametrize("place", [0, 100, -1])
@pytest.mark.parametrize("name", BAD_LOGITS)
def test_bad_logits(good, name, place):
    x, want = good
    x = x.copy()
    x[1, place] = BAD_LOGITS[name]
    for key, got in outputs(x).items():
        assert_bad(key, got[1])
        np.testing.assert_array_equal(got[::2], want[key][::2], err_msg=key)


def test_all_masked(good):
    x, want = good
    x = x.copy()
    x[1] = -np.inf
    for key, got in outputs(x).items():
        assert_bad(key, got[1])
        np.testing.assert_array_equal(got[::2], want[key][::2], err_msg=key)


@pytest.mark.parametrize("name", BAD_PARAMS)
def test_bad_parameters(good, name):
    x, want = good
    affected = {"tokens", "logprobs", "num_kept", name.replace("temperature", "scaled")}
    for value in BAD_PARAMS[name]:
        column = np.array([PARAMS[name], value, PARAMS[name]])
        column = column.astype(np.int32 if name == "top_k" else np.float32)
        for key, got in outputs(x, **{name: column}).items():
            if key in affected:
                assert_bad(key, got[1])
            rest = got[::2] if key in affected else got
            np.testing.assert_array_equal(rest, want[key][::2] if key in affected else want[key])


@pytest.mark.slow
def test_bad_rows_get_the_requested_token(good):
    """Other outputs do not change."""
    x = good[0].copy()
    x[1, 3] = np.nan
    want = sample(keys_of(3), x, SamplingParams())
    got = sample(keys_of(3), x, SamplingParams(), bad_token=7)
    np.testing.assert_array_equal(got.tokens, np.where(np.arange(3) == 1, 7, want.tokens))
    np.testing.assert_array_equal(got.logprobs, want.logprobs)
    np.testing.assert_array_equal(got.num_kept, want.num_kept)
    assert want.tokens[1] == -1


@pytest.mark.slow
def test_bad_rows_leave_gradients_alone():
    """Padding of -inf, a NaN, +inf, a bad parameter: rows with a masked loss have no gradient."""
    good = jnp.asarray(make("normal", 1, 300)[0])
    bad = [good.at[3].set(jnp.nan), good.at[3].set(jnp.inf), jnp.full(300, -jnp.inf), good]
    x, p = jnp.stack([good, *bad]), jnp.array([0.9, 0.9, 0.9, 0.9, 2.0])

    def loss(x, temperature):
        out = sample(keys_of(5), x, SamplingParams(temperature=temperature, top_p=p))
        scaled = js.scaled_logits(x, temperature)
        plain = js.token_logprobs(scaled, jnp.arange(5, dtype=jnp.int32))
        kept = jnp.where(out.tokens >= 0, out.logprobs, 0) + jnp.where(out.tokens >= 0, plain, 0)
        return jnp.sum(kept) + jnp.sum(jnp.where(jnp.isfinite(scaled), scaled, 0)[:1])

    by_logits, by_temperature = jax.grad(loss, argnums=(0, 1))(x, 0.7)
    assert jnp.isfinite(by_logits).all()
    assert jnp.isfinite(by_temperature)
    assert (by_logits[1:] == 0).all()
    assert (by_logits[0] != 0).any()


def test_validate_takes_logits_of_any_value():
    """A row with a NaN is a bad row, which is detected on the device."""
    logits = np.float32([[np.nan, np.inf, -np.inf, 0]])
    SamplingParams(unconditional_logits=logits, guidance_scale=1.5).validate()


@pytest.mark.slow
def test_a_lone_bad_row_and_a_batch_of_them():
    x = jnp.full((4, 300), jnp.nan)
    out = sample(keys_of(4), x, SamplingParams(top_p=0.9))
    assert (out.tokens == -1).all()
    assert jnp.isnan(out.logprobs).all()
    assert js.greedy_sample(x[0]) == -1


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: js.greedy_sample(x.astype(jnp.int32)), TypeError, "logits must be float32"),
        (lambda x: js.greedy_sample(x[0, 0]), ValueError, r"logits must have shape \[..., vocab\]"),
        (lambda x: js.greedy_sample(x[:, :0]), ValueError, r"vocab in \[1, .*got \(2, 0\)"),
        (lambda x: js.scaled_logits(x, np.ones(3)), ValueError, "temperature must be a scalar or"),
        (
            lambda x: js.scaled_logits(x, np.ones((2, 2))),
            ValueError,
            r"temperature.*, got \(2, 2\)",
        ),
        (lambda x: js.scaled_logits(x, np.ones((2, 1, 1))), ValueError, "temperature must be a sc"),
        (lambda x: js.scaled_logits(x, 1j), TypeError, "temperature must be a real number"),
        (lambda x: js.top_k_logits(x, 2.0), TypeError, "k must be an integer, .*got float64"),
        (lambda x: js.top_k_logits(x, True), TypeError, "k must be an integer, .*got bool"),
        (lambda x: js.top_p_logits(x, "a"), TypeError, "p must be a real number"),
        (lambda x: js.min_p_logits(x, np.ones(5)), ValueError, "p must be a scalar or"),
        (lambda x: js.token_logprobs(x, np.ones(3, int)), ValueError, "tokens must be a scalar or"),
        (lambda x: js.token_logprobs(x, np.ones(2)), TypeError, "tokens must be an integer"),
        (lambda x: js.token_ranks(x, 1), ValueError, "tokens must hold one token id a row"),
        (lambda x: js.token_logprobs(x, np.ones((2, 1), int)), ValueError, "tokens must be a sca"),
        (lambda x: js.categorical_sample(0, x), TypeError, "key must be a jax.random.key"),
        (lambda x: sample(2**40, x, SamplingParams()), TypeError, "request_keys make keys of inte"),
        (lambda x: sample(None, x, SamplingParams()), TypeError, "key must hold numbers, got None"),
        (lambda x: js.greedy_sample([[1, 2], [3]]), ValueError, "logits must be an array, or a li"),
        (lambda x: js.greedy_sample("x"), TypeError, "logits must hold numbers, got 'x'"),
        (lambda x: js.categorical_sample(jnp.zeros(3, jnp.uint32), x), TypeError, "key must be a"),
        (lambda x: js.categorical_sample(keys_of(3), x), ValueError, r"key must be one key, or"),
        (
            lambda x: sample(keys_of(2), x, SamplingParams(), bad_token=10),
            ValueError,
            "bad_token m",
        ),
        (
            lambda x: sample(keys_of(2), x, SamplingParams(), bad_token=-2),
            ValueError,
            "bad_token m",
        ),
        (lambda x: sample(keys_of(2), x, {"top_p": 1}), TypeError, "params must be a SamplingPar"),
        *(
            (
                lambda x, field=field: sample(keys_of(2), x, SamplingParams(**field)),
                ValueError,
                f"^{next(iter(field))} must be an array, or a list whose rows are of one length",
            )
            for field in (
                {"stop_token_ids": [[1], [2, 3]]},
                {"suppressed_token_ids": [[1], [2, 3]]},
                {"bad_words": [[[1], [2, 3]]]},
                {"temperature": [1, [2, 3]]},
            )
        ),
        (
            lambda x: sample(
                keys_of(2), x, SamplingParams(suppressed_token_ids=np.ones((3, 1), int))
            ),
            ValueError,
            r"suppressed_token_ids must have one list .* shape \(2,\), got \(3, 1\)",
        ),
        (lambda x: sample(keys_of(2), x, SamplingParams(top_k=0.5)), TypeError, "top_k must be an"),
        (lambda x: sample(keys_of(2), x, SamplingParams(min_p=np.ones(5))), ValueError, "min_p mu"),
    ],
)
def test_wrong_shapes_and_dtypes_name_the_argument(call, error, match):
    x = jnp.zeros((2, 10))
    with pytest.raises(error, match=match):
        call(x)
    with pytest.raises(error, match=match):
        jax.jit(call)(x)
