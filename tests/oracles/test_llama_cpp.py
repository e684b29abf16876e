import cases
import compare
import kept_rules
import numpy as np
import pipelines
import pytest
from rows import every_kind, make

import jaxsample

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: the extra `oracles`")

import llama_cpp_oracle as oracle

pytestmark = pytest.mark.oracle

UNMASKED = [kind for kind in cases.KINDS if kind not in ("masked", "one")]


# llama.cpp sums in float32, one token after another: the mass of a long row has errors of 1e-4 and
# more, and the error of its entropy prevents a comparison.
@pytest.mark.parametrize("rule", oracle.KEPT)
def test_kept_tokens(rule, record_property):
    kept_rules.check(
        rule,
        oracle.KEPT[rule],
        record_property,
        keeps_ties=False,
        tolerance_per_token=2e-8,
        sizes=cases.SIZES[:2] if rule == "typical_p" else cases.SIZES,
    )


def test_temperature(record_property):
    rng = np.random.default_rng(0)
    # Its float32 sums do not resolve the entropy of a peaked row.
    kinds = [kind for kind in UNMASKED if kind != "peaked"]
    x = np.stack(
        [np.concatenate([make(kind, 8, 257, seed=i) for kind in kinds]) for i in range(20)]
    )
    t, exponent = rng.uniform(0.3, 2, (2, len(x))).astype(np.float32)
    delta = np.where(np.arange(len(x)) % 4, t * rng.uniform(0.05, 0.9, len(x)), 0)
    delta = delta.astype(np.float32)
    ours = jaxsample.entropy_scaled_logits(
        x, (t - delta)[:, None], (t + delta)[:, None], exponent[:, None]
    )
    theirs = [oracle.temperature(*args) for args in zip(x, t, delta, exponent, strict=True)]
    compare.assert_same_values(np.asarray(ours), np.stack(theirs), tolerance=2e-5)
    record_property("compared", f"dynatemp: {x.shape[0] * x.shape[1]} rows")


def test_penalties(record_property):
    x, texts, _, _ = cases.with_texts(100, 257, alphabet=20)
    counts = cases.counts(texts, 257)
    rng = np.random.default_rng(1)
    repeat = rng.uniform(0.5, 2, len(x)).astype(np.float32)
    frequency, presence = rng.uniform(-1, 2, (2, len(x))).astype(np.float32)
    ours = jaxsample.repetition_penalized_logits(x, counts > 0, repeat)
    ours = jaxsample.frequency_penalized_logits(ours, counts, frequency)
    ours = jaxsample.presence_penalized_logits(ours, counts, presence)
    theirs = [
        oracle.penalties(row[None], [text], *values)[0]
        for row, text, *values in zip(x, texts, repeat, frequency, presence, strict=True)
    ]
    compare.assert_same_values(np.asarray(ours), np.stack(theirs))
    record_property("compared", f"repetition + frequency + presence: {len(x)} rows")


def test_penalties_of_a_window(record_property):
    """llama.cpp's window counts the prompt; here the whole text is output."""
    x, texts, tokens, lengths = cases.with_texts(100, 257, alphabet=20)
    rng = np.random.default_rng(2)
    penalties = rng.uniform(0.5, 2, (3, len(x))).astype(np.float32)
    windows = rng.integers(1, 50, len(x))
    names = ("repetition_penalty", "frequency_penalty", "presence_penalty")
    params = jaxsample.SamplingParams(
        **dict(zip(names, penalties, strict=True)), penalty_window=windows
    )
    state = jaxsample.SamplerState.from_tokens(tokens, 0, lengths, 257)
    ours = jaxsample.process_logits(x, params, state, order="llama_cpp")
    theirs = [
        oracle.penalties(row[None], [text], *values, last=int(n))[0]
        for row, text, n, *values in zip(x, texts, windows, *penalties, strict=True)
    ]
    compare.assert_same_values(np.asarray(ours), np.stack(theirs))
    record_property("compared", f"penalties of a window: {len(x)} rows")


def test_bias(record_property):
    x = every_kind(60, 257)
    rng = np.random.default_rng(2)
    ids = rng.integers(257, size=(len(x), 20)).astype(np.int32)
    bias = (rng.normal(size=ids.shape) * 5).astype(np.float32)
    masked = (x == -np.inf).any(axis=-1)  # llama.cpp sums biases only if ids are positions
    x, ids, bias = x[~masked], ids[~masked], bias[~masked]
    ours = jaxsample.biased_logits(x, ids, bias)
    theirs = [oracle.biased(row[None], i, b)[0] for row, i, b in zip(x, ids, bias, strict=True)]
    compare.assert_same_values(np.asarray(ours), np.stack(theirs), tolerance=1e-5)
    record_property("compared", f"bias: {len(x)} rows")


@pytest.mark.parametrize("number", [0, 1, 3])
def test_dry(number, record_property):
    x, texts, tokens, lengths = cases.with_texts(100, 257, alphabet=5)
    rng = np.random.default_rng(number)
    multiplier, base = rng.uniform(0.1, 3, len(x)), rng.uniform(1, 2.5, len(x))
    multiplier, base = multiplier.astype(np.float32), base.astype(np.float32)
    allowed = rng.integers(1, 4, len(x), endpoint=True)
    breakers = np.stack([rng.permutation(20)[:number] for _ in x]).astype(np.int32)
    ours = jaxsample.dry_penalized_logits(x, tokens, lengths, multiplier, base, allowed, breakers)
    theirs = [
        oracle.process(lambda: oracle.dry(m, b, int(a), breaks.tolist()), row[None], [text])[0]
        for row, text, m, b, a, breaks in zip(
            x, texts, multiplier, base, allowed, breakers, strict=True
        )
    ]
    compare.assert_same_values(np.asarray(ours), np.stack(theirs), tolerance=1e-5)
    assert (np.asarray(ours) != x).any(axis=-1).mean() > 0.2
    record_property("compared", f"dry, {number} breakers: {len(x)} rows")


def test_pipeline(record_property):
    fields = (
        "logit_bias", "repetition_penalty", "frequency_penalty", "presence_penalty",
        "dry_multiplier", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc_threshold",
        "temperature", "dynamic",
    )  # fmt: skip
    batch = pipelines.batch(fields, 1200, prompts=False)
    for own in batch.values:
        if own["dynamic"][1]:  # both temperatures exclude each other
            own["temperature"] = 1.0
        if own["top_n_sigma"]:  # masked tokens remain: NaN in typical-p, counted in dynatemp
            own["typical_p"], own["dynamic"] = 1.0, np.array([1.0, 0.0])
    rows = zip(batch.logits, batch.values, batch.texts, strict=True)
    theirs = np.stack([oracle.pipeline(*row) for row in rows])
    told = pipelines.check(batch, jaxsample.LLAMA_CPP_ORDER, theirs)
    record_property("compared", f"pipeline: {told}")
