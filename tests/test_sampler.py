import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from rows import exhaustive, make, slow

from jaxsample import SamplingParams, sample, scaled_logits
from jaxsample.params import converted

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1}, "temperature must be finite and at least 0, got -1"),
        ({"temperature": [1, np.inf]}, r"temperature\[1\] must be finite and at least 0, got inf"),
        ({"top_k": [[3, 4], [5, -2]]}, r"top_k\[1, 1\] must be at least -1, got -2"),
        ({"stop_token_ids": [[3, 2**21]]}, r"stop_token_ids\[0, 1\] must be below 2\d+, got 2\d+"),
        ({"top_p": 1.5}, r"top_p must be in \[0, 1\], got 1.5"),
        ({"top_p": np.nan}, r"top_p must be in \[0, 1\], got nan"),
        ({"min_p": [0.1, 0.2, -0.5]}, r"min_p\[2\] must be in \[0, 1\], got -0.5"),
    ],
)
def test_validate_names_the_field_the_row_and_the_range(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SamplingParams(**fields).validate()


def test_validate_rejects_non_numbers():
    with pytest.raises(TypeError, match="top_k must hold integers, got float64"):
        SamplingParams(top_k=0.5).validate()
    with pytest.raises(TypeError, match="top_p must hold real numbers, got <U1"):
        SamplingParams(top_p="x").validate()


def test_validate_checks_the_computed_values():
    SamplingParams(top_p=jnp.array([0.9], jnp.bfloat16)).validate()
    with pytest.raises(ValueError, match="temperature must be finite and at least 0, got 1e"):
        SamplingParams(temperature=1e300).validate()


@pytest.mark.slow
def test_parameters_other_than_the_temperature_have_no_gradient():
    x = jnp.asarray(make("normal", 2, 300))

    def logprob(params):
        return jnp.sum(sample(KEY, x, params).logprobs)

    params = SamplingParams(temperature=0.7, top_p=0.9, min_p=0.01)
    gradient = jax.grad(logprob)(params)
    assert gradient.temperature != 0
    assert gradient.top_p == 0
    assert gradient.min_p == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "uint16", "uint32"])
def test_integers_of_any_width(dtype):
    x = jnp.asarray(make("normal", 2, 300))
    k = jnp.array([3, 100], dtype)
    want = sample(KEY, x, SamplingParams(top_k=np.array([3, 100])))
    for a, b in zip(sample(KEY, x, SamplingParams(top_k=k))[:3], want[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_validate_accepts_values_in_range():
    SamplingParams().validate()
    top_k = jnp.array([-1, 0, 10**6])
    SamplingParams(temperature=[0, 1e4], top_k=top_k, top_p=0, min_p=1).validate()


def test_params_are_a_pytree_whose_missing_fields_have_no_leaves():
    params = SamplingParams(temperature=1.0, top_p=jnp.array([0.5, 0.9]))
    assert len(jax.tree.leaves(params)) == 2
    second = jax.tree.map(lambda x: jnp.broadcast_to(x, 2)[1], params)
    assert second.top_k is None
    assert second.top_p == jnp.float32(0.9)


def test_params_of_values_on_the_host_are_hashed_and_compared_by_them():
    """They may be static arguments of jit."""
    fields = {"temperature": 0.7, "top_p": np.nan, "stop_token_ids": [[1, 2]], "min_tokens": 3}
    params, same = (
        SamplingParams(**fields, allowed=np.array([True, False]), custom={"x": np.arange(3)})
        for _ in range(2)
    )
    assert params == same
    assert hash(params) == hash(same)
    for change in (
        {"temperature": np.float32(0.7)},
        {"temperature": None},
        {"allowed": np.array([True, True])},
        {"allowed": np.array([[True, False]])},
        {"custom": {"y": np.arange(3)}},
        {"top_k": 3},
    ):
        assert params != dataclasses.replace(params, **change)
    assert params != 3
    kept = jax.jit(lambda params: params.min_tokens + 1, static_argnums=0)(params)
    assert kept == 4


def test_params_of_arrays_of_jax_are_compared_and_name_the_field_that_has_no_hash():
    params = SamplingParams(top_p=jnp.array([0.5, 0.9]), top_k=3)
    assert params == SamplingParams(top_p=jnp.array([0.5, 0.9]), top_k=3)
    assert params != SamplingParams(top_p=jnp.array([0.5, 0.8]), top_k=3)
    with pytest.raises(TypeError, match=r"top_p must be a number or a NumPy array.*float32\[2\]"):
        hash(params)
    with pytest.raises(TypeError, match=r"custom\['x'\] must be a number or a NumPy array"):
        hash(SamplingParams(custom={"x": jnp.zeros(3)}))
    with pytest.raises(TypeError, match="top_k must be a number or a NumPy array to hash"):
        jax.jit(lambda k: SamplingParams(top_k=k) == params)(3)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_a_column_of_parameters_is_one_a_row(shape):
    """`[..., 1]` instead of `[...]`, for `sample` and the functions of rules."""
    x = jnp.zeros((*shape, 40))
    values = {"temperature": np.float32(0.7), "top_k": 5, "p_less": True}
    rows = {name: np.full(shape, value) for name, value in values.items()}
    columns = SamplingParams(**{name: value[..., None] for name, value in rows.items()})
    for name, value in rows.items():
        np.testing.assert_array_equal(getattr(converted("params", columns, x), name), value)
    got = scaled_logits(x + 1, columns.temperature)
    np.testing.assert_array_equal(got, scaled_logits(x + 1, rows["temperature"]))


@pytest.mark.slow
def test_one_token_is_kept_with_certainty():
    x = make("normal", 4, 5003)
    for params in (
        SamplingParams(temperature=0),
        SamplingParams(temperature=1.7, top_k=500, top_p=0.0),
    ):
        out = sample(KEY, x, params)
        np.testing.assert_array_equal(out.tokens, x.argmax(-1))
        np.testing.assert_array_equal(out.num_kept, 1)
        np.testing.assert_array_equal(out.logprobs, 0)


@pytest.mark.slow
def test_num_kept_counts_the_tokens_that_can_be_drawn():
    x = make("masked", 4, 5003)
    finite = np.sum(x > -np.inf, axis=-1)
    for params in (SamplingParams(), SamplingParams(top_k=4000), SamplingParams(top_p=1.0)):
        np.testing.assert_array_equal(sample(KEY, x, params).num_kept, finite)


@pytest.mark.slow
@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize(
    ("order", "implementation"),
    [
        (("temperature", "top_k"), "xla"),
        (("top_k", "temperature"), "xla"),
        exhaustive(("temperature", "top_k"), "pallas"),
        slow(("top_k", "temperature"), "pallas"),
    ],
)
def test_logits_that_the_temperature_takes_out_of_range_are_not_kept(order, implementation):
    """Some users mask with the least float32 number, which a low temperature makes -inf."""
    x = make("normal", 2, 300)
    x[:, 10:] = np.finfo(np.float32).min
    for k in (20, 200):  # among the candidates and beyond them
        params = SamplingParams(temperature=0.5, top_k=k)
        given = {"order": order, "num_logprobs": 20, "return_kept": True}
        out = sample(KEY, x, params, implementation=implementation, **given)
        assert (np.asarray(out.num_kept) == 10).all()
        assert (np.asarray(out.kept_mask)[:, 0] == 2**10 - 1).all()
        assert not np.asarray(out.kept_mask)[:, 1:].any()
        assert (np.asarray(out.top_logprobs.tokens)[:, 10:] == -1).all()


@pytest.mark.slow
def test_logprobs_are_of_the_distribution_drawn_from():
    x = make("normal", 50, 5003)
    out = sample(KEY, x, SamplingParams(temperature=0.7, top_k=100, top_p=0.9))
    for row, token, logprob in zip(x, out.tokens, out.logprobs, strict=True):
        scaled = row.astype(np.float64) / 0.7
        kept = np.where(reference.top_k(scaled, 100), scaled, -np.inf)
        kept = np.where(reference.top_p(kept, 0.9), kept, -np.inf)
        np.testing.assert_allclose(logprob, reference.logprobs(kept)[token], rtol=1e-5, atol=3e-6)


def test_an_empty_batch():
    params = SamplingParams(temperature=np.ones(0), top_k=np.ones(0, int), top_p=0.9, min_p=0.1)
    out = sample(KEY, jnp.zeros((0, 300)), params)
    assert [a.shape for a in out[:3]] == [(0,)] * 3
    assert sample(KEY, jnp.zeros((2, 0, 300)), SamplingParams()).tokens.shape == (2, 0)


@pytest.mark.slow
def test_logprobs_carry_the_gradient_of_the_kept_softmax():
    x = jnp.asarray(make("normal", 3, 300))
    key = jax.random.split(KEY, 3)

    def logprob(x, temperature):
        return jnp.sum(sample(key, x, SamplingParams(temperature=temperature, top_k=20)).logprobs)

    temperature = jnp.array([0.5, 1.0, 2.0])
    by_logits, by_temperature = jax.grad(logprob, argnums=(0, 1))(x, temperature)
    tokens = np.asarray(sample(key, x, SamplingParams(temperature=temperature, top_k=20)).tokens)
    for i, t in enumerate(np.asarray(temperature, np.float64)):
        row = np.asarray(x[i], np.float64)
        kept = np.where(reference.top_k(row, 20), row, -np.inf)
        p = reference.softmax(kept / t)
        onehot = np.eye(300)[tokens[i]]
        np.testing.assert_allclose(by_logits[i], (onehot - p) / t, atol=1e-5)
        want = -((onehot - p) @ np.where(p > 0, row, 0)) / t**2
        np.testing.assert_allclose(by_temperature[i], want, rtol=1e-4, atol=1e-5)
