import cases
import compare
import kept_rules
import numpy as np
import pytest

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
    for ours, make in pairs:
        theirs = _penalized(make, x, texts, penalty)
        compare.assert_same_values(np.asarray(ours), theirs)
    record_property("compared", f"repetition, presence, frequency: {len(x)} rows each")
