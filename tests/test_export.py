"""A program exported for other platforms and any number of rows gives the same results."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from rows import every_kind

import jaxsample
from jaxsample import SamplingParams, beam_step, init_beams, sample

# Without and with whole TPU tiles; any number of rows must be supported for both.
VOCABS = (1000, 8192)


def draw(keys, logits, params):
    return sample(jax.random.wrap_key_data(keys), logits, params)


def arguments(batch, vocab):
    """Returns the shapes of keys as words, logits and params; the batch may be symbolic."""
    keys = jax.ShapeDtypeStruct((batch, 2), jnp.uint32)
    params = SamplingParams(
        temperature=jax.ShapeDtypeStruct((batch,), jnp.float32),
        top_k=jax.ShapeDtypeStruct((batch,), jnp.int32),
        top_p=jax.ShapeDtypeStruct((batch,), jnp.float32),
        min_p=jax.ShapeDtypeStruct((batch,), jnp.float32),
    )
    return keys, jax.ShapeDtypeStruct((batch, vocab), jnp.float32), params


@functools.cache
def exported(vocab):
    (batch,) = export.symbolic_shape("batch")
    program = export.export(jax.jit(draw), platforms=["cpu", "cuda", "tpu"])
    return export.deserialize(program(*arguments(batch, vocab)).serialize())


@pytest.mark.slow
@pytest.mark.parametrize("vocab", VOCABS)
def test_the_program_is_for_every_platform(vocab):
    assert exported(vocab).platforms == ("cpu", "cuda", "tpu")


@functools.cache
def drawn(vocab):
    """Returns arguments of 90 rows, and their results."""
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


@pytest.mark.slow
@pytest.mark.parametrize(("vocab", "batch"), [(1000, 1), (1000, 90), (8192, 9)])
def test_the_tokens_are_the_same(vocab, batch):
    given, want = jax.tree.map(lambda a: a[:batch], drawn(vocab))
    jax.tree.map(np.testing.assert_array_equal, exported(vocab).call(*given), want)


CLASSES = [kind for name in jaxsample.__all__ if inspect.isclass(kind := getattr(jaxsample, name))]
STATIC = {jaxsample.Rule, jaxsample.StopReason}


@pytest.mark.parametrize(
    "kind", [kind for kind in CLASSES if kind not in STATIC], ids=lambda kind: kind.__name__
)
def test_every_type_of_arguments_and_results_is_serialized(kind):
    names = getattr(kind, "_fields", None) or [field.name for field in dataclasses.fields(kind)]
    value = kind(**dict.fromkeys(names, 2))
    program = export.export(jax.jit(lambda value: value))(value)
    got = export.deserialize(program.serialize()).call(value)
    jax.tree.map(np.testing.assert_array_equal, got, value)


def search(state, logits):
    return beam_step(state, logits, stop_token_ids=[3])


@pytest.mark.slow
def test_a_step_of_beams_is_the_same():
    batch, vocab = 3, 1000
    rows = jnp.asarray(every_kind(1, vocab)[:8]).reshape(2, 4, vocab)
    steps = [jnp.tile(rows, (2, 1, 1))[start : start + batch] for start in (0, 1)]
    state = init_beams(4, 6, (batch,), num_groups=2)
    shapes = export.symbolic_args_specs((state, steps[0]), "batch, ...")
    program = export.export(jax.jit(search), platforms=["cpu", "cuda", "tpu"])(*shapes)
    called = export.deserialize(program.serialize()).call
    for logits in steps:
        want = search(state, logits)
        jax.tree.map(np.testing.assert_array_equal, called(state, logits), want)
        state, *_ = want
