"""The law of the outputs of a step equals that of other systems, by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rejection_oracle as oracle
from scipy import stats

import jaxsample as js
from jaxsample import SamplingParams

pytestmark = pytest.mark.oracle

ROWS, NUMBER, VOCAB = 20000, 2, 4
ERROR_RATE = 1e-4


def models():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, NUMBER + 1, VOCAB)).astype(np.float32) * 1.5
    return x, y[:-1]


def softmax(x):
    weights = np.exp(np.asarray(x, np.float64))
    return weights / weights.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def outputs():
    """Returns the frequency of each output."""
    x, y = models()
    drafts = jax.random.categorical(jax.random.key(1), jnp.asarray(y), shape=(ROWS, NUMBER))
    keys = js.request_keys(np.arange(ROWS), np.zeros(ROWS, int))
    rows = [np.broadcast_to(of, (ROWS, *of.shape)) for of in (x, y)]
    out = js.rejection_sample(keys, rows[0], drafts, rows[1], SamplingParams(top_k=3))
    found, counts = np.unique(np.asarray(out.tokens), axis=0, return_counts=True)
    return {tuple(row[row >= 0].tolist()): count for row, count in zip(found, counts, strict=True)}


@pytest.mark.parametrize("system", ["vllm", "tpu_inference"])
def test_outputs_of_a_step(system, outputs, record_property):
    x, y = models()
    p = softmax(js.top_k_logits(x, 3))  # both systems truncate the target before verification
    law = getattr(oracle, system)(p, softmax(y))
    np.testing.assert_allclose(sum(law.values()), 1)
    possible = {output for output, chance in law.items() if chance > 0}
    assert outputs.keys() <= possible
    expected = np.array([law[output] * ROWS for output in sorted(possible)])
    observed = np.array([outputs.get(output, 0) for output in sorted(possible)])
    statistic = np.sum((observed - expected) ** 2 / expected)
    assert expected.min() > 5
    assert stats.chi2.sf(statistic, expected.size - 1) > ERROR_RATE
    record_property("compared", f"{system}, rejection: {ROWS} rows, {expected.size} outputs")


def test_both_systems_have_the_same_law():
    x, y = models()
    laws = [getattr(oracle, of)(softmax(x), softmax(y)) for of in ("vllm", "tpu_inference")]
    assert laws[0].keys() == laws[1].keys()
    for output, chance in laws[0].items():
        np.testing.assert_allclose(chance, laws[1][output])
