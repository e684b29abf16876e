import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_constraints as reference
from rows import DTYPES, every_kind, make
from scipy.special import log_softmax

from jaxsample.constraints import (
    allowed_logits,
    biased_logits,
    bitmask_logits,
    forced_logits,
    guided_logits,
    min_tokens_logits,
    packed_bitmask,
    suppressed_logits,
)
from jaxsample.sequences import bad_words_logits, sequence_biased_logits

VOCAB, ROOM, WORDS, LONGEST, BATCH = 301, 12, 9, 4, 18


def texts(batch, seed=0):
    """Returns histories of every length over few ids."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3, (batch, ROOM)).astype(np.int32)
    length = rng.integers(0, ROOM + 1, batch).astype(np.int32)
    length[:3] = [ROOM, 0, 1][:batch]
    return tokens, length


def vocabularies(batch, seed=0):
    """Returns bad words of every length over few ids."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 3, (batch, WORDS, LONGEST)).astype(np.int32)
    words[..., -1] = rng.integers(3, VOCAB, (batch, WORDS))
    return words, rng.integers(0, LONGEST + 1, (batch, WORDS)).astype(np.int32)


def word_bias(batch, seed=0):
    bias = np.random.default_rng(seed).normal(size=(batch, WORDS)).astype(np.float32)
    bias[:, ::4] = -np.inf
    return bias


def lists(batch, seed=0):
    """Returns ids padded with negatives, some of them repeated, and their biases."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(-20, 40, (batch, 30)).astype(np.int32)
    ids[0] = -1
    bias = rng.normal(size=ids.shape).astype(np.float32)
    bias[rng.random(ids.shape) < 0.1] = -np.inf
    bias[rng.random(ids.shape) < 0.1] = 0
    return ids, bias


def calls():
    """Returns each constraint as (function, data), with one item per row."""
    allowed = np.random.default_rng(0).random((BATCH, VOCAB)) < 0.7
    ids, bias = lists(BATCH)
    row = np.arange(BATCH)
    return {
        "biased": (biased_logits, (ids, bias)),
        "allowed": (allowed_logits, (allowed,)),
        "bitmask": (bitmask_logits, (np.asarray(packed_bitmask(allowed)),)),
        "suppressed": (suppressed_logits, (ids,)),
        "min_tokens": (min_tokens_logits, (ids, row, np.full(BATCH, 7))),
        "bad_words": (bad_words_logits, (*texts(BATCH), *vocabularies(BATCH))),
        "sequence_biased": (
            sequence_biased_logits,
            (*texts(BATCH), *vocabularies(BATCH), word_bias(BATCH)),
        ),
        "forced": (forced_logits, (np.where(row % 3, row, -1),)),
        "guided": (guided_logits, (make("normal", BATCH, VOCAB), (row / 5 - 0.4).astype("f4"))),
    }


NAMES = tuple(calls())


def assert_same_bits(got, want):
    np.testing.assert_array_equal(np.asarray(got).view(np.uint8), np.asarray(want).view(np.uint8))


def masked_to(x, kept):
    return np.where(kept, x, np.asarray(-np.inf, x.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_biases_add_up(dtype):
    x = every_kind(2, VOCAB, dtype)
    ids, bias = lists(len(x))
    got = np.asarray(biased_logits(x, ids, bias))
    assert got.dtype == np.float32
    exact = np.stack([reference.biased(*a) for a in zip(x, ids, bias, strict=True)])
    np.testing.assert_allclose(got.astype(np.float64), exact, rtol=2e-7, atol=1e-6)
    untouched = np.stack([~np.isin(np.arange(VOCAB), row) for row in ids])
    assert_same_bits(got[untouched], x[untouched].astype(np.float32))


def test_biases_of_an_id_are_added_up():
    x = jnp.full(4, 256, jnp.bfloat16)  # the next value is 258
    got = biased_logits(x, np.array([1, 2, 1, -1]), np.array([0.75, 0.75, 0.75, 5]))
    np.testing.assert_array_equal(got, [256, 257.5, 256.75, 256])
    ids = np.where(np.arange(6) < np.arange(7)[:, None], 1, -1)
    sums = biased_logits(jnp.zeros((7, 2)), ids, np.full(6, 0.1))[:, 1]
    np.testing.assert_allclose(sums, np.arange(7) * 0.1, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_match_their_definitions(dtype):
    x = every_kind(2, VOCAB, dtype)
    rng = np.random.default_rng(1)
    allowed = rng.random(x.shape) < 0.6
    words = np.asarray(packed_bitmask(allowed))
    ids, _ = lists(len(x))
    assert_same_bits(allowed_logits(x, allowed), masked_to(x, allowed))
    assert_same_bits(bitmask_logits(x, words), masked_to(x, allowed))
    listed = np.stack([np.isin(np.arange(VOCAB), row) for row in ids])
    assert_same_bits(suppressed_logits(x, ids), masked_to(x, ~listed))
    length = np.arange(len(x))
    got = min_tokens_logits(x, ids, length, np.full(len(x), 7))
    assert_same_bits(got, masked_to(x, ~listed | (length >= 7)[:, None]))


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 64, 301])
def test_bitmasks_are_words_of_32_bits_least_significant_first(vocab):
    rng = np.random.default_rng(vocab)
    words = rng.integers(-(2**31), 2**31, (3, -(-vocab // 32))).astype(np.int32)
    words[0], words[1] = -1, 0
    allowed = np.stack([reference.unpacked(row, vocab) for row in words])
    x = make("normal", 3, vocab)
    want = masked_to(x, allowed)
    for mask in (words, words.view(np.uint32), jnp.asarray(words), jnp.asarray(words.view("u4"))):
        assert_same_bits(bitmask_logits(x, mask), want)
    assert_same_bits(bitmask_logits(x, words[2]), masked_to(x, allowed[2]))
    packed = np.asarray(packed_bitmask(allowed))
    assert packed.dtype == np.int32
    assert packed.shape == words.shape
    np.testing.assert_array_equal([reference.unpacked(row, vocab) for row in packed], allowed)
    padded = np.pad(allowed, ((0, 0), (0, -vocab % 32)))  # no bits beyond the vocabulary
    np.testing.assert_array_equal(packed, np.packbits(padded, -1, "little").view(np.int32))
    np.testing.assert_array_equal(packed_bitmask(allowed[2]), packed[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_bad_words_match_their_definition(dtype):
    x = every_kind(2, VOCAB, dtype)
    (tokens, length), (words, lengths) = texts(len(x)), vocabularies(len(x))
    got = bad_words_logits(x, tokens, length, words, lengths)
    kept = np.stack(
        [
            reference.bad_words(
                VOCAB, text[:n], [word[:m] for word, m in zip(rows, ends, strict=True)]
            )
            for text, n, rows, ends in zip(
                tokens.tolist(), length, words.tolist(), lengths, strict=True
            )
        ]
    )
    assert (~kept).any(axis=-1).sum() > len(x) / 2
    assert_same_bits(got, masked_to(x, kept))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequence_biases_match_their_definition(dtype):
    """Biases of -inf ban the tokens that `bad_words_logits` bans."""
    x = every_kind(2, VOCAB, dtype)
    (tokens, length), (words, lengths) = texts(len(x)), vocabularies(len(x))
    words[:, 1], lengths[:, 1] = words[:, 2], lengths[:, 2]  # biases on one token add up
    bias = word_bias(len(x))
    got = np.asarray(sequence_biased_logits(x, tokens, length, words, lengths, bias))
    rows = zip(x, tokens.tolist(), length, words.tolist(), lengths, bias, strict=True)
    want = np.stack(
        [
            reference.sequence_biased(row, text[:n], [w[:m] for w, m in zip(*ws, strict=True)], b)
            for row, text, n, *ws, b in rows
        ]
    )
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=2e-7, atol=1e-6)
    same = want == x.astype(np.float64)
    assert (~same).any(axis=-1).sum() > len(x) / 2
    assert_same_bits(got[same], x.astype(np.float32)[same])
    banned = sequence_biased_logits(x, tokens, length, words, lengths, np.full_like(bias, -np.inf))
    want = bad_words_logits(x, tokens, length, words, lengths).astype(np.float32)
    np.testing.assert_array_equal(banned, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_forced_token_is_alone_and_possible(dtype):
    x = every_kind(2, VOCAB, dtype)
    tokens = np.arange(len(x)) * 17 % (VOCAB + 1) - 1
    x[1, tokens[1]], x[2, tokens[2]] = -np.inf, np.asarray(-0.0, x.dtype)
    got = forced_logits(x, tokens)
    want = np.stack([reference.forced(*a) for a in zip(x, tokens, strict=True)])
    assert_same_bits(got, want.astype(x.dtype))
    assert forced_logits(jnp.full(1, -jnp.inf), 0) == 0


def test_bad_words_of_all_rows_and_of_none():
    x, (tokens, length) = make("normal", 5, VOCAB), texts(5)
    words, lengths = vocabularies(1)
    want = bad_words_logits(x, tokens, length, np.tile(words, (5, 1, 1)), np.tile(lengths, (5, 1)))
    assert_same_bits(bad_words_logits(x, tokens, length, words[0], lengths[0]), want)
    for shape in ((0, 0), (0, 3), (2, 0), (2, 3)):
        none = (np.full(shape, -1), np.zeros(shape[0], int))
        assert_same_bits(bad_words_logits(x, tokens, length, *none), x)
    y = bad_words_logits(x, tokens[:, :0], 0, np.array([[7, 0], [1, 8]]), np.array([1, 2]))
    assert_same_bits(y, masked_to(x, np.arange(VOCAB) != 7))


@pytest.mark.parametrize("dtype", DTYPES)
def test_guidance_matches_its_definition(dtype):
    c = every_kind(2, VOCAB, dtype)
    u = np.roll(c, 1, axis=0)
    scale = np.resize(np.float32([1.0, 0.0, 1.5, -0.5, 3.0, 7.5]), len(c))
    got = np.asarray(guided_logits(c, u, scale))
    assert got.dtype == np.float32
    want = np.stack([reference.guided(*a) for a in zip(c, u, scale, strict=True)])
    magnitude = 3e-7 * max(1, np.abs(c[c > -np.inf]).max().astype(np.float64)) * 8
    finite = np.where(np.isfinite(want).any(axis=-1, keepdims=True), want, np.nan)
    all_masked = np.isnan(finite)
    np.testing.assert_allclose(
        np.where(all_masked, 0, got.astype(np.float64)),
        np.where(all_masked, 0, want),
        rtol=2e-7,
        atol=magnitude,
    )
    assert (got[all_masked].astype(np.float32) == -np.inf).all()
    assert_same_bits(got[scale == 1], c[scale == 1].astype(np.float32))


def test_guidance_at_scale_1_ignores_the_unconditional_logits():
    c = make("masked", 3, VOCAB)
    c[0, 3], u = np.nan, np.full_like(c, np.nan)
    assert_same_bits(guided_logits(c, u, 1.0), c)
    assert np.isnan(guided_logits(c, u, 1.5)).all()


BAD = {
    "biased": [(0, VOCAB), (0, 2**31 - 1), (1, np.nan), (1, np.inf)],
    "suppressed": [(0, VOCAB)],
    "min_tokens": [(0, VOCAB), (1, -1), (2, -1)],
    "bad_words": [(1, -1), (1, ROOM + 1), (2, -1), (2, VOCAB), (3, -1), (3, LONGEST + 1)],
    "sequence_biased": [(1, ROOM + 1), (2, VOCAB), (3, LONGEST + 1), (4, np.nan), (4, np.inf)],
    "forced": [(0, VOCAB), (0, -2), (0, 2**31 - 1)],
    "guided": [(1, np.nan), (1, np.inf), (1, -np.inf), (0, np.nan), (0, np.inf)],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parameters_make_their_row_nan_and_touch_no_other(name):
    x = every_kind(2, VOCAB)
    function, data = calls()[name]
    if name in ("bad_words", "sequence_biased"):
        data[3][4, 0] = 2
    if name == "biased":
        data[0][4, 0] = 1
    want = np.asarray(function(x, *data))
    for place, value in BAD[name]:
        changed = [a.copy() for a in data]
        changed[place][(4,) + (0,) * (changed[place].ndim - 1)] = value
        got = np.asarray(function(x, *changed))
        assert np.isnan(got[4]).all(), (place, value)
        assert_same_bits(np.delete(got, 4, 0), np.delete(want, 4, 0))


def test_guidance_by_log_probabilities_beyond_float32():
    far, near = np.float32([[3e38, -3e38, 3e38]]), np.float32([[0, 1, 2]])
    got = guided_logits(np.tile(far, (2, 1)), np.tile(near, (2, 1)), np.float32([0, 0.25]))
    np.testing.assert_allclose(got[0], log_softmax(near[0]), rtol=1e-6)
    assert np.isfinite(got[1]).all()
    assert np.argmin(got[1]) == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "guided"])
def test_bad_and_masked_logits_do_not_change(name):
    function, data = calls()[name]
    values = np.float32([np.nan, np.inf, -np.inf])[:, None]
    x = np.resize(np.broadcast_to(values, (3, VOCAB)), (BATCH, VOCAB))
    y = np.asarray(function(x, *data))
    assert not (y[x[:, 0] != -np.inf] < np.inf).any()
    if name != "forced":
        assert (y[x[:, 0] == -np.inf] == -np.inf).all()


def test_bad_logits_under_guidance():
    x, u = make("normal", BATCH, VOCAB), make("ties", BATCH, VOCAB)
    scale = np.full(BATCH, 2, np.float32)
    want = np.asarray(guided_logits(x, u, scale))
    bad = x.copy()
    bad[1, 7], bad[2] = np.inf, -np.inf
    y = np.asarray(guided_logits(bad, u, scale))
    assert np.isnan(y[1:3]).all()
    assert_same_bits(np.delete(y, [1, 2], 0), np.delete(want, [1, 2], 0))
    assert np.isnan(guided_logits(u, bad, scale)[1:3]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_neutral_values_are_the_identity(dtype):
    x = every_kind(2, VOCAB, dtype)
    x[0, :3] = np.nan, np.inf, -0.0
    function = {name: function for name, (function, _) in calls().items()}
    ids, bias = lists(len(x))
    none, zeros = np.full_like(ids, -1), np.zeros(len(x), np.int32)
    words, lengths = vocabularies(len(x))
    for name, *data in (
        ("biased", ids, 0 * np.isinf(bias)),
        ("biased", none, np.full(ids.shape, np.nan)),
        ("allowed", np.full(x.shape, True)),
        ("bitmask", np.full((len(x), -(-VOCAB // 32)), -1, np.int32)),
        ("suppressed", none),
        ("min_tokens", ids, zeros, zeros),
        ("min_tokens", none, zeros, zeros + 5),
        ("bad_words", *texts(len(x)), words, 0 * lengths),
        ("sequence_biased", *texts(len(x)), words, 0 * lengths, np.full(lengths.shape, np.nan)),
        ("sequence_biased", *texts(len(x)), words, lengths, np.float32(0 * lengths)),
        ("forced", zeros - 1),
        ("guided", x[::-1].astype(np.float32), zeros + 1),
    ):
        computes = name in ("biased", "sequence_biased", "guided")
        assert_same_bits(function[name](x, *data), x.astype(np.float32) if computes else x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["biased", "min_tokens", "sequence_biased", "guided"])
def test_rows_are_independent(name):
    """For any rank, no rows, `vmap` and `scan`, each row equals the row alone bit for bit."""
    x = every_kind(2, VOCAB)
    function, data = calls()[name]
    inputs = (x, *data)
    want = np.asarray(function(*inputs))
    for i in (0, 5, 17):
        assert_same_bits(function(*(a[i] for a in inputs)), want[i])
    assert_same_bits(jax.vmap(function)(*inputs), want)
    blocks = [a.reshape(3, 6, *a.shape[1:]) for a in inputs]
    scanned = jax.lax.scan(lambda _, a: (None, function(*a)), None, tuple(blocks))[1]
    assert_same_bits(scanned, want.reshape(3, 6, VOCAB))
    assert_same_bits(function(*blocks), want.reshape(3, 6, VOCAB))
    assert function(*(a[:0] for a in inputs)).shape == (0, VOCAB)


@pytest.mark.slow
def test_values_never_trace_again():
    x, (tokens, length), (words, lengths) = make("normal", 3, VOCAB), texts(3), vocabularies(3)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def every(x, ids, bias, allowed, mask, length, words, lengths, scale):
        x = biased_logits(allowed_logits(x, allowed), ids, bias)
        x = min_tokens_logits(suppressed_logits(bitmask_logits(x, mask), ids), ids, length, length)
        return guided_logits(bad_words_logits(x, tokens, length, words, lengths), x, scale)

    for i in range(3):
        ids, bias = lists(3, i)
        mask = np.full((3, 10), -i, np.int32)
        scale = np.full(3, i, np.float32)
        every(x, ids, bias, x > i, mask, length, words, lengths, scale)


@pytest.mark.slow
def test_gradients():
    c = jnp.asarray(make("masked", 3, VOCAB)).at[1, 5].set(jnp.nan)
    u = jnp.asarray(make("masked", 3, VOCAB, seed=1)).at[2].set(-jnp.inf)
    ids, bias = lists(3)

    def loss(c, u, scale, bias):
        y = guided_logits(suppressed_logits(biased_logits(c, ids, bias), ids[:, :3]), u, scale)
        return jnp.sum(jnp.where(jnp.isfinite(y), y, 0))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    for scale in ([1.5, 2.0, 2.0], [1.0, np.nan, 0.0]):  # the last two rows are bad
        gradients = gradient(c, u, jnp.array(scale), bias)
        assert all(jnp.isfinite(g).all() for g in gradients)
        assert (gradients[0][1:] == 0).all()

    c, u, weights = (
        jnp.array([1.0, 2.0, -jnp.inf]),
        jnp.array([0.5, 0.0, 0.0]),
        jnp.array([3.0, 1, 0]),
    )

    def exact(c, u, s):
        a, b = jax.nn.log_softmax(c), jax.nn.log_softmax(u)
        return jnp.sum((b + s * jnp.where(c > -jnp.inf, a - b, 0)) * weights)

    def ours(c, u, s):
        y = guided_logits(c, u, s)
        return jnp.sum(jnp.where(y > -jnp.inf, y, 0) * weights)

    want = jax.grad(exact, argnums=(0, 1, 2))(c, u, 1.5)
    got = jax.grad(ours, argnums=(0, 1, 2))(c, u, 1.5)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_bitmask_is_not_unpacked_in_memory():
    """At a real size only the output is written."""
    x, words = jnp.zeros((32, 128256)), jnp.zeros((32, 4008), jnp.int32)
    compiled = jax.jit(bitmask_logits).lower(x, words).compile()
    assert compiled.memory_analysis().temp_size_in_bytes == 0
    entry = compiled.as_text().split("ENTRY")[1]
    assert len(re.findall(r"= \S+ (fusion|call)\(", entry)) == 1


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x, i: biased_logits(x, x, x), TypeError, "token_ids must hold integers"),
        (lambda x, i: biased_logits(x, i, i[:, :2]), ValueError, "bias must have shape"),
        (lambda x, i: biased_logits(x, i[0], "a"), TypeError, "bias must hold real"),
        (lambda x, i: allowed_logits(x, i), TypeError, "allowed must hold bool"),
        (lambda x, i: allowed_logits(x, i > 0), ValueError, r"allowed must have shape \[..., 10\]"),
        (lambda x, i: bitmask_logits(x, i), TypeError, "bitmask must hold int32 or uint32"),
        (lambda x, i: bitmask_logits(x, np.int32(i)), ValueError, "bitmask must have shape"),
        (lambda x, i: packed_bitmask(i), TypeError, "allowed must hold bool, got int64"),
        (lambda x, i: packed_bitmask(True), ValueError, r"allowed must have shape \[..., vocab\]"),
        (lambda x, i: suppressed_logits(x, 3), ValueError, "token_ids must have shape"),
        (lambda x, i: min_tokens_logits(x, i, 0.5, 3), TypeError, "length must be an integer"),
        (lambda x, i: min_tokens_logits(x, i, 5, "a"), TypeError, "min_tokens must be an integer"),
        (lambda x, i: bad_words_logits(x, i, 2, i[0], i), ValueError, r"words must have shape"),
        (lambda x, i: bad_words_logits(x, i, 2, i, i), ValueError, r"word_lengths must have sha"),
        (lambda x, i: bad_words_logits(x, i, 2, x, i), TypeError, "words must hold integers"),
        (lambda x, i: forced_logits(x, 1.0), TypeError, "token_id must be an integer"),
        (lambda x, i: forced_logits(x, i), ValueError, "token_id must be a scalar or"),
        (
            lambda x, i: sequence_biased_logits(x, i, 2, i[:, None], i[:, :1], x),
            ValueError,
            r"bias must have shape \[..., 1\]",
        ),
        (
            lambda x, i: sequence_biased_logits(x, i, 2, i[:, None], i, x[:, :1]),
            ValueError,
            r"sequence_lengths must have shape \[..., 1\]",
        ),
        (lambda x, i: guided_logits(x, i, 2), TypeError, "unconditional must hold real numbers"),
        (lambda x, i: guided_logits(x, x[:, :3], 2), ValueError, "unconditional must have shape"),
        (lambda x, i: guided_logits(x, x, 1j), TypeError, "scale must be a real number"),
    ],
)
def test_wrong_shapes_and_dtypes_name_the_argument(call, error, match):
    with pytest.raises(error, match=match):
        call(jnp.zeros((2, 10)), np.ones((2, 5), int))
