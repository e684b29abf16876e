"""A program that is exported for other platforms, with any number of rows, is the same program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from rows import every_kind

from jaxsample import SamplingParams, sample

pytestmark = pytest.mark.slow

# Of whole tiles of a TPU, which rows of any number are not held to, and not.
VOCABS = (1000, 8192)


def draw(keys, logits, params):
    return sample(jax.random.wrap_key_data(keys), logits, params)[:3]


def arguments(batch, vocab):
    """Keys as words, logits and params of some rows, or of the shape of any number of them."""
    keys = jax.ShapeDtypeStruct((batch, 2), jnp.uint32)
    params = SamplingParams(
        temperature=jax.ShapeDtypeStruct((batch,), jnp.float32),
        top_k=jax.ShapeDtypeStruct((batch,), jnp.int32),
        top_p=jax.ShapeDtypeStruct((batch,), jnp.float32),
        min_p=jax.ShapeDtypeStruct((batch,), jnp.float32),
    )
    return keys, jax.ShapeDtypeStruct((batch, vocab), jnp.float32), params


@pytest.fixture(scope="module", autouse=True)
def _serializable():
    export.register_pytree_node_serialization(
        SamplingParams,
        serialized_name="jaxsample.SamplingParams",
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: (),
    )


@functools.cache
def exported(vocab):
    (batch,) = export.symbolic_shape("batch")
    program = export.export(jax.jit(draw), platforms=["cpu", "cuda", "tpu"])
    return export.deserialize(program(*arguments(batch, vocab)).serialize())


@pytest.mark.parametrize("vocab", VOCABS)
def test_it_is_for_every_platform(vocab):
    assert exported(vocab).platforms == ("cpu", "cuda", "tpu")


@functools.cache
def drawn(vocab):
    """Arguments of 90 rows, and what they give."""
    logits = jnp.asarray(np.tile(every_kind(1, vocab), (10, 1)))
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), len(logits)))
    rng = np.random.default_rng(0)
    params = SamplingParams(
        temperature=jnp.asarray(rng.uniform(0, 2, len(logits)), jnp.float32),
        top_k=jnp.asarray(rng.integers(0, 500, len(logits)), jnp.int32),
        top_p=jnp.asarray(rng.uniform(0.5, 1, len(logits)), jnp.float32),
        min_p=jnp.asarray(rng.uniform(0, 0.1, len(logits)), jnp.float32),
    )
    given = (keys, logits, params)
    return given, draw(*given)


@pytest.mark.parametrize(("vocab", "batch"), [(1000, 1), (1000, 90), (8192, 9)])
def test_the_tokens_are_the_same(vocab, batch):
    given, want = jax.tree.map(lambda a: a[:batch], drawn(vocab))
    for got, expected in zip(exported(vocab).call(*given), want, strict=True):
        np.testing.assert_array_equal(got, expected)
