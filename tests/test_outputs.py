"""The optional outputs of `sample` equal their definitions in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from rows import every_kind, exhaustive, make, slow, traces

import jaxsample as js
from jaxsample import DEFAULT_ORDER, SamplingParams, sample

VOCAB, NUMBER = 300, 3
MODES = ("processed_logprobs", "raw_logprobs", "scaled_logprobs")
OPTIONS = {
    "logprobs_mode": MODES,
    "num_kept_ids": NUMBER,
    "return_kept": True,
    "return_kept_mass": True,
    "return_entropy": True,
    "return_logits": True,
}
IDS = np.array([0, 7, -1, VOCAB - 1, VOCAB])
CUTS = {"top_k": [0, 5, 40, 1, 200], "top_p": [1, 0.9, 0.5], "min_p": [0, 0.02]}
MORE = {"typical_p": [1, 0.7], "xtc_probability": [0, 1], "xtc_threshold": [0.05, 0.1]}


def params_of(batch, seed=0, **values):
    rng = np.random.default_rng(seed)
    values = {"temperature": [0, 0.6, 1, 1.5], **values}
    return SamplingParams(
        **{
            name: rng.choice(of, batch).astype(np.int32 if name == "top_k" else np.float32)
            for name, of in values.items()
        }
    )


def rows_of(dtype, batch=2):
    """Returns rows of every kind, then a NaN, +inf, only -inf, and two rows for bad parameters."""
    x = np.concatenate([every_kind(batch, VOCAB, dtype), make("normal", 5, VOCAB, dtype)])
    x[-5, 3], x[-4, 4], x[-3] = np.nan, np.inf, -np.inf
    return x


def keys_of(x):
    return jax.random.split(jax.random.key(1), len(x))


def assert_defined(x, params, out):
    """Compares every field of every row except the kept set, which other tests cover."""
    out = jax.tree.map(np.asarray, out)
    kept_mask = np.unpackbits(out.kept_mask.view(np.uint8), axis=-1, bitorder="little")
    for i, row in enumerate(x.astype(np.float64)):
        temperature = 1 if params.temperature is None else np.float64(params.temperature[i])
        if out.tokens[i] < 0:
            assert_bad(out, i)
            continue
        scaled = row / (temperature or 1)
        kept = kept_mask[i, :VOCAB] == 1
        processed = np.where(kept, scaled, -np.inf)
        # float32 rounds logits far from 0 before any computation.
        close = functools.partial(
            np.testing.assert_allclose, rtol=2e-6, atol=4e-6 + 2e-7 * np.abs(scaled[kept]).max()
        )
        close(out.entropy[i], reference.entropy(processed))
        close(out.log_kept_mass[i], reference.log_kept_mass(scaled, kept))
        assert out.entropy[i] >= 0 >= out.log_kept_mass[i]
        ids = reference.ranking(processed)[:NUMBER]
        np.testing.assert_array_equal(out.kept_ids[i], np.where(kept[ids], ids, -1))
        raw_or_scaled = scaled if out.logits.dtype == np.float32 else row
        close(out.logits[i].astype(np.float64), np.where(kept, raw_or_scaled, -np.inf))
        for mode, of_mode in zip(MODES, (processed, row, scaled), strict=True):
            want = np.take(np.append(reference.logprobs(of_mode), np.nan), np.minimum(IDS, VOCAB))
            close(out.token_id_logprobs[mode][i], np.where(IDS < 0, np.nan, want))
        by_token = [out.logprobs[mode][i] for mode in ("scaled_logprobs", "processed_logprobs")]
        close(out.log_kept_mass[i], by_token[0] - by_token[1])


def assert_bad(out, i):
    assert np.isnan(out.entropy[i])
    assert np.isnan(out.log_kept_mass[i])
    assert (out.kept_ids[i] == -1).all()
    assert all(np.isnan(of_mode[i]).all() for of_mode in out.token_id_logprobs.values())
    logits = out.logits[i].astype(np.float32)
    assert np.isnan(logits).any() or not np.isfinite(logits).any()


@pytest.mark.parametrize(
    ("order", "dtype", "values"),
    [
        slow(("temperature",), "float32", {}),
        slow(DEFAULT_ORDER, "float32", CUTS),
        exhaustive(("top_k", "min_p", "top_p", "temperature"), "bfloat16", CUTS),
        exhaustive(("typical_p", "temperature", "xtc", "top_k"), "float32", {**MORE, "top_k": [5]}),
        exhaustive(("top_k", "temperature", "top_p", "min_p"), "float16", CUTS),
        exhaustive(DEFAULT_ORDER, "bfloat16", {}),
        exhaustive(DEFAULT_ORDER, "bfloat16", {**CUTS, **MORE}),
    ],
)
def test_outputs_match_float64(order, dtype, values):
    """Includes greedy and bad rows; other values, ids and neighbours compile nothing."""
    x = rows_of(dtype)
    params = params_of(len(x), **values)
    params.temperature[-2], params.temperature[-1] = -1, np.nan
    step = functools.partial(sample, keys_of(x), order=order, **OPTIONS)
    out = step(x, params, logprob_token_ids=IDS)
    assert (np.asarray(out.tokens) < 0).sum() >= 5
    assert_defined(x, params, out)

    traced = traces(sample)
    other = params_of(len(x), 1, **values)
    good = x[::-1].copy()
    again = step(good, other, logprob_token_ids=IDS)
    assert_defined(good, other, again)
    mixed = np.where(np.arange(len(x))[:, None] % 2, x, good)
    beside = step(mixed, params, logprob_token_ids=np.roll(IDS, 1))
    assert traces(sample) == traced
    rows = np.arange(len(x)) % 2 == 1
    for name in ("kept_ids", "log_kept_mass", "entropy", "logits"):
        np.testing.assert_array_equal(getattr(beside, name)[rows], getattr(out, name)[rows])
    for mode in MODES:
        got, want = (each.token_id_logprobs[mode][rows] for each in (beside, out))
        np.testing.assert_array_equal(got, np.roll(want, 1, axis=-1))


def test_fields_that_are_not_requested_are_none():
    out = jax.eval_shape(sample, jax.random.key(0), jnp.zeros((2, 9)), SamplingParams(top_k=3))
    assert [name for name, field in out._asdict().items() if field is not None] == [
        *("tokens", "logprobs", "num_kept")
    ]


@pytest.mark.exhaustive
def test_logits_match_process_logits():
    x = rows_of("float32")
    params = params_of(len(x), **CUTS)
    step = functools.partial(sample, keys_of(x), x, params, return_logits=True)
    np.testing.assert_array_equal(step().logits, js.process_logits(x, params))


@pytest.mark.exhaustive
def test_the_mass_of_nearly_all_and_of_nearly_no_tokens():
    """A cut that drops 1e-7 of the mass, and greedy rows that keep 1e-5 of it."""
    x = np.zeros((3, VOCAB), np.float32)
    x[0, 1:], x[1] = np.linspace(-20, -21, VOCAB - 1), np.linspace(0, -1e-3, VOCAB)
    x[2, 0] = 12
    params = SamplingParams(temperature=np.float32([1, 0, 1]), top_k=np.int32([1, 0, 0]))
    out = sample(keys_of(x), x, params, return_kept_mass=True, return_entropy=True)
    for i, number in enumerate((1, 1, VOCAB)):
        kept = np.arange(VOCAB) < number
        want = reference.log_kept_mass(x[i], kept)
        np.testing.assert_allclose(out.log_kept_mass[i], want, rtol=1e-5, atol=5e-7)
    assert -1e-6 < out.log_kept_mass[0] < 0
    assert out.log_kept_mass[2] == 0
    np.testing.assert_array_equal(out.entropy[:2], 0)


@pytest.mark.exhaustive
def test_greedy_rows_of_temperatures_next_to_zero():
    """At temperature 1, and at temperatures at which logits overflow."""
    x = 10 * make("normal", 3, VOCAB)
    params = SamplingParams(temperature=np.float32([0, 1e-38, 2e-38]), top_k=np.int32([0, 5, 5]))
    out = sample(keys_of(x), x, params, logprobs_mode=MODES, return_kept_mass=True)
    np.testing.assert_array_equal(out.num_kept, 1)
    want = reference.logprobs(x[1]).max()
    np.testing.assert_allclose(out.log_kept_mass[1], want, rtol=1e-6, atol=1e-6)
    assert out.log_kept_mass[2] == 0
    np.testing.assert_allclose(
        out.log_kept_mass, out.logprobs["scaled_logprobs"], rtol=1e-6, atol=1e-6
    )


@pytest.mark.exhaustive
def test_rows_under_vmap():
    x = rows_of("bfloat16")
    params, keys = params_of(len(x), **CUTS), keys_of(x)
    step = functools.partial(sample, logprob_token_ids=IDS, **OPTIONS)
    want, got = step(keys, x, params), jax.vmap(step)(keys, x, params)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.exhaustive
def test_a_vocabulary_of_one_token():
    out = sample(
        jax.random.key(0), jnp.zeros((2, 1)), SamplingParams(), **OPTIONS | {"num_kept_ids": 1}
    )
    np.testing.assert_array_equal(out.kept_ids, 0)
    np.testing.assert_array_equal(out.entropy, 0)
    np.testing.assert_array_equal(out.log_kept_mass, 0)
    np.testing.assert_array_equal(out.logits, 0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("vocab", [5003, 8192])
def test_more_kept_ids_than_candidates(vocab):
    x = np.array(every_kind(2, vocab))
    params = SamplingParams(top_p=0.99)
    out = sample(keys_of(x), x, params, num_kept_ids=200, return_entropy=True, return_kept=True)
    kept = np.unpackbits(np.asarray(out.kept_mask).view(np.uint8), axis=-1, bitorder="little")
    for row, mask, ids, entropy in zip(x, kept[:, :vocab], out.kept_ids, out.entropy, strict=True):
        first = reference.ranking(row)[:200]
        np.testing.assert_array_equal(ids, np.where(mask[first], first, -1))
        want = reference.entropy(np.where(mask, row, -np.inf))
        np.testing.assert_allclose(entropy, want, rtol=2e-6, atol=4e-6)


@pytest.mark.slow
def test_gradients_are_of_log_probs_alone():
    """Named tokens have gradients, except dropped tokens and bad rows."""
    x = jnp.asarray(make("normal", 3, VOCAB)).at[1, 3].set(jnp.nan)
    params = SamplingParams(temperature=0.7, top_k=5)
    ids = jnp.argmax(x, axis=-1)[:, None]

    def fields(x):
        out = sample(
            keys_of(x),
            x,
            params,
            logprob_token_ids=jnp.concatenate([ids, ids * 0 - 1, jnp.argmin(x, -1)[:, None]], -1),
            return_kept_mass=True,
            return_entropy=True,
        )
        named = out.token_id_logprobs
        good = (out.tokens >= 0)[:, None] & jnp.isfinite(named)
        others = jnp.where(out.tokens >= 0, out.log_kept_mass + out.entropy, 0)
        return jnp.sum(jnp.where(good, named, 0)), jnp.sum(others)

    of_named, of_others = jax.jacrev(fields)(x)
    for i in (0, 2):
        row = np.asarray(x[i], np.float64) / 0.7
        p = reference.softmax(np.where(reference.top_k(row, 5), row, -np.inf))
        want = (np.eye(VOCAB)[int(row.argmax())] - p) / 0.7
        np.testing.assert_allclose(of_named[i], want, atol=1e-5)
    assert (of_named[1] == 0).all()
    assert (of_others == 0).all()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_kept_ids": 10}, ValueError, r"num_kept_ids must be in \[0, 9\], got 10"),
        ({"logprob_token_ids": [0.5]}, TypeError, "logprob_token_ids must hold integers"),
        ({"logprob_token_ids": 3}, ValueError, r"logprob_token_ids must have shape \[..., n\]"),
        ({"logprob_token_ids": [[1]] * 3}, ValueError, "logprob_token_ids must have one list for"),
    ],
)
def test_errors_name_invalid_arguments(options, error, match):
    with pytest.raises(error, match=match):
        sample(jax.random.key(0), jnp.zeros((2, 9)), SamplingParams(), **options)
