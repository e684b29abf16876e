import cases
import compare
import jax
import kept_rules
import numpy as np
import pipelines
import pytest
import scipy.special
from rows import every_kind, make

import jaxsample
from jaxsample import watermarks
from jaxsample.watermarks import _hash

pytest.importorskip("transformers", reason="transformers is not installed: the extra `oracles`")

import transformers_oracle as oracle
from transformers import GenerationConfig

pytestmark = pytest.mark.oracle

KEEPS_TIES = {"top_k": True, "top_p": False, "min_p": True, "epsilon": True, "eta": True}
KEEPS_TIES |= {"typical_p": True}


@pytest.mark.parametrize("rule", KEEPS_TIES)
def test_kept_tokens(rule, record_property):
    kept_rules.check(rule, oracle.KEPT[rule], record_property, keeps_ties=KEEPS_TIES[rule])


def test_kept_tokens_of_top_h(record_property):
    def first_100(x):  # transformers uses no more
        order = np.argsort(-x.astype(np.float32), axis=-1, kind="stable")
        x = x.copy()
        np.put_along_axis(x, order[..., 100:], -np.inf, axis=-1)
        return x

    kept_rules.check(
        "top_h",
        oracle.KEPT["top_h"],
        record_property,
        keeps_ties=False,
        prepare=first_100,
        least_decided=0.9,  # float32 does not resolve the entropy of a row with one likely token
    )


def test_temperature(record_property):
    values = np.random.default_rng(0).uniform(0.05, 3, 30).astype(np.float32)
    x = np.stack([every_kind(8, 257, seed=i) for i in range(len(values))])
    ours = jaxsample.scaled_logits(x, values[:, None])
    theirs = [
        oracle.process(oracle.hf.TemperatureLogitsWarper(t), rows)
        for t, rows in zip(values.tolist(), x, strict=True)
    ]
    compare.assert_same_values(np.asarray(ours), np.stack(theirs))
    record_property("compared", f"temperature: {len(values) * x.shape[1]} rows")


def test_repetition_penalty(record_property):
    x, texts, *_ = cases.with_texts(60, 257, alphabet=257)
    penalty = np.random.default_rng(1).uniform(0.5, 2, len(x)).astype(np.float32)
    seen = cases.counts(texts, 257) > 0
    ours = jaxsample.repetition_penalized_logits(x, seen, penalty)
    theirs = oracle.each(
        lambda i: oracle.hf.RepetitionPenaltyLogitsProcessor(float(penalty[i])), x, texts
    )
    compare.assert_same_values(np.asarray(ours), theirs)
    record_property("compared", f"repetition_penalty: {len(x)} rows")


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_no_repeat_ngram(n, record_property):
    x, texts, tokens, lengths = cases.with_texts(60, 257, alphabet=4)
    ours = jaxsample.no_repeat_ngram_logits(x, tokens, lengths, n)
    theirs = oracle.each(lambda _: oracle.hf.NoRepeatNGramLogitsProcessor(n), x, texts)
    np.testing.assert_array_equal(ours, theirs)
    record_property("compared", f"no_repeat_ngram {n}: {len(x)} rows")


def test_bad_words(record_property):
    x, texts, tokens, lengths = cases.with_texts(60, 257, alphabet=4)
    rng = np.random.default_rng(2)
    words = rng.integers(4, size=(len(x), 6, 4)).astype(np.int32)
    words[:, :, 0] = rng.integers(8, size=(len(x), 6))
    sizes = rng.integers(1, 4, size=(len(x), 6), endpoint=True).astype(np.int32)
    ours = jaxsample.bad_words_logits(x, tokens, lengths, words, sizes)
    theirs = oracle.each(
        lambda i: oracle.bad_words(
            [word[:size].tolist() for word, size in zip(words[i], sizes[i], strict=True)]
        ),
        x,
        texts,
    )
    np.testing.assert_array_equal(ours, theirs)
    record_property("compared", f"bad_words: {len(x)} rows")


def test_sequence_bias(record_property):
    """Sequences of a row are distinct, since transformers uses them as dictionary keys."""
    x, texts, tokens, lengths = cases.with_texts(60, 257, alphabet=4)
    rng = np.random.default_rng(2)
    words = rng.integers(4, size=(len(x), 8, 4)).astype(np.int32)
    sizes = rng.integers(1, 4, size=(len(x), 8), endpoint=True).astype(np.int32)
    bias = 3 * rng.normal(size=sizes.shape).astype(np.float32)
    bias[:, 0] = -np.inf
    given = []
    for i, (row, ends, values) in enumerate(zip(words, sizes, bias, strict=True)):
        own = {
            tuple(word[:n].tolist()): j for j, (word, n) in enumerate(zip(row, ends, strict=True))
        }
        repeated = np.setdiff1d(np.arange(len(ends)), [*own.values()])
        sizes[i, repeated] = 0
        given.append({word: float(values[j]) for word, j in own.items()})
    ours = jaxsample.sequence_biased_logits(x, tokens, lengths, words, sizes, bias)
    theirs = oracle.each(
        lambda i: oracle.hf.SequenceBiasLogitsProcessor(sequence_bias=given[i]), x, texts
    )
    compare.assert_same_values(np.asarray(ours), theirs)
    assert (np.asarray(ours) != x).any(axis=-1).mean() > 0.7
    record_property("compared", f"sequence_bias: {len(x)} rows")


def test_bias_and_suppressed(record_property):
    x = every_kind(60, 257)
    rng = np.random.default_rng(3)
    ids = np.stack([rng.permutation(257)[:20] for _ in x]).astype(np.int32)
    bias = rng.normal(size=ids.shape).astype(np.float32) * 5
    bias[:, 0] = -np.inf
    ours = np.asarray(jaxsample.biased_logits(x, ids, bias))
    empty = [np.zeros(1)] * len(x)
    compare.assert_same_values(ours, oracle.each(lambda i: oracle.bias(ids[i], bias[i]), x, empty))
    ours = jaxsample.suppressed_logits(x, ids)
    theirs = oracle.each(
        lambda i: oracle.hf.SuppressTokensLogitsProcessor(ids[i].tolist()), x, empty
    )
    np.testing.assert_array_equal(ours, theirs)
    record_property("compared", f"bias, suppressed: {len(x)} rows each")


def test_min_tokens(record_property):
    x, texts, _, lengths = cases.with_texts(60, 257, alphabet=4)
    rng = np.random.default_rng(4)
    prompt, least = rng.integers(0, 15, (2, len(x)))
    stops = rng.integers(257, size=(len(x), 3)).astype(np.int32)
    ours = jaxsample.min_tokens_logits(x, stops, lengths - prompt, least)
    theirs = oracle.each(
        lambda i: oracle.hf.MinNewTokensLengthLogitsProcessor(
            int(prompt[i]), int(least[i]), stops[i].tolist()
        ),
        x,
        texts,
    )
    np.testing.assert_array_equal(ours, theirs)
    record_property("compared", f"min_tokens: {len(x)} rows")


def test_guidance(record_property):
    kinds = [kind for kind in cases.KINDS if kind not in ("masked", "one")]
    x, u = (np.concatenate([make(k, 60, 257, seed=s) for k in kinds]) for s in (0, 1))
    for scale in (-1.0, 0.0, 0.5, 1.5, 7.5):
        ours = np.asarray(jaxsample.guided_logits(x, u, scale))
        theirs = oracle.guidance(x, u, scale)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)
    record_property("compared", f"guidance: {5 * len(x)} rows")


def test_synthid(record_property):
    x, depth, key = every_kind(30, 257), 30, jax.random.key(5)
    context = np.random.default_rng(5).integers(257, size=(len(x), 4)).astype(np.int32)
    seed = _hash.fold(jax.numpy.broadcast_to(key, len(x)), context)
    words = _hash.word(seed, jax.numpy.broadcast_to(jax.numpy.arange(257), x.shape))
    g = np.stack([_hash.coin(words, jax.numpy.int32(layer)) for layer in range(depth)], axis=-1)
    ours = np.asarray(watermarks.synthid_logits(key, x, context, depth=depth), np.float64)
    ours -= scipy.special.logsumexp(ours, axis=-1, keepdims=True)
    theirs = oracle.synthid(x, g)
    size = np.abs(x, where=x > -np.inf, out=np.zeros_like(x)).max(axis=-1, keepdims=True)
    rounding = depth * np.finfo(np.float32).eps * np.maximum(size, 8)  # ours computes in float32
    ours, theirs = np.exp(ours), np.exp(theirs)
    assert (abs(ours - theirs) <= rounding * theirs + 2e-6).all()
    record_property("compared", f"synthid: {len(x)} rows")


def test_pipeline(record_property):
    fields = (
        "guidance_scale", "logit_bias", "repetition_penalty", "no_repeat_ngram_size",
        "bad_word_lengths", "min_tokens", "allowed", "suppressed_token_ids", "temperature", "top_h",
        "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    )  # fmt: skip
    batch = pipelines.batch(fields, 1200, prompts=True, greedy=False)
    for own, kind in zip(batch.values, np.repeat(pipelines.KINDS, 300), strict=True):
        if kind == "peaked":  # float32 does not resolve the entropy of a row with one likely token
            own["top_h"] = 1.0
    rows = zip(batch.logits, batch.values, batch.texts, batch.prompts, strict=True)
    theirs = np.stack([oracle.pipeline(*row) for row in rows])
    told = pipelines.check(batch, jaxsample.HF_ORDER, theirs)
    record_property("compared", f"pipeline: {told}")


def test_a_generation_config_becomes_params():
    """All names of the class are known, and its defaults set no rule."""
    names = GenerationConfig._get_default_generation_params()
    nothing = GenerationConfig(**names | {"do_sample": True, "top_k": 0})
    some = GenerationConfig(do_sample=True, temperature=0.5, top_p=0.25, suppress_tokens=[3])
    params = jaxsample.SamplingParams.from_requests([nothing, some, GenerationConfig()])
    given = {name: x.tolist() for name, x in vars(params).items() if x is not None}
    assert given == {
        "suppressed_token_ids": [[-1], [3], [-1]],
        "temperature": [1, 0.5, 0],
        "top_p": [1, 0.25, 1],
    }
