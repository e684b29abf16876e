import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from rows import KINDS, SIZES, every_kind, make

from jaxsample import (
    scaled_logits,
    token_logprobs,
    token_ranks,
    top_k_logits,
    top_logprobs,
    top_p_logits,
)

ROUNDING = 3e-6  # of a sum of 256 weights of 23 bits, in the worst case


@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
def test_token_logprobs_equal_the_definition(vocab, dtype):
    x = every_kind(3, vocab, dtype)
    tokens = np.random.default_rng(0).integers(vocab, size=len(x)).astype(np.int32)
    want = [reference.logprobs(row)[token] for row, token in zip(x, tokens, strict=True)]
    np.testing.assert_allclose(token_logprobs(x, tokens), want, rtol=1e-6, atol=ROUNDING)


@pytest.mark.parametrize(("vocab", "dtype"), SIZES[::2])
def test_top_logprobs_are_the_head_of_the_ranking(vocab, dtype):
    x = every_kind(2, vocab, dtype)
    num = min(vocab, 100)
    logprobs, tokens = top_logprobs(x, num=num)
    for row, got, ids in zip(x, np.asarray(logprobs), np.asarray(tokens), strict=True):
        head = reference.ranking(row)[:num]
        finite = row[head] > -np.inf
        np.testing.assert_array_equal(ids, np.where(finite, head, -1))
        np.testing.assert_allclose(got, reference.logprobs(row)[head], rtol=1e-6, atol=ROUNDING)


@pytest.mark.parametrize(("vocab", "dtype"), SIZES[::2])
def test_token_ranks_are_places_in_the_ranking(vocab, dtype):
    x = every_kind(3, vocab, dtype)
    tokens = np.random.default_rng(1).integers(vocab, size=len(x)).astype(np.int32)
    want = [list(reference.ranking(row)).index(t) for row, t in zip(x, tokens, strict=True)]
    np.testing.assert_array_equal(token_ranks(x, tokens), want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_logprobs_sums_to_one(kind):
    x = make(kind, 1, 1000)
    rows = np.broadcast_to(x, (1000, 1000))
    logprobs = np.asarray(token_logprobs(rows, np.arange(1000, dtype=np.int32)), np.float64)
    np.testing.assert_allclose(np.exp(logprobs).sum(), 1, rtol=1e-5)


def test_tokens_outside_the_vocabulary():
    x = jnp.zeros((3, 5))
    tokens = jnp.array([-1, 5, 2])
    np.testing.assert_allclose(token_logprobs(x, tokens), [np.nan, np.nan, -np.log(5)], rtol=1e-6)
    np.testing.assert_array_equal(token_ranks(x, tokens), [-1, -1, 2])


def test_the_number_of_top_logprobs():
    with pytest.raises(ValueError, match=r"num must be in \[1, 5\], got 6"):
        top_logprobs(jnp.zeros(5), num=6)
    with pytest.raises(TypeError, match="num must be a Python integer"):
        top_logprobs(jnp.zeros(5), num=2.0)


PIPELINES = {
    "none": lambda x: x,
    "temperature": lambda x: scaled_logits(x, 0.6),
    "top_k": lambda x: top_k_logits(x, 7),
    "all": lambda x: top_p_logits(top_k_logits(scaled_logits(x, 1.7), 20), 0.9),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_gradients_equal_finite_differences(name):
    pipeline = PIPELINES[name]
    x = make("normal", 1, 60)[0]
    token = int(reference.ranking(x)[1])
    gradient = np.asarray(jax.grad(lambda x: token_logprobs(pipeline(x), token))(x))
    kept = np.asarray(pipeline(x)) > -np.inf

    def exact(y):  # float64, over the kept set, with the temperature
        scale = {"temperature": 0.6, "all": 1.7}.get(name, 1.0)
        return reference.logprobs(np.where(kept, y / scale, -np.inf))[token]

    x64, step = x.astype(np.float64), 1e-5
    for i in range(60):
        bump = np.eye(60)[i] * step
        want = (exact(x64 + bump) - exact(x64 - bump)) / (2 * step)
        np.testing.assert_allclose(gradient[i], want, rtol=1e-3, atol=1e-6)
    assert (gradient[~kept] == 0).all()


@pytest.mark.slow
def test_the_second_derivative_is_that_of_a_softmax():
    x = jnp.array([0.3, -1.0, 2.0])
    hessian = jax.hessian(lambda x: token_logprobs(x, 0))(x)
    p = jax.nn.softmax(x)
    np.testing.assert_allclose(hessian, -(jnp.diag(p) - jnp.outer(p, p)), atol=1e-6)


@pytest.mark.slow
def test_top_logprobs_are_differentiable():
    x = jnp.asarray(make("normal", 1, 50)[0])
    got = jax.jacobian(lambda x: top_logprobs(x, num=3).logprobs)(x)
    tokens = top_logprobs(x, num=3).tokens
    np.testing.assert_allclose(got, jax.nn.one_hot(tokens, 50) - jax.nn.softmax(x)[None], atol=1e-6)
