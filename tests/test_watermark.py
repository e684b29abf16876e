"""Watermarks and their detectors: the definitions, the invariances and the error rates.

Keys are fixed. Each statistical test fails a correct watermark once in 10,000.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_watermark as reference
from reference import softmax
from rows import every_kind, exhaustive, make, slow, traces
from scipy import stats

from jaxsample import categorical_sample
from jaxsample.watermarks import (
    context_repeated,
    detect_green_list,
    detect_gumbel,
    detect_synthid,
    green_list_logits,
    gumbel_watermark_sample,
    last_tokens,
    synthid_logits,
)

ERROR_RATE = 1e-4
KEY = jax.random.key(20)
WORDS = tuple(int(word) for word in jax.random.key_data(KEY))
SCHEMES = ("left_hash", "self_hash")


def contexts(batch, width, seed=0):
    return np.random.default_rng(seed).integers(0, 5003, (batch, width)).astype(np.int32)


def bits(x):
    return np.asarray(x).view(np.uint8)


def marks(x, context, key=KEY):
    """Returns the results of every watermark for the same rows."""
    return {
        "left": green_list_logits(key, x, context[..., -1:]),
        "self": green_list_logits(key, x, context, scheme="self_hash"),
        "synthid": synthid_logits(key, x, context, depth=5),
        "gumbel": gumbel_watermark_sample(key, x, context),
    }


def assert_same(got, want):
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


# The definitions.


@pytest.mark.parametrize(
    ("dtype", "scheme"),
    [("float32", "self_hash"), ("bfloat16", "left_hash"), ("float16", "left_hash")],
)
def test_green_tokens_gain_exactly_delta(dtype, scheme):
    x, context = every_kind(1, 257, dtype), contexts(9, 3)
    got = np.asarray(green_list_logits(KEY, x, context, 0.3, 1.5, scheme=scheme))
    assert got.dtype == np.float32
    for row, tokens, new in zip(x.astype(np.float32), context, got, strict=True):
        want = reference.green_list(row, WORDS, tokens, 0.3, 1.5, scheme)
        np.testing.assert_array_equal(new, want.astype(np.float32))
        untouched = want == row.astype(np.float64)
        np.testing.assert_array_equal(bits(new[untouched]), bits(row[untouched]))


@pytest.mark.parametrize(
    ("vocab", "dtype", "depth"), [(1, "float32", 1), (257, "bfloat16", 32), (700, "float32", 30)]
)
def test_synthid_is_the_tournament(vocab, dtype, depth):
    x, context = every_kind(1, vocab, dtype), contexts(9, 4)
    got = synthid_logits(KEY, x, context, depth=depth)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(x))
    for row, tokens, new in zip(x, context, np.asarray(got), strict=True):
        want = reference.synthid(row, WORDS, tokens, depth)
        # Logits far from 0 are rounded to multiples of this.
        largest = np.abs(np.where(np.isfinite(row), row, 0).astype(np.float64)).max()
        unit = (largest + 40) * float(np.finfo(np.float32).eps)
        np.testing.assert_allclose(softmax(new), want, rtol=2 * unit + 1e-5, atol=1e-9)


@pytest.mark.parametrize(("vocab", "dtype"), [(1, "float32"), (257, "float16"), (700, "bfloat16")])
def test_gumbel_takes_the_token_that_is_ahead(vocab, dtype):
    x, context = every_kind(1, vocab, dtype), contexts(9, 2)
    got = np.asarray(gumbel_watermark_sample(KEY, x, context))
    for row, tokens, token in zip(x, context, got, strict=True):
        lead = reference.gumbel(row, WORDS, tokens)
        assert lead[token] >= lead.max() - 1e-5


def test_tokens_that_repeat_are_found():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, (300, 12)).astype(np.int32)
    tokens[::7, 5] = -1
    length = rng.integers(0, 13, 300)
    for width in (1, 2, 14):
        last = np.asarray(last_tokens(tokens, length, width=width))
        repeated = np.asarray(context_repeated(tokens, length, width=width))
        for row, n, got, again in zip(tokens, length, last, repeated, strict=True):
            want = np.concatenate([np.full(width, -1), row[:n]])[-width:]
            np.testing.assert_array_equal(got, want)
            earlier = [tuple(row[i - width : i]) for i in range(width, n)]
            assert again == (want.min() >= 0 and tuple(want) in earlier)


def texts(batch, length, vocab=50, seed=0):
    """Returns repetitive texts with missing tokens, and their lengths."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.3, (batch, length)) - 1, vocab - 1).astype(np.int32)
    tokens[:, 20:40] = tokens[:, :20]
    tokens[::3, 7] = -1
    return tokens, np.r_[0, 1, 2, rng.integers(0, length + 1, batch - 3)]


def detections(tokens, length, gamma=0.4):
    return {
        "left": detect_green_list(KEY, tokens, length, gamma, width=1),
        "self": detect_green_list(KEY, tokens, length, gamma, width=3, scheme="self_hash"),
        "synthid": detect_synthid(KEY, tokens, length, depth=30, width=2),
        "gumbel": detect_gumbel(KEY, tokens, length, width=2),
    }


@pytest.mark.slow
def test_detectors_score_only_new_tokens():
    tokens, length = texts(12, 90)
    found = detections(tokens, length)
    for i, (row, n) in enumerate(zip(tokens, length, strict=True)):
        text = row[:n]
        want = {
            "left": reference.detect_green_list(WORDS, text, 0.4, 1, "left_hash"),
            "self": reference.detect_green_list(WORDS, text, 0.4, 3, "self_hash"),
            "synthid": reference.detect_synthid(WORDS, text, 30, 2),
            "gumbel": reference.detect_gumbel(WORDS, text, 2),
        }
        for name, result in found.items():
            got = [float(a[i]) for a in result]
            rtol = 2e-2 if name == "synthid" else 2e-4  # the continuity correction
            np.testing.assert_allclose(got, want[name], rtol=rtol, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_missing_tokens_and_short_texts_have_no_score():
    for tokens, length in ((np.full((12, 90), -1), 90), (np.zeros((12, 90), int), 1)):
        for found in detections(tokens, length).values():
            np.testing.assert_array_equal(found.p_value, np.ones(12))
            np.testing.assert_array_equal(found.scored, np.zeros(12))
    for found in detections(np.zeros((2, 0), int), 0).values():
        np.testing.assert_array_equal(found.p_value, [1, 1])
    assert detect_gumbel(KEY, np.zeros((0, 9), int), 9, width=1).score.shape == (0,)


# Invariances.


@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
def test_neutral_values_are_the_identity(dtype):
    x, context = every_kind(1, 500, dtype), contexts(9, 3)
    for y in (
        green_list_logits(KEY, x, context, delta=0.0),
        green_list_logits(KEY, x, np.where([True, False, False], -1, context)),
        green_list_logits(KEY, x, np.full(1, -1), scheme="self_hash"),
        synthid_logits(KEY, x, context, False),
        synthid_logits(KEY, x, np.where([True, False, False], -1, context)),
    ):
        np.testing.assert_array_equal(bits(y), bits(x.astype(np.float32)))


@pytest.mark.slow
def test_bad_rows_stay_bad_and_alone():
    good, context = make("normal", 4, 300), contexts(4, 3)
    want = marks(good, context)
    for value in (np.nan, np.inf):
        x = good.copy()
        x[1, 7], x[2] = value, -np.inf
        got = marks(x, context)
        assert_same(*({name: a[::3] for name, a in m.items()} for m in (got, want)))
        np.testing.assert_array_equal(got["gumbel"][1:3], [-1, -1])
        for name in ("left", "self", "synthid"):
            assert not (got[name][1] < np.inf).all()
            assert np.isneginf(got[name][2]).all()


@pytest.mark.parametrize(
    ("gamma", "delta"),
    [(0.0, 2), (1.0, 2), (-1.0, 2), (np.nan, 2), (0.5, -1), (0.5, np.nan), (0.5, np.inf)],
)
def test_bad_parameters_make_their_row_bad(gamma, delta):
    x, context = make("masked", 2, 300), contexts(2, 1)
    gammas, deltas = np.float32([gamma, 0.25]), np.float32([delta, 2])
    got = np.asarray(green_list_logits(KEY, x, context, gammas, deltas))
    assert np.isnan(got[0]).all()
    np.testing.assert_array_equal(got[1], green_list_logits(KEY, x[1], context[1]))


@pytest.mark.slow
def test_bad_rows_of_detectors():
    tokens, lengths = texts(12, 90)
    want = detections(tokens, lengths)
    for length in (-1, 91):
        lengths[1] = length
        for name, found in detections(tokens, lengths).items():
            for a, b in zip(found, want[name], strict=True):
                assert a[1] == -1 or np.isnan(a[1])
                np.testing.assert_array_equal(a[2:], b[2:])
        np.testing.assert_array_equal(last_tokens(tokens, lengths, width=1)[1], [-1])
        np.testing.assert_array_equal(context_repeated(tokens, lengths, width=1)[1], False)
    gamma = np.full(12, 0.4)
    gamma[:4] = 0, 1, np.nan, -1
    found = detections(tokens, 90, gamma)["left"]
    np.testing.assert_array_equal(np.isnan(found.p_value), [True] * 4 + [False] * 8)
    np.testing.assert_array_equal(found.green[:4], [-1] * 4)


# The laws.


@pytest.fixture(scope="module", params=["float32", exhaustive("bfloat16")])
def batch(request):
    x, context = every_kind(2, 1003, request.param)[:16], contexts(16, 3)
    return x, context, marks(x, context)


@pytest.mark.slow
def test_batch_slot_and_rank_do_not_matter(batch):
    x, context, want = batch
    order = np.random.default_rng(0).permutation(16)
    assert_same(marks(x[order], context[order]), {name: a[order] for name, a in want.items()})
    for i in (0, 5, 13):
        assert_same(marks(x[i], context[i]), {name: a[i] for name, a in want.items()})
    got = marks(x[:6].reshape(2, 3, -1), context[:6].reshape(2, 3, -1))
    got = {name: a.reshape(6, *a.shape[2:]) for name, a in got.items()}
    assert_same(got, {name: a[:6] for name, a in want.items()})


@pytest.mark.slow
def test_no_number_of_rows_matters(batch):
    x, context, want = batch
    together = jax.jit(marks)  # compiles faster than one by one
    for size in (2, 3, 5, 7, 9, 15):
        got = together(x[:size], context[:size])
        assert_same(got, {name: a[:size] for name, a in want.items()})


def test_a_batch_may_be_empty():
    for name, a in marks(np.zeros((0, 30), np.float32), np.zeros((0, 2), int)).items():
        assert a.shape == ((0,) if name == "gumbel" else (0, 30))


@pytest.mark.slow
def test_vmap_and_scan_do_not_matter(batch):
    x, context, want = batch
    assert_same(jax.jit(jax.vmap(marks))(x, context), want)
    assert_same(jax.lax.scan(lambda _, row: (None, marks(*row)), None, (x, context))[1], want)


@pytest.mark.slow
def test_masked_columns_after_the_vocabulary_do_not_matter(batch):
    x, context, want = batch
    got = marks(np.concatenate([x, np.full((16, 90), -np.inf, x.dtype)], axis=-1), context)
    assert_same({name: a[..., :1003] if a.ndim > 1 else a for name, a in got.items()}, want)


@pytest.mark.slow
def test_each_row_may_have_its_own_key_and_parameters(batch):
    x, context, want = batch
    keys = jnp.broadcast_to(KEY, 16)
    assert_same(marks(x, context, keys), want)
    assert_same(marks(x, context, jax.random.key_data(KEY)), want)
    assert_same(marks(x, context, jax.random.key_data(keys)), want)
    keys = jax.random.split(KEY, 16)
    other = marks(x, context, keys)
    assert_same(marks(x[3], context[3], keys[3]), {name: a[3] for name, a in other.items()})
    gamma, delta = np.linspace(0.1, 0.9, 16), np.linspace(0, 4, 16)
    got = green_list_logits(KEY, x, context, gamma, delta)
    for i in (0, 9):
        alone = green_list_logits(KEY, x[i], context[i], gamma[i], delta[i])
        np.testing.assert_array_equal(got[i], alone)
    active = np.arange(16) % 2 == 0
    got = synthid_logits(KEY, x, context, active, depth=5)
    np.testing.assert_array_equal(got, np.where(active[:, None], want["synthid"], x))


@pytest.mark.slow
def test_detectors_see_each_row_alone():
    tokens, length = texts(12, 90)
    mapped = jax.jit(jax.vmap(detections))(tokens, length)
    want = detections(tokens, length)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), mapped, want)


def test_values_never_trace_again():
    x = jnp.zeros((2, 77))
    before = traces(green_list_logits)
    for i, delta in enumerate((0, 0.5, np.float64(2), jnp.float32(3))):
        green_list_logits(jax.random.key(i), x, np.array([i]), 0.1 * (i + 1), delta)
    assert traces(green_list_logits) == before + 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_of_the_green_list_are_ones(scheme):
    x, context = jnp.asarray(make("masked", 2, 300)), contexts(2, 2)
    y, gradient = jax.vjp(lambda x: green_list_logits(KEY, x, context, scheme=scheme), x)
    np.testing.assert_array_equal(gradient(jnp.ones_like(y))[0], jnp.ones_like(x))


@pytest.mark.slow
def test_gradients_of_synthid_are_those_of_the_tournament():
    x, context = jnp.asarray(make("masked", 3, 60)), contexts(3, 2)
    x = x.at[2, 0].set(jnp.nan)

    def loss(x):
        y = jax.nn.log_softmax(synthid_logits(KEY, x, context, depth=6)[:2])
        return jnp.sum(jnp.where(y > -jnp.inf, y * jnp.cos(jnp.arange(60.0))[None], 0))

    gradient = np.asarray(jax.grad(loss)(x))
    assert np.isfinite(gradient).all()
    assert (gradient[2] == 0).all()
    weights = np.cos(np.arange(60.0))
    row = np.asarray(x[0]).astype(np.float64)

    def plain(row):
        kept = row > -np.inf
        return np.sum(np.log(reference.synthid(row, WORDS, context[0], 6)[kept]) * weights[kept])

    for i in np.flatnonzero(row > -np.inf)[:5]:
        step = np.where(np.arange(60) == i, 1e-5, 0)
        slope = (plain(row + step) - plain(row - step)) / 2e-5
        np.testing.assert_allclose(gradient[0, i], slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: green_list_logits(0, x, [1]), TypeError, "key must be a jax.random.key"),
        (
            lambda x: green_list_logits(jax.random.split(KEY, 3), x, [1]),
            ValueError,
            "key must be one key, or keys of shape",
        ),
        (lambda x: green_list_logits(KEY, x, 1), ValueError, r"context must have shape \[..., n"),
        (lambda x: green_list_logits(KEY, x, [0.5]), TypeError, "context must hold integers"),
        (
            lambda x: synthid_logits(KEY, x, np.zeros((2, 0), int)),
            ValueError,
            "context must hold at least one token",
        ),
        (lambda x: green_list_logits(KEY, x, [1], "a"), TypeError, "gamma must be a real number"),
        (
            lambda x: green_list_logits(KEY, x, [1], delta=np.ones(3)),
            ValueError,
            "delta must be a scalar or",
        ),
        (
            lambda x: green_list_logits(KEY, x, [1], scheme="right"),
            ValueError,
            "scheme must be one of .*got 'right'",
        ),
        (lambda x: synthid_logits(KEY, x, [1], 1), TypeError, "active must be a bool"),
        (lambda x: synthid_logits(KEY, x, [1], depth=33), ValueError, r"depth must be in \[1, 32"),
        (lambda x: synthid_logits(KEY, x, [1], depth=2.0), TypeError, "depth must be a Python int"),
        (lambda x: last_tokens([1, 2], 1, width=0), ValueError, "width must be in"),
        (lambda x: last_tokens([1.0], 1, width=1), TypeError, "tokens must hold integers"),
        (lambda x: last_tokens(3, 1, width=1), ValueError, r"tokens must have shape \[..., L"),
        (
            lambda x: context_repeated([1], [1, 1], width=1),
            ValueError,
            "length must be a scalar or",
        ),
        (lambda x: detect_gumbel(KEY, [1], 0.5, width=1), TypeError, "length must be an integer"),
        (
            lambda x: detect_green_list(KEY, [1], 1, width=1, scheme="x"),
            ValueError,
            "scheme must be one of",
        ),
        (lambda x: detect_synthid(KEY, [1], 1, depth=0, width=1), ValueError, "depth must be in"),
    ],
)
def test_wrong_shapes_and_dtypes_name_the_argument(call, error, match):
    with pytest.raises(error, match=match):
        call(jnp.zeros((2, 10)))


# The keyed function.


def test_the_share_of_green_tokens_is_gamma():
    x, context = np.zeros((8, 32000), np.float32), contexts(8, 3)
    for scheme in SCHEMES:
        for gamma in (0.1, 0.25, 0.5):
            green = np.asarray(green_list_logits(KEY, x, context, gamma, scheme=scheme)) > 0
            p_values = stats.binomtest(int(green.sum()), green.size, gamma).pvalue
            assert p_values > ERROR_RATE, (scheme, gamma)


@pytest.mark.slow
def test_words_of_adjacent_tokens_are_independent():
    """Compares bits of adjacent candidates, of adjacent contexts, and of one word."""
    from jaxsample.watermarks import _hash

    ids = jnp.broadcast_to(jnp.arange(4096, dtype=jnp.int32), (16, 4096))
    seed = _hash.fold(jnp.broadcast_to(KEY, 16), jnp.arange(16, dtype=jnp.int32)[:, None])
    words = np.asarray(_hash.word(seed, ids))
    noise = np.asarray(_hash.uniform(seed, jnp.asarray(words)))
    assert stats.kstest(noise.ravel(), "uniform").pvalue > ERROR_RATE
    one = np.unpackbits(words.view(np.uint8).reshape(16, 4096, 4), axis=-1).astype(np.float32) - 0.5
    for a, b in ((one[:, 1:], one[:, :-1]), (one[1:], one[:-1]), (one, one)):
        a, b = a.reshape(-1, 32), b.reshape(-1, 32)
        correlation = 4 * (a.T @ b) / len(a)
        if len(a) == words.size:  # each bit with itself
            np.fill_diagonal(correlation, 0)
        assert np.abs(correlation).max() * np.sqrt(len(a)) < 5.5  # 1024 normal numbers


def draw(x, number, mark):
    """Returns tokens of one row, each with its own key, and the distribution over keys."""
    keys = jax.random.split(jax.random.key(3), number)
    draws = jax.jit(lambda keys: jax.lax.map(mark(x), keys, batch_size=2000))
    return np.bincount(np.asarray(draws(keys)), minlength=x.size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthid", "gumbel"])
def test_unbiased_on_average_over_keys(name):
    x = np.log(np.arange(1, 21, dtype=np.float32) ** 2)
    context = jnp.array([3, 1, 4, 1])

    def synthid(x):
        def mark(key):
            secret, own = jax.random.split(key)
            return categorical_sample(own, synthid_logits(secret, x, context))

        return mark

    def gumbel(x):
        return lambda key: gumbel_watermark_sample(key, x, context)

    counts = draw(x, 20_000, {"synthid": synthid, "gumbel": gumbel}[name])
    assert stats.chisquare(counts, softmax(x) * counts.sum()).pvalue > ERROR_RATE


@pytest.mark.slow
def test_gumbel_over_contexts_is_a_draw():
    x = np.log(np.arange(1, 21, dtype=np.float32))
    context = np.arange(20_000, dtype=np.int32).reshape(-1, 1)
    tokens = gumbel_watermark_sample(KEY, np.broadcast_to(x, (20_000, 20)), context)
    counts = np.bincount(np.asarray(tokens), minlength=20)
    assert stats.chisquare(counts, softmax(x) * counts.sum()).pvalue > ERROR_RATE


@pytest.mark.slow
def test_gumbel_reaches_the_tail():
    """2,000 tokens, 18 nats below one: 3 of 100,000 draws, from noise below 1e-8."""
    x = np.zeros(2000, np.float32)
    x[77] = 18.0
    keys = jax.random.split(jax.random.key(0), 100_000)
    one = lambda key: gumbel_watermark_sample(key, x, jnp.array([5]))  # noqa: E731
    tokens = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=2000))(keys)
    tail, expected = int(jnp.sum(tokens != 77)), 100_000 * 1999 / (1999 + np.exp(18.0))
    assert stats.poisson.sf(tail - 1, expected) > ERROR_RATE
    assert stats.poisson.cdf(tail, expected) > ERROR_RATE


# Error rates of the detectors.


WIDTHS = {"left": 1, "self": 3, "synthid": 4, "gumbel": 4}


def p_value(name, key, tokens):
    """Returns the p-values of a detector at its default strength."""
    length, width = tokens.shape[-1], WIDTHS[name]
    if name in ("synthid", "gumbel"):
        detect = {"synthid": detect_synthid, "gumbel": detect_gumbel}[name]
        found = detect(key, tokens, length, width=width)
    else:
        found = detect_green_list(key, tokens, length, width=width, scheme=f"{name}_hash")
    return np.asarray(found.p_value)


def assert_nominal(p_values):
    """Asserts that alarms are no more frequent than stated, and half as frequent at least."""
    for level in (0.05, 0.01):
        alarms = int((p_values <= level).sum())
        assert stats.binom.sf(alarms - 1, p_values.size, level) > ERROR_RATE
        assert stats.binom.cdf(alarms, p_values.size, 0.5 * level) > ERROR_RATE


@pytest.mark.slow
@pytest.mark.parametrize("name", [name if name == "gumbel" else slow(name) for name in WIDTHS])
def test_false_positives_are_as_rare_as_stated(name):
    """Each text has its own key, since texts with the same frequent n-grams would score alike."""
    rng = np.random.default_rng(5)
    rows, vocab = 3000, 32000
    repetitive = np.tile(rng.integers(0, vocab, (rows, 20)), 10)
    tokens = {
        "uniform": rng.integers(0, vocab, (rows, 200)),
        "zipf": np.minimum(rng.zipf(1.2, (rows, 200)), vocab) - 1,
        "repetitive": np.where(rng.random((rows, 200)) < 0.05, 7, repetitive),
    }
    keys = jax.random.split(KEY, rows)
    for kind, text in tokens.items():
        p_values = p_value(name, keys, text.astype(np.int32))
        assert_nominal(p_values)
        if name in ("synthid", "gumbel"):  # continuous, so uniform
            assert stats.kstest(p_values, "uniform").pvalue > ERROR_RATE, kind


@pytest.mark.slow
def test_small_p_values_are_as_rare_as_stated():
    text, keys = jnp.arange(60, dtype=jnp.int32), jax.random.split(jax.random.key(1), 40_000)
    for name in ("synthid", "gumbel"):
        p_values = p_value(name, keys, jnp.broadcast_to(text, (40_000, 60)))
        for level in (0.01, 1e-3):
            alarms = int((p_values <= level).sum())
            assert stats.binomtest(alarms, keys.size, level).pvalue > ERROR_RATE


def watermarked(name, logits, own, history, length):
    """Draws a token of each row at temperature 1, with or without a watermark."""
    context = last_tokens(history, length, width=WIDTHS.get(name, 1))
    if name == "gumbel":
        return gumbel_watermark_sample(KEY, logits, context)
    if name == "synthid":
        new = ~context_repeated(history, length, width=WIDTHS[name])
        logits = synthid_logits(KEY, logits, context, new)
    elif name != "none":
        logits = green_list_logits(KEY, logits, context, scheme=f"{name}_hash")
    return categorical_sample(own, logits)


def write_texts(name, rows, number=200):
    """Returns texts of the example's model `[rows, number]`, and the mean entropy in nats per
    token.

    Each text starts with four unmarked tokens, since with a common start all texts that are marked
    with one key would be equal.
    """
    examples = Path(__file__).parent.parent / "examples"
    sys.path.insert(0, str(examples))
    import model

    sizes = json.loads((examples / "weights/config.json").read_bytes())["sizes"]
    config = model.Config(**sizes)
    weights = model.load(examples / "weights/weights.npz", config)
    prompt = jnp.zeros(1 + 4 + number, jnp.int32)  # room for the written tokens only
    logits, cache = model.prefill(weights, prompt, jnp.int32(1))
    every = lambda a: jnp.broadcast_to(a, (rows, *a.shape))  # noqa: E731

    def step(state, i):
        logits, cache, history = state
        length = jnp.full(rows, i)
        own = jax.random.split(jax.random.fold_in(jax.random.key(9), i), rows)
        plain = categorical_sample(own, logits)
        marked = watermarked(name, logits, own, history, length)
        tokens = jnp.where(i < 4, plain, marked)
        entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1)
        history = history.at[:, i].set(tokens)
        logits, cache = model.decode_step(weights, cache, tokens, length + 1)
        return (logits, cache, history), jnp.mean(entropy)

    @jax.jit
    def loop(logits, cache):
        start = every(logits), jax.tree.map(every, cache), jnp.full((rows, 4 + number), -1)
        (_, _, history), entropy = jax.lax.scan(step, start, jnp.arange(4 + number))
        return history, entropy.mean()

    history, entropy = loop(logits, cache)
    return np.asarray(history), float(entropy)


@pytest.mark.parametrize("name", [slow(n) if n == "synthid" else exhaustive(n) for n in WIDTHS])
def test_texts_of_the_model_are_detected(name):
    tokens, entropy = write_texts(name, 200)
    p_values = p_value(name, KEY, tokens)
    detected = (p_values < 0.01).mean()
    print(f"{name}: {detected:.1%} of texts detected, {entropy:.2f} nats a token")
    assert detected > 0.99


@pytest.mark.slow
def test_unmarked_texts_of_the_model_are_not_detected():
    tokens, _ = write_texts("none", 250)
    keys = jax.random.split(KEY, 250)
    for name in WIDTHS:
        p_values = p_value(name, keys, tokens)
        print(f"{name}: {(p_values < 0.01).mean():.1%} of texts without a mark detected")
        assert_nominal(p_values)
