import cases
import compare
import jax
import kept_rules
import numpy as np
import pytest
from rows import every_kind, make

import jaxsample

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: the extra `oracles`")

import mlx_oracle as oracle

pytestmark = pytest.mark.oracle

KEEPS_TIES = {"top_k": False, "top_p": True, "min_p": True, "xtc": True}


@pytest.mark.parametrize("rule", KEEPS_TIES)
def test_kept_tokens(rule, record_property):
    kept_rules.check(
        rule,
        oracle.KEPT[rule],
        record_property,
        keeps_ties=KEEPS_TIES[rule],
        prepare=cases.on_a_grid,
    )


def test_exempt_tokens_of_xtc(record_property):
    x, keys = make("normal", 300, 257), jax.random.split(jax.random.key(0), 300)
    exempt = np.stack([np.argmax(x, axis=-1), np.full(len(x), 5)], axis=-1)
    exempt[::3] = -1
    ours = np.asarray(jaxsample.xtc_logits(keys, x, 1.0, 0.03, exempt)) > -np.inf
    theirs = [
        oracle.xtc(row[None], 0.03, [i for i in ids if i >= 0])[0]
        for row, ids in zip(x, exempt.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(ours, np.stack(theirs))
    record_property("compared", f"xtc with exempt tokens: {len(x)} rows")


def _penalized(make, x, texts, penalty):
    return np.stack(
        [
            oracle.process(make(float(value), 1024), row, text)
            for row, text, value in zip(x, texts, penalty, strict=True)
        ]
    )


def test_penalties(record_property):
    x, texts, _, _ = cases.with_texts(30, 257, alphabet=20)
    counts = cases.counts(texts, 257)
    rng = np.random.default_rng(0)
    penalty = rng.uniform(0.5, 2, len(x)).astype(np.float32)
    pairs = (
        (jaxsample.repetition_penalized_logits(x, counts > 0, penalty), oracle.repetition),
        (jaxsample.presence_penalized_logits(x, counts, penalty), oracle.presence),
        (jaxsample.frequency_penalized_logits(x, counts, penalty), oracle.frequency),
    )
    for ours, made in pairs:
        theirs = _penalized(made, x, texts, penalty)
        compare.assert_same_values(np.asarray(ours), theirs)
    record_property("compared", f"repetition, presence, frequency: {len(x)} rows each")


def test_bias(record_property):
    x, rng = every_kind(30, 257), np.random.default_rng(1)
    ids = np.stack([rng.permutation(257)[:20] for _ in x]).astype(np.int32)
    bias = (rng.normal(size=ids.shape) * 5).astype(np.float32)
    ours = np.asarray(jaxsample.biased_logits(x, ids, bias))
    theirs = [
        oracle.process(oracle.bias(i, b), row, i) for row, i, b in zip(x, ids, bias, strict=True)
    ]
    compare.assert_same_values(ours, np.stack(theirs))
    record_property("compared", f"bias: {len(x)} rows")
