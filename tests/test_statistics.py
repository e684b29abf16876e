"""Draws follow the softmax. Keys are fixed; each test fails a correct sampler once in 10,000."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from draws import ERROR_RATE, assert_follows, draw
from rows import KINDS, make, slow
from scipy import stats

from jaxsample import categorical_sample


def test_a_tail_that_is_drawn_too_often_is_detected():
    p = np.append(1 - 999e-8, np.full(999, 1e-8))
    with pytest.raises(AssertionError):
        assert_follows(np.append(np.zeros(19_900, int), np.full(100, 7)), p)


SHAPES = {
    "two": np.log([0.27, 0.73]),
    "ten": np.log(np.arange(1, 11) / 55),
    "uniform 300": np.zeros(300),
    "geometric": -0.05 * np.arange(1000),
    "zipf 32000": -1.1 * np.log(np.arange(1, 32001)),
    "normal 5003": make("normal", 1, 5003)[0],
    "ties": make("ties", 1, 5003)[0],
    "masked": make("masked", 1, 5003)[0],
    "one": make("one", 1, 300)[0],
    "odd 50257": make("normal", 1, 50257)[0],
    "flat 128256": make("flat", 1, 128256)[0],
    "large 151936": make("normal", 1, 151936)[0],
    "far from 0": 1e7 + np.arange(4.0),
}
FIRST = ("ties", "masked")


@pytest.mark.parametrize("name", [name if name in FIRST else slow(name) for name in SHAPES])
def test_draws_follow_the_softmax(name):
    x = SHAPES[name].astype(np.float32)
    assert_follows(draw(x, 20_000, batch=500), reference.softmax(x))


@pytest.mark.parametrize("vocab", [slow(300), slow(5003)])
def test_draws_of_every_stage_follow_the_kept_softmax(vocab):
    x = make("normal", 1, vocab)[0]
    for k, p in ((50, 0.9), (200, 0.99), (0, 0.8)):
        scaled = x.astype(np.float64) / np.float32(1.5)
        kept = np.where(reference.top_k(scaled, k), scaled, -np.inf)
        kept = np.where(reference.top_p(kept, p), kept, -np.inf)
        tokens = draw(x, 20_000, temperature=1.5, top_k=k, top_p=p)
        assert_follows(tokens, reference.softmax(kept))


@pytest.mark.slow
def test_the_tail_is_drawn_as_often_as_it_should():
    """129,000 tokens, 17 nats below one: 5 of a thousand draws, and float32 noise gives a tenth."""
    vocab, gap, number = 129_000, 17.0, 60_000
    x = np.zeros(vocab, np.float32)
    x[4321] = gap
    tail = np.mean(draw(x, number) != 4321)
    expected = (vocab - 1) / (vocab - 1 + np.exp(gap))
    assert abs(tail - expected) < 4 * np.sqrt(expected / number)


@pytest.mark.slow
def test_bfloat16_draws_are_as_good_as_float32():
    """jax.random.categorical reaches 435 of these tokens, with a mean of 129."""
    vocab, number = 32_000, 20_000
    tokens = draw(jnp.zeros(vocab, jnp.bfloat16), number)
    np.testing.assert_array_equal(tokens, draw(jnp.zeros(vocab), number))
    assert abs(tokens.mean() - vocab / 2) < 4 * vocab / np.sqrt(12 * number)
    distinct = vocab * (1 - np.exp(-number / vocab))
    assert abs(np.unique(tokens).size - distinct) < 4 * np.sqrt(vocab)


@pytest.mark.slow
@pytest.mark.parametrize(("logit", "temperature"), [(20.0, 1e-6), (1e30, 1.0), (-1e30, 1.0)])
def test_ties_of_large_logits_are_equally_likely(logit, temperature):
    tokens = draw(jnp.full(4, logit), 20_000, temperature=temperature)
    assert_follows(tokens, np.full(4, 0.25))


@pytest.mark.slow
def test_neighbouring_keys_and_positions_are_independent():
    """The convention of decoding loops is fold_in(request_key, position)."""
    x = jnp.zeros(16)
    keys = jax.vmap(
        lambda seed: jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(64))
    )(jnp.arange(400))
    tokens = np.asarray(categorical_sample(keys, jnp.broadcast_to(x, (400, 64, 16))))
    for a, b in ((tokens[:, :-1], tokens[:, 1:]), (tokens[:-1], tokens[1:])):
        table = np.histogram2d(a.ravel(), b.ravel(), bins=16)[0]
        assert stats.chi2_contingency(table).pvalue > ERROR_RATE


@pytest.mark.parametrize(
    "kind", [name if name in ("ties", "masked") else slow(name) for name in KINDS]
)
def test_masked_tokens_are_never_drawn(kind):
    x = make(kind, 1, 1000)[0]
    x[::3] = -np.inf
    if np.isfinite(x).any():
        assert np.isfinite(x[draw(x, 20_000)]).all()
