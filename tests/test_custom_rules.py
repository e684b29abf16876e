"""User-defined rules in an order of `sample`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from composed import a_state, apply, assert_drawn, composed, every_param
from rows import every_kind, exhaustive, traces

import jaxsample as js
from jaxsample import Rule, SamplingParams, sample

VOCAB = 300


def softened(logits, params, state):
    """Uses products and sums that another program would fuse, and the text of the state."""
    seen = jnp.where(state.counts > 0, params["seen"][:, None], 0)
    return jnp.tanh(logits.astype(jnp.float32) / 7) * params["scale"][:, None] + seen


RULE = Rule("softened", softened)
REST = ("temperature", "top_k", "top_p", "min_p", "xtc")


def inputs(dtype):
    x = np.array(every_kind(8, VOCAB, dtype))
    rows = len(x)
    x[0, 3], x[1, -1], x[2] = np.nan, np.inf, -np.inf
    given = every_param(rows)
    params = SamplingParams(
        **{name: getattr(given, name) for name in (*REST[:-1], "xtc_probability", "xtc_threshold")},
        repetition_penalty=given.repetition_penalty,
        custom={
            "softened": {
                "scale": np.linspace(5, 9, rows, dtype=np.float32),
                "seen": np.linspace(-1, 1, rows, dtype=np.float32),
            }
        },
    )
    return jax.random.split(jax.random.key(1), rows), jnp.asarray(x), params, a_state(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "dtype"),
    [
        (("repetition_penalty",), "bfloat16"),
        exhaustive((), "bfloat16"),
        ((), "float32"),
        exhaustive(("repetition_penalty",), "float32"),
    ],
)
def test_a_rule_is_applied_between_the_stages(dtype, before):
    keys, x, params, state = inputs(dtype)
    own = dataclasses.replace(params, repetition_penalty=None) if not before else params
    out = sample(keys, x, own, state, order=(*before, RULE, *REST), return_kept=True)
    for stage in before:
        x = apply(stage, keys, x, params, state)
    x = jax.jit(softened)(x, params.custom["softened"], state)
    assert_drawn(out, *composed(keys, x, params, state, REST))
    assert out.tokens[0] == -1


def raised(logits, params, state):
    return logits.at[..., 5].add(params)


@pytest.mark.slow
def test_new_parameters_compile_nothing_and_rows_stay_alone():
    x, key = jnp.zeros((3, 40)), jax.random.split(jax.random.key(0), 3)
    order = (Rule("raised", raised), "temperature")
    params = SamplingParams(temperature=0.1, custom={"raised": 3.0})
    first = sample(key, x, params, order=order)
    before = traces(sample)
    again = sample(key, x, dataclasses.replace(params, custom={"raised": 2.0}), order=order)
    assert traces(sample) == before
    assert (np.asarray(first.tokens) == 5).all()
    assert (np.asarray(again.tokens) == 5).all()
    alone = jax.vmap(lambda key, x: sample(key, x, params, order=order))(key, x)
    np.testing.assert_array_equal(alone.logprobs, first.logprobs)
    nothing = sample(key, x, SamplingParams(), order=(Rule("zero", lambda x, params, state: x),))
    np.testing.assert_array_equal(nothing.tokens, js.categorical_sample(key, x))


@pytest.mark.slow
def test_its_gradient_passes():
    order = (Rule("doubled", lambda x, params, state: 2 * x), "temperature")
    x, params = jnp.arange(6.0), SamplingParams(temperature=0.7)
    grad = jax.grad(lambda x: sample(jax.random.key(2), x, params, order=order).logprobs)(x)
    token = int(sample(jax.random.key(2), x, params, order=order).tokens)
    want = jax.grad(lambda x: jax.nn.log_softmax(2 * x / 0.7)[token])(x)
    np.testing.assert_allclose(grad, want, rtol=1e-5, atol=1e-6)


def test_parameters_are_a_dictionary_by_name():
    with pytest.raises(TypeError, match=r"params.custom must be of type dict, got tuple"):
        sample(jax.random.key(0), jnp.zeros(4), SamplingParams(custom=(1.0,)))


@pytest.mark.parametrize(
    ("order", "custom", "match"),
    [
        ((Rule("top_k", raised),), None, "a rule named as a stage, got 'top_k'"),
        ((Rule("a", raised), Rule("a", raised)), None, "name a stage once, got 'a' twice"),
        ((("top_k", Rule("a", raised)),), None, "order must not nest 'a'"),
        (("top_k",), {"a": 1}, "order must contain every stage of the params, but lacks 'a'"),
        ((Rule("a", lambda x, p, s: x[..., :3]),), None, r"rule 'a' must return floating logits"),
        ((Rule("a", lambda x, p, s: x > 0),), None, r"of shape \(2, 40\), got bool"),
    ],
)
def test_errors_name_invalid_arguments(order, custom, match):
    with pytest.raises(ValueError, match=match):
        sample(jax.random.key(0), jnp.zeros((2, 40)), SamplingParams(custom=custom), order=order)
