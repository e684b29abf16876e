import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from rows import DTYPES, every_kind, make

from jaxsample import scaled_logits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.3, 100.0])
def test_divides_by_the_temperature(dtype, temperature):
    x = make("masked", 3, 300, dtype)
    y = scaled_logits(x, temperature)
    assert y.dtype == x.dtype
    exact = x.astype(np.float64) / np.float32(temperature)
    epsilon = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=epsilon)


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
    y = np.asarray(scaled_logits(x, 1.0))
    np.testing.assert_array_equal(y.view(np.uint8), x.view(np.uint8))


def test_an_overflow_is_a_bad_row_and_not_a_guess():
    x = jnp.array([[1.0, 9.0], [1.0, 9.0]])
    y = scaled_logits(x, jnp.array([2e-38, 2e-37]))
    assert jnp.isnan(y[0]).all()
    np.testing.assert_allclose(y[1], [5e36, 4.5e37], rtol=1e-6)
    assert jnp.isnan(scaled_logits(jnp.array([1.0, 2.0], jnp.float16), 1e-5)).all()


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
