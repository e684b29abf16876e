import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from rows import DTYPES, every_kind, make, slow

from jaxsample import (
    DEFAULT_ORDER,
    SamplingParams,
    categorical_sample,
    entropy_scaled_logits,
    sample,
    scaled_logits,
    smoothed_logits,
    token_logprobs,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.3, 100.0])
def test_divides_by_the_temperature(dtype, temperature):
    x = make("masked", 3, 300, dtype)
    y = scaled_logits(x, temperature)
    assert y.dtype == jnp.float32
    exact = x.astype(np.float64) / np.float32(temperature)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=1.2e-7)


def test_the_textbook_example():
    x = jnp.array([1.0, 2.0])
    np.testing.assert_allclose(jax.nn.softmax(scaled_logits(x, 1.0)), [0.27, 0.73], atol=0.005)
    np.testing.assert_allclose(jax.nn.softmax(scaled_logits(x, 0.5)), [0.12, 0.88], atol=0.005)


@pytest.mark.parametrize("dtype", DTYPES)
def test_temperature_0_keeps_rank_0_alone(dtype):
    x = every_kind(4, 1000, dtype)
    for before, after in zip(x, np.asarray(scaled_logits(x, 0)), strict=True):
        best = reference.ranking(before)[0]
        assert after[best] == before[best]
        assert (np.delete(after, best).astype(np.float32) == -np.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_temperature_1_is_the_identity(dtype):
    x = every_kind(3, 1000, dtype)
    assert_same_bits(scaled_logits(x, 1.0), x.astype(np.float32))


def assert_same_bits(got, want):
    np.testing.assert_array_equal(np.asarray(got).view(np.uint8), want.view(np.uint8))


COLD = {
    "float32": [
        ([2, 4, 3], 2.0**-126, 1),
        ([300, 1], 1e-37, 0),
        ([-300, -299], 1e-37, 1),
        ([301, 302, 302, 300], 1e-37, 1),  # the first of equal logits
        ([3e38, 1, -3e38], 0.1, 0),
    ],
    "float16": [([2, 1], 1e-5, 0), ([25, 20, 3], 3e-4, 0), ([70, 1], 0.001, 0)],
}
"""Rows, temperatures at which a logit or the gap between two overflows, and the token."""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", COLD)
def test_a_temperature_under_which_a_logit_overflows_is_greedy(dtype):
    rows, temperature, token = zip(*COLD[dtype], strict=True)
    x = [np.pad(np.float32(row), (0, 4 - len(row)), constant_values=-np.inf) for row in rows]
    x = np.stack([*x, np.zeros(4)]).astype(dtype)  # plus a row that is not affected
    temperature, token = np.float32([*temperature, 1]), np.array(token)
    keys = jax.random.split(jax.random.key(0), len(x))
    for scaled in (
        scaled_logits(x, temperature),
        entropy_scaled_logits(x, temperature, temperature),
    ):
        np.testing.assert_array_equal(categorical_sample(keys, scaled)[:-1], token)
        np.testing.assert_array_equal(token_logprobs(scaled, np.append(token, 0))[:-1], 0)
    last = ("top_k", "top_p", "temperature")
    cuts = {"top_k": 3, "top_p": 0.9}
    for params, order in (({}, DEFAULT_ORDER), (cuts, DEFAULT_ORDER), (cuts, last)):
        out = sample(keys, x, SamplingParams(temperature=temperature, **params), order=order)
        np.testing.assert_array_equal(out.tokens[:-1], token)
        np.testing.assert_array_equal(out.logprobs[:-1], 0)
        assert out.num_kept[-1] == (3 if params else 4)


@pytest.mark.slow
def test_the_largest_logit_may_overflow():
    x = jnp.array([[1.0, 9.0], [1.0, 9.0]])
    y = scaled_logits(x, jnp.array([2e-38, 2e-37]))
    np.testing.assert_array_equal(y[0], [-np.inf, 9])
    np.testing.assert_allclose(y[1], [5e36, 4.5e37], rtol=1e-6)
    gradient = jax.grad(lambda t: token_logprobs(scaled_logits(x[0], t), 1))
    assert gradient(2e-38) == 0


def test_the_gradient_by_logits_and_by_temperature():
    x = jnp.array([[1.0, -jnp.inf, 2.0], [3.0, 1.0, -1.0]])
    weights = jnp.array([[1.0, 1.0, 3.0], [1.0, 2.0, 3.0]])

    def loss(x, t):
        y = scaled_logits(x, t)
        return jnp.sum(jnp.where(y > -jnp.inf, y, 0) * weights)

    t = jnp.array([0.5, 2.0])
    by_logits, by_temperature = jax.grad(loss, argnums=(0, 1))(x, t)
    np.testing.assert_allclose(by_logits, [[2, 0, 6], [0.5, 1, 1.5]])
    np.testing.assert_allclose(by_temperature, [-7 / 0.25, -2 / 4], rtol=1e-6)


@pytest.mark.parametrize(("vocab", "dtype"), [(300, "float32"), slow(257, "bfloat16")])
def test_the_temperature_rises_with_the_entropy(vocab, dtype):
    x = every_kind(2, vocab, dtype)
    for low, high, exponent in ((0.5, 2.0, 1.0), (1.5, 0.3, 2.5), (0.7, 0.7, 1.0), (1.0, 3.0, 0.0)):
        y = np.asarray(entropy_scaled_logits(x, low, high, exponent), np.float64)
        for row, got in zip(x, y, strict=True):
            finite = row > -np.inf
            most = np.log(finite.sum())
            share = reference.entropy(row) / most if most else 0
            temperature = low + (high - low) * share**exponent
            want = row[finite].astype(np.float64) / temperature
            np.testing.assert_allclose(got[finite], want, rtol=2e-5)
            assert (got[~finite] == -np.inf).all()


def test_one_token_alone_gets_the_low_temperature():
    y = entropy_scaled_logits(jnp.array([-jnp.inf, 3.0]), 0.5, 2.0)
    np.testing.assert_array_equal(y, [-np.inf, 6])


@pytest.mark.parametrize(("vocab", "dtype"), [(300, "float32"), slow(257, "bfloat16")])
def test_smoothing_bends_by_the_distance_from_the_largest(vocab, dtype):
    x = every_kind(2, vocab, dtype)
    for factor, curve in ((0.3, 1.0), (1.0, 2.0), (0.2, 5.0)):
        y = np.asarray(smoothed_logits(x, factor, curve), np.float64)
        wide = x.astype(np.float64)
        d = np.where(wide > -np.inf, wide - wide.max(-1, keepdims=True), 0)
        bend = -factor * (3 - curve) / 2 * d**2 + factor * (curve - 1) / 2 * d**3
        want = np.where(wide > -np.inf, wide.max(-1, keepdims=True) + bend, -np.inf)
        scale = np.abs(wide.max(-1, keepdims=True)) + np.abs(bend)
        finite = wide > -np.inf
        slack = 1e-6 * (1 + scale)
        assert (np.abs(np.subtract(y, want, where=finite, out=np.zeros(y.shape))) <= slack).all()
        assert ((y == -np.inf) == ~finite).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_neutral_values_of_dynamic_scaling(dtype):
    x = every_kind(3, 300, dtype)
    for y in (entropy_scaled_logits(x, 1.0, 1.0, 2.0), smoothed_logits(x, 0.0, 3.0)):
        assert_same_bits(y, x.astype(np.float32))


def test_smoothing_masks_logits_that_go_out_of_range():
    lowest = np.finfo(np.float32).min  # some users mask with it
    y = smoothed_logits(np.float32([2.0, 1.0, lowest]), 0.3, 2.0)
    np.testing.assert_array_equal(y, np.float32([2, 1.7, -np.inf]))


@pytest.mark.slow
def test_bad_rows_of_dynamic_scaling():
    x = make("normal", 6, 300)
    x[1, 3], x[2] = np.nan, -np.inf
    ones = np.ones(6, np.float32)
    bad = np.array([1, 1, 1, -0.1, np.nan, np.inf], np.float32)
    want = np.asarray(entropy_scaled_logits(x, 0.5, ones, ones))[0]
    for arguments in ((bad, ones, ones), (ones, bad, ones), (ones, ones, bad)):
        y = np.asarray(entropy_scaled_logits(x, *arguments))
        np.testing.assert_array_equal(np.isnan(y).all(-1), [0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(entropy_scaled_logits(x[0], 0.5, 1.0), want)
    for arguments in ((bad, ones), (ones, np.where(bad == 1, 1, bad))):
        y = np.asarray(smoothed_logits(x, *arguments))
        np.testing.assert_array_equal(np.isnan(y).all(-1), [0, 1, 1, 1, 1, 1])
        np.testing.assert_array_equal(y[0], smoothed_logits(x[0], 1.0, 1.0))


@pytest.mark.slow
def test_gradients_of_dynamic_scaling():
    x = jnp.array([1.0, -jnp.inf, 2.0, 0.5])
    grad = jax.grad(lambda x: jnp.sum(jnp.where(x > -jnp.inf, smoothed_logits(x, 0.3, 2.0), 0)))(x)
    step = 1e-3
    for i in (0, 2, 3):
        moved = [
            smoothed_logits(x.at[i].add(s), 0.3, 2.0)[jnp.array([0, 2, 3])] for s in (step, -step)
        ]
        np.testing.assert_allclose(grad[i], (moved[0] - moved[1]).sum() / 2 / step, atol=2e-3)
    by_low = jax.grad(lambda low: entropy_scaled_logits(x, low, 2.0)[0])(0.5)
    moved = [entropy_scaled_logits(x, 0.5 + s, 2.0)[0] for s in (step, -step)]
    np.testing.assert_allclose(by_low, (moved[0] - moved[1]) / 2 / step, rtol=1e-2)
