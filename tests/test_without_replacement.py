"""Draws without replacement: order, arrival times and estimates follow the definitions.

Keys are fixed. A test of a law fails a correct sampler once in 10,000.
"""

import functools

import arrivals
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import ERROR_RATE
from reference import logprobs, softmax
from rows import every_kind, exhaustive, traces
from scipy import stats

import jaxsample as js
from jaxsample import without_replacement_sample

VOCAB = 600
NUM = 20


@functools.cache
def some_rows(dtype="float32"):
    """Returns rows of every kind, one of them bad, and the draws from them."""
    x = every_kind(3, VOCAB, dtype)
    x[1, 3] = np.nan
    keys = jax.vmap(jax.random.key)(np.arange(len(x), dtype=np.int32))
    return keys, x, without_replacement_sample(keys, x, num=NUM)


def test_the_race_matches_its_definition_in_float64():
    keys, x, (tokens, _, times) = some_rows()
    clocks = arrivals.Clocks(keys, VOCAB, NUM + 2)
    for row in np.flatnonzero(~np.isnan(x).any(-1)):
        wanted, wanted_times = arrivals.renewed_race(clocks, row, x[row], NUM)
        np.testing.assert_array_equal(tokens[row], wanted)
        # Weights are integers with few digits for tokens 25 nats below the most likely one.
        deepest = np.ptp(x[row][wanted[wanted >= 0]])
        np.testing.assert_allclose(times[row], wanted_times, rtol=5e-3 if deepest > 15 else 2e-5)


@pytest.mark.parametrize("dtype", ["float32", exhaustive("bfloat16")])
def test_tokens_are_distinct_and_their_logprobs_match_the_softmax(dtype):
    keys, x, out = some_rows(dtype)
    tokens, got, times = map(np.asarray, out)
    np.testing.assert_array_equal(tokens[:, 0], js.categorical_sample(keys, x))
    for row, (ids, of_ids, at) in enumerate(zip(tokens, got, times, strict=True)):
        if np.isnan(x[row]).any():
            assert (ids == -1).all()
            assert np.isnan(of_ids).all()
            assert np.isnan(at).all()
            continue
        drawn = ids[ids >= 0]
        assert drawn.size == len(set(drawn)) == min(NUM, np.sum(x[row] > -np.inf))
        wanted = np.append(logprobs(x[row])[drawn], np.full(NUM - drawn.size, -np.inf))
        np.testing.assert_allclose(of_ids, wanted, rtol=3e-6, atol=3e-6)
        assert (np.isfinite(at[:-1]) == (ids >= 0)).all()
        assert (np.diff(at[np.isfinite(at)]) > 0).all()
        assert (at[drawn.size + 1 :] == np.inf).all()


@pytest.mark.slow
def test_a_row_does_not_depend_on_the_number_of_tokens_or_on_the_other_rows():
    keys, x, want = some_rows()
    fewer = without_replacement_sample(keys[::-1], x[::-1], num=4)
    for got, full in zip(fewer, want, strict=True):
        np.testing.assert_array_equal(got[::-1], full[:, : got.shape[-1]])


@pytest.mark.exhaustive
def test_a_row_does_not_depend_on_vmap_masked_columns_or_the_dtype():
    keys, x, want = some_rows("bfloat16")
    draw = functools.partial(without_replacement_sample, num=NUM)
    behind = np.pad(x, [(0, 0), (0, 2000)], constant_values=-np.inf)
    alone = jax.tree.map(lambda a: a[None], draw(keys[7], x[7]))
    ways = draw(keys, x.astype(np.float32)), draw(keys, behind), jax.vmap(draw)(keys, x)
    for way, rows in ((ways[0], want), (ways[1], want), (ways[2], want), (alone, slice(7, 8))):
        rows = rows if rows is want else jax.tree.map(lambda a: a[7:8], want)
        jax.tree.map(np.testing.assert_array_equal, way, rows)


@pytest.mark.slow
def test_a_vocabulary_of_one_token_and_rows_of_one_token():
    tokens, got, times = without_replacement_sample(jax.random.key(0), jnp.zeros((2, 1)), num=1)
    assert tokens.tolist() == [[0], [0]]
    assert got.tolist() == [[0], [0]]
    assert (times[:, 1] == jnp.inf).all()


@pytest.mark.slow
def test_tokens_far_below_the_most_likely_one():
    """All tokens of a chunk are drawn; a chunk of weight 0 is never drawn, as documented."""
    x = np.full((3, VOCAB), -np.inf, np.float32)
    x[0, :3], x[1, ::256], x[2, :2] = (0, -40, -80), (0, -20, -40), (0, -100)
    tokens = without_replacement_sample(jax.random.key(0), x, num=4).tokens
    assert tokens.tolist() == [[0, 1, 2, -1], [0, 256, -1, -1], [0, -1, -1, -1]]


P = np.array([0.4, 0.2, 0.2, 0.15, 0.05])
IDS = np.array([5, 3, 300, 550, 551])
"""Five tokens of three chunks, two of them equally likely, for the tests of laws."""
NUMBER = 6_000


@functools.cache
def many():
    x = np.full(768, -np.inf, np.float32)
    x[IDS] = np.log(P)
    keys = jax.random.split(jax.random.key(3), NUMBER)
    rows = np.tile(x, (NUMBER, 1))
    tokens, _, times = map(np.asarray, without_replacement_sample(keys, rows, num=5))
    return np.argsort(IDS)[np.searchsorted(np.sort(IDS), tokens)], times.astype(np.float64)


@pytest.mark.slow
def test_the_order_follows_its_law():
    tokens, _ = many()
    law, orders = arrivals.order_law(P, 5)
    observed = (tokens[:, None] == orders).all(-1).sum(0)
    assert stats.chisquare(observed, law * NUMBER).pvalue > ERROR_RATE


@pytest.mark.slow
def test_another_law_of_the_order_is_detected():
    tokens, _ = many()
    law, orders = arrivals.order_law(P[[0, 1, 3, 2, 4]], 5)
    observed = (tokens[:, None] == orders).all(-1).sum(0)
    assert stats.chisquare(observed, law * NUMBER).pvalue < ERROR_RATE


@pytest.mark.slow
def test_arrival_times_are_exponential_and_independent():
    tokens, times = many()
    assert (times[:, 5] == np.inf).all()
    each = np.take_along_axis(times[:, :5], np.argsort(tokens), -1) * P
    for i in range(5):
        assert stats.kstest(each[:, i], "expon").pvalue > ERROR_RATE / 5
    pairs = stats.spearmanr(each).pvalue[np.triu_indices(5, 1)]
    assert (pairs > ERROR_RATE / 10).all()
    assert stats.kstest(times[:, 0], "expon").pvalue > ERROR_RATE


@pytest.mark.slow
def test_inclusion_probabilities_and_the_estimate_are_unbiased():
    """Of the first two tokens, with the arrival time of the third, which `num=2` also returns."""
    tokens, times = many()
    f = np.array([1.0, -2.0, 5.0, 0.5, 30.0])
    p = P[tokens[:, :2]]
    weights = 1 / -np.expm1(-p * times[:, 2:3])
    included = np.zeros((NUMBER, 5))
    np.put_along_axis(included, tokens[:, :2], weights, -1)
    estimates = np.sum(p * weights * f[tokens[:, :2]], axis=-1)
    for values, wanted in ((estimates, P @ f), *((included[:, i], 1) for i in range(5))):
        error = values.std() / np.sqrt(NUMBER)
        assert abs(values.mean() - wanted) < stats.norm.isf(ERROR_RATE / 12) * error


@pytest.mark.exhaustive
def test_children_of_stochastic_beams_have_the_law_of_texts():
    """The first two texts of two tokens, from arrival times of each token."""
    first, second = np.array([0.6, 0.3, 0.1]), np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    keys = jax.random.split(jax.random.key(8), (NUMBER, 4))
    x = np.tile(np.log(first).astype(np.float32), (NUMBER, 1))
    beams, phi, arrived = without_replacement_sample(keys[:, 0], x, num=3)
    x = np.log(second).astype(np.float32)[beams]
    tokens, _, times = without_replacement_sample(keys[:, 1:], x, num=2)
    times = arrived[:, :3, None] + (times - times[..., :1])[..., :2] / np.exp(phi)[..., None]
    texts = np.asarray(2 * beams[..., None] + tokens).reshape(NUMBER, 6)
    order = np.argsort(np.asarray(times).reshape(NUMBER, 6), axis=-1)[:, :2]
    law, orders = arrivals.order_law((first[:, None] * second).ravel(), 2)
    drawn = np.take_along_axis(texts, order, -1)
    observed = (drawn[:, None] == orders).all(-1).sum(0)
    assert stats.chisquare(observed, law * NUMBER).pvalue > ERROR_RATE


@pytest.mark.exhaustive
def test_further_tokens_of_a_large_vocabulary_follow_their_law():
    """Given the previous tokens: the frequency of each of four tokens, and the arrival times."""
    x = np.concatenate([np.arange(4.0), np.full(5003, -3.0)]).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), NUMBER)
    draw = functools.partial(without_replacement_sample, logits=x, num=3)
    drawn = jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=1000))(keys)
    tokens, got, times = map(np.asarray, drawn)
    p, law = np.exp(got.astype(np.float64)), softmax(x)
    left = 1 - np.cumsum(p, axis=-1)
    for gap in (np.diff(times.astype(np.float64), axis=-1) * left).T:
        assert stats.kstest(gap, "expon").pvalue > ERROR_RATE / 3
    for place in (1, 2):
        for token in range(4):
            is_left = (tokens[:, :place] != token).all(-1)
            expected = np.where(is_left, law[token] / left[:, place - 1], 0)
            error = np.sqrt(np.sum(expected * (1 - expected)))
            difference = np.sum(tokens[:, place] == token) - expected.sum()
            assert abs(difference) < stats.norm.isf(ERROR_RATE / 16) * error


@pytest.mark.slow
def test_gradients_are_those_of_the_log_softmax():
    keys, x, _ = some_rows()
    rows = np.array([0, 1, 18])  # one bad row, one of a single token
    keys, x = keys[rows], jnp.asarray(x[rows])

    def loss(x):
        out = without_replacement_sample(keys, x, num=3)
        return jnp.sum(jnp.where(out.tokens >= 0, out.logprobs, 0))

    def plain(x):
        tokens = without_replacement_sample(keys, x, num=3).tokens
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(x), tokens, -1)[0])

    got = jax.grad(loss)(x)
    np.testing.assert_allclose(got[0], jax.grad(plain)(x)[0], atol=1e-6)
    assert (got[1] == 0).all()
    np.testing.assert_allclose(got[2], 0, atol=1e-6)  # a token of probability 1
    times = jax.grad(lambda x: without_replacement_sample(keys, x, num=3).arrival_times[0, 2])(x)
    assert (times == 0).all()


def test_values_never_trace_again():
    before = traces(without_replacement_sample)
    for seed in range(3):
        x = every_kind(3, VOCAB, seed=seed)
        without_replacement_sample(jax.random.split(jax.random.key(seed), len(x)), x, num=NUM)
    assert traces(without_replacement_sample) <= before + 1


@pytest.mark.parametrize(
    ("keys", "num", "error", "message"),
    [
        (jax.random.key(0), 0, ValueError, r"num must be in \[1, 2097152\], got 0"),
        (jax.random.key(0), 5, ValueError, r"num must be in \[1, 4\], got 5"),
        (jax.random.key(0), 1.0, TypeError, "num must be a Python integer, got 1.0"),
        (jax.random.split(jax.random.key(0), 3), 1, ValueError, r"keys must be .*\(2,\).*\(3,\)"),
        (7, 1, TypeError, "keys must be a jax.random.key"),
    ],
)
def test_errors_name_wrong_arguments(keys, num, error, message):
    with pytest.raises(error, match=message):
        without_replacement_sample(keys, jnp.zeros((2, 4)), num=num)
