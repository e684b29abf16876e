import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from rows import DTYPES, SIZES, every_kind, make, slow

from jaxsample import min_p_logits, top_k_logits, top_p_logits

ROUNDING = 2e-6  # relative: the masses are exact sums of weights of 23 bits


def kept(logits):
    return np.asarray(logits).astype(np.float32) > -np.inf


def assert_between(low, mask, high):
    assert (mask >= low).all()
    assert (mask <= high).all()


@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
def test_top_k_keeps_the_first_k_of_the_ranking(vocab, dtype):
    x = every_kind(2, vocab, dtype)
    for k in {0, 1, 2, 63, 64, 65, 66, 300, vocab - 1, vocab, vocab + 1}:
        want = np.stack([reference.top_k(row, k) for row in x])
        np.testing.assert_array_equal(kept(top_k_logits(x, k)), want, err_msg=f"k={k}")


@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
def test_top_p_keeps_the_shortest_prefix_that_reaches_p(vocab, dtype):
    x = every_kind(2, vocab, dtype)
    for p in (0.0, 1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0):
        got = kept(top_p_logits(x, p))
        for row, mask in zip(x, got, strict=True):
            shares = (1, 1) if p == 1 else (p * (1 - ROUNDING), p * (1 + ROUNDING))
            low, high = (reference.top_p(row, share) for share in shares)
            assert_between(low, mask, high)


@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
def test_min_p_keeps_what_is_likely_enough(vocab, dtype):
    x = every_kind(2, vocab, dtype)
    for p in (0.0, 1e-6, 0.02, 0.5, 1.0):
        got = kept(min_p_logits(x, p))
        for row, mask in zip(x.astype(np.float64), got, strict=True):
            slack = 1e-6 * max(1, abs(row.max()))
            high = (row >= row.max() + np.log(max(p, 1e-300)) - slack) & (row > -np.inf)
            low = (row >= row.max() + np.log(max(p, 1e-300)) + slack) | (row == row.max())
            low &= row > -np.inf
            assert_between(low, mask, high)


def test_an_oracle_without_slack_on_exact_probabilities():
    p = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32)
    want = {0.0: 1, 0.5: 1, 0.51: 2, 0.75: 2, 0.76: 3, 0.875: 3, 0.9375: 4, 0.94: 5, 1.0: 5}
    for share, length in want.items():
        assert kept(top_p_logits(np.log(p), share)).sum() == length, share


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16"), slow("float16")])
def test_kept_logits_do_not_change(dtype):
    x = every_kind(2, 1000, dtype)
    for y in (top_k_logits(x, 70), top_p_logits(x, 0.8), min_p_logits(x, 0.1)):
        assert y.dtype == x.dtype
        mask = kept(y)
        np.testing.assert_array_equal(np.asarray(y)[mask].view(np.uint8), x[mask].view(np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_neutral_values_are_the_identity(dtype):
    x = every_kind(2, 5003, dtype)
    for y in (
        top_k_logits(x, 0),
        top_k_logits(x, 5003),
        top_k_logits(x, 2**40),
        top_p_logits(x, 1.0),
        min_p_logits(x, 0.0),
    ):
        np.testing.assert_array_equal(np.asarray(y).view(np.uint8), x.view(np.uint8))


@pytest.mark.slow
def test_ties_of_bfloat16_over_a_large_vocabulary():
    x = make("normal", 2, 128256, "bfloat16")
    assert np.unique(x[0].astype(np.float32)).size < 3000  # many ties
    for k in (50, 1000):
        want = np.stack([reference.top_k(row, k) for row in x])
        np.testing.assert_array_equal(kept(top_k_logits(x, k)), want)
    length = kept(top_p_logits(x, 0.9)).sum(axis=-1)
    for row, n in zip(x, length, strict=True):
        low, high = (reference.top_p(row, 0.9 * (1 + s * ROUNDING)).sum() for s in (-1, 1))
        assert low <= n <= high


@pytest.mark.slow
def test_each_row_has_its_own_parameter():
    x = make("normal", 4, 5003)
    k = np.array([0, 1, 64, 500])
    got = np.asarray(top_k_logits(x, k))
    for i in range(4):
        np.testing.assert_array_equal(got[i], top_k_logits(x[i], k[i]))
    p = np.array([0.0, 0.3, 0.99, 1.0], np.float32)
    got = np.asarray(top_p_logits(x, p))
    for i in range(4):
        np.testing.assert_array_equal(got[i], top_p_logits(x[i], p[i]))


@pytest.mark.slow
def test_rows_of_any_rank():
    x = make("normal", 6, 257)
    want = np.asarray(top_p_logits(x, 0.9))
    np.testing.assert_array_equal(top_p_logits(x.reshape(2, 3, 257), 0.9).reshape(6, 257), want)
    p = np.full((2, 1), 0.9, np.float32)
    np.testing.assert_array_equal(top_p_logits(x.reshape(2, 3, 257), p).reshape(6, 257), want)
    assert top_p_logits(x[:0], 0.9).shape == (0, 257)
    assert top_k_logits(x[:0], 100).shape == (0, 257)


@pytest.mark.slow
def test_only_kept_logits_have_gradients():
    x = jnp.asarray(make("normal", 2, 500))
    for transform in (
        lambda x: top_k_logits(x, 100),
        lambda x: top_p_logits(x, 0.9),
        lambda x: min_p_logits(x, 0.05),
    ):
        y, gradient = jax.vjp(transform, x)
        (grad,) = gradient(jnp.ones_like(y))
        np.testing.assert_array_equal(np.asarray(grad), kept(y).astype(np.float32))
