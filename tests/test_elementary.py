"""Logarithms and powers: close to those of float64, and equal in arrays of every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsample._core import _elementary

POSITIVE = np.exp(np.random.default_rng(0).uniform(-80, 80, 4096)).astype(np.float32)
NEAR_1 = (1 + np.random.default_rng(1).uniform(-0.3, 0.5, 4096)).astype(np.float32)
SHARES = np.exp(np.random.default_rng(2).uniform(-40, 0, 4096)).astype(np.float32)
SHARES = np.minimum(SHARES, np.float32(1 - 2.0**-24))
EXPONENTS = np.random.default_rng(3).uniform(-125, 120, 4096).astype(np.float32)


def ulps(got, want):
    want = np.asarray(want, np.float64)
    return np.abs(np.asarray(got, np.float64) - want) / np.spacing(np.abs(want).astype(np.float32))


def test_accuracy():
    for x in (POSITIVE, NEAR_1[NEAR_1 != 1]):
        assert ulps(_elementary.log(x), np.log(x.astype(np.float64))).max() < 1.5
    want = np.log1p(-SHARES.astype(np.float64))
    assert ulps(_elementary.log1m(SHARES), want).max() < 4
    assert ulps(_elementary.exp2(EXPONENTS), np.exp2(EXPONENTS.astype(np.float64))).max() < 4


def test_edges():
    x = jnp.array([0.0, -0.0, 1.0, np.inf, -1.0, np.nan])
    np.testing.assert_array_equal(_elementary.log(x), [-np.inf, -np.inf, 0, np.inf, np.nan, np.nan])
    x = jnp.array([0.0, 1.0, 10.0, -126.0, -np.inf, np.nan])
    np.testing.assert_array_equal(_elementary.exp2(x), [1, 2, 1024, 0, 0, np.nan])
    np.testing.assert_array_equal(_elementary.log1m(jnp.array([0.0])), [0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "x"),
    [
        (_elementary.log, POSITIVE),
        (_elementary.log, NEAR_1),
        (_elementary.log1m, SHARES),
        (_elementary.exp2, EXPONENTS),
    ],
)
def test_the_size_of_the_array_does_not_matter(function, x):
    want = jax.jit(function)(x)
    for size in (1, 3, 5, 7, 9, 13, 501):
        parts = x[: 4096 // size * size].reshape(-1, size)[:200]
        alone = jax.jit(lambda part: jax.lax.optimization_barrier(function(part)))
        got = np.concatenate([alone(part) for part in parts])
        np.testing.assert_array_equal(got, want[: got.size])


def test_the_derivative_of_log():
    x = jnp.array([0.5, 2.0, 10.0])
    np.testing.assert_allclose(jax.vmap(jax.grad(_elementary.log))(x), 1 / x)


def test_a_minimum_is_found_if_sums_round_differently():
    """Reductions of floats may use a library that rounds preceding sums differently."""
    from jaxsample._core import _draw

    x = np.random.default_rng(4).random((4096, 4)).astype(np.float32)
    ids = np.broadcast_to(np.arange(4, dtype=np.int32), x.shape)
    race = jax.jit(
        lambda x: _draw.winner(_elementary._polynomial(_elementary._LOG, x), jnp.asarray(ids))
    )
    assert (race(x) < 4).all()
