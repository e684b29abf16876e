"""The replacement of tpu-inference's `sample`, on a substitute for its metadata."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from tpu_inference_sampler import Metadata, sample

import jaxsample

VOCAB = 300
MESH = Mesh(np.array(jax.devices()[:1]), "model")
LOGITS = jax.random.normal(jax.random.key(0), (4, VOCAB)) * 3
ROWS = Metadata(
    temperature=jnp.array([0.7, 1.0, 0.0, -1.0]),
    top_k=jnp.array([5, 0, 3, 0]),
    top_p=jnp.array([1.0, 0.9, 0.5, 1.0]),
    do_sampling=True,
)


@pytest.fixture(scope="module")
def drawn():
    return sample(jax.random.key(1), MESH, LOGITS, ROWS)


def test_greedy_rows_and_padding_get_the_most_likely_token_and_all_logits(drawn):
    tokens, processed = drawn
    np.testing.assert_array_equal(tokens[2:], np.argmax(LOGITS[2:], -1))
    np.testing.assert_array_equal(processed[2:], LOGITS[2:])


def test_other_rows_have_the_processed_logits_that_they_are_drawn_from(drawn):
    tokens, processed = drawn
    top_k = jaxsample.top_k_logits(jaxsample.scaled_logits(LOGITS[0], 0.7), 5)
    np.testing.assert_array_equal(processed[0], top_k)
    np.testing.assert_array_equal(processed[1], jaxsample.top_p_logits(LOGITS[1], 0.9))
    of_tokens = np.take_along_axis(np.asarray(processed), np.asarray(tokens)[:, None], -1)
    assert (of_tokens > -np.inf).all()


def test_a_batch_of_greedy_rows_has_no_params():
    tokens, processed = sample(jax.random.key(1), MESH, LOGITS, Metadata())
    np.testing.assert_array_equal(tokens, np.argmax(LOGITS, -1))
    np.testing.assert_array_equal(processed, LOGITS)


def test_new_values_compile_nothing(drawn):
    before = sample._cache_size()
    other = Metadata(ROWS.temperature * 2, ROWS.top_k + 1, ROWS.top_p / 2, do_sampling=True)
    sample(jax.random.key(2), MESH, LOGITS, other)
    assert sample._cache_size() == before
