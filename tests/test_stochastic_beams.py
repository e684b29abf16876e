"""Stochastic beams compared with the enumeration of all texts: law, estimates and bad values.

Keys are fixed. A test of a law fails a correct search once in 10,000.
"""

import functools

import arrivals
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_beams as reference
from draws import ERROR_RATE
from rows import traces
from scipy import stats

import jaxsample as js

VOCAB, LENGTH, BEAMS, STOP = 3, 3, 3, 2
SEARCHES = 4000
TABLE = np.random.default_rng(0).normal(size=(LENGTH, VOCAB + 1, VOCAB)).astype(np.float32) * 1.5
"""Logits by position and previous token or none."""


@functools.partial(jax.jit, static_argnames=("num_beams", "batch"))
def searched(key, table, *, num_beams=BEAMS, batch=(SEARCHES,)):
    state = js.init_stochastic_beams(num_beams, LENGTH, batch)

    def step(carry):
        state, last, position = carry
        keys = jax.random.split(jax.random.fold_in(key, position), batch)
        state, tokens, _ = js.stochastic_beam_step(
            keys, state, table[position, last], stop_token_ids=jnp.array([STOP, -1])
        )
        return state, tokens, position + 1

    none = jnp.full(state.active.shape, -1, jnp.int32)
    going = lambda carry: ~jnp.all(carry[0].done)  # noqa: E731
    return jax.lax.while_loop(going, step, (state, none, jnp.int32(0)))[0]


@functools.cache
def drawn():
    """Returns the searches as arrays, the index of each text, and the text probabilities."""
    state = jax.tree.map(np.asarray, searched(jax.random.key(0), TABLE))
    rows_of = lambda text: TABLE[len(text), text[-1] if text else -1]  # noqa: E731
    every = reference.every_text(rows_of, VOCAB, LENGTH, [STOP], 0.0)
    place = {text: i for i, (_, text) in enumerate(every)}
    texts = [
        [tuple(map(int, t[:n])) for t, n in zip(tokens, lengths, strict=True)]
        for tokens, lengths in zip(state.tokens, state.lengths, strict=True)
    ]
    index = np.array([[place[text] for text in row] for row in texts])
    return state, index, np.exp([score for score, _ in every])


@pytest.mark.slow
def test_texts_are_distinct_whole_and_have_their_log_probs():
    state, index, p = drawn()
    assert len(p) == 15
    assert np.isclose(p.sum(), 1)
    assert (np.diff(np.sort(index), axis=-1) > 0).all()
    assert (np.diff(state.perturbed) <= 0).all()
    assert (state.perturbed[:, -1] >= state.threshold).all()
    np.testing.assert_allclose(state.logprobs, np.log(p)[index], rtol=1e-5)
    assert (state.tokens[np.arange(LENGTH) >= state.lengths[..., None]] == -1).all()


@pytest.mark.slow
def test_the_order_follows_draws_without_replacement():
    _, index, p = drawn()
    law, orders = arrivals.order_law(p, 2)
    cell = {tuple(order): i for i, order in enumerate(orders.tolist())}
    observed = np.bincount([cell[tuple(i)] for i in index[:, :2].tolist()], minlength=len(law))
    often = law * SEARCHES >= 5
    counts = np.append(observed[often], observed[~often].sum())
    expected = np.append(law[often], law[~often].sum()) * SEARCHES
    assert stats.chisquare(counts, expected * (counts.sum() / expected.sum())).pvalue > ERROR_RATE
    third, orders = arrivals.order_law(p, 3)
    among = np.array([third[(orders == i).any(-1)].sum() for i in range(len(p))])
    share = np.array([(index == i).any(-1).mean() for i in range(len(p))])
    z = (share - among) / np.sqrt(among * (1 - among) / SEARCHES)
    assert np.abs(z).max() < stats.norm.isf(ERROR_RATE / 2 / len(p))


@pytest.mark.slow
def test_the_perturbed_log_prob_of_the_first_is_a_gumbel_variable():
    """By the threshold, so is the next arrival among all texts without a beam."""
    state, index, p = drawn()
    assert stats.kstest(state.perturbed[:, 0], stats.gumbel_r.cdf).pvalue > ERROR_RATE
    left = 1 - p[index].sum(-1)
    gap = np.exp(-np.float64(state.threshold)) - np.exp(-np.float64(state.perturbed[:, -1]))
    assert stats.kstest(gap * left, stats.expon.cdf).pvalue > ERROR_RATE


@pytest.mark.slow
def test_estimates_are_unbiased():
    state, index, p = drawn()
    values = np.random.default_rng(1).normal(size=len(p))
    q = -np.expm1(-np.exp(np.float64(state.logprobs) - state.threshold[:, None]))
    for f in (values, np.ones(len(p))):
        estimates = (p[index] / q * f[index]).sum(-1)
        error = estimates.std() / np.sqrt(SEARCHES)
        assert abs(estimates.mean() - p @ f) < stats.norm.isf(ERROR_RATE / 2) * error


@pytest.mark.slow
def test_more_beams_than_texts_find_all():
    state = searched(jax.random.key(1), TABLE, num_beams=20, batch=())
    *_, p = drawn()
    assert int((state.lengths > 0).sum()) == 15
    np.testing.assert_allclose(np.sort(np.exp(state.logprobs)), np.sort([*p, *[0] * 5]), rtol=1e-5)
    assert state.threshold == -np.inf
    assert (state.tokens[15:] == -1).all()


@pytest.mark.slow
def test_long_texts_have_finite_times():
    """Probabilities of e^-600, far below float32."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 400)), jnp.float32)
    state, key = js.init_stochastic_beams(3, 100, (2,)), jax.random.key(0)
    for i in range(100):
        key = jax.random.fold_in(key, i)
        state, *_ = js.stochastic_beam_step(key, state, x)
    assert state.done.all()
    assert (state.logprobs < -400).all()
    assert np.isfinite(state.perturbed).all()
    assert np.isfinite(state.threshold).all()
    assert len(np.unique(state.tokens.reshape(6, -1), axis=0)) == 6


@pytest.mark.slow
def test_bad_beams_end_and_touch_no_other_search():
    x = np.tile(TABLE[0, 0], (3, BEAMS, 1))
    key, start = jax.random.key(3), js.init_stochastic_beams(BEAMS, LENGTH, (3,))
    state, *_ = js.stochastic_beam_step(key, start, x)
    want, *_ = js.stochastic_beam_step(key, state, x)
    hurt = x.copy()
    hurt[1, 1, 0], hurt[2] = np.nan, -np.inf
    after, tokens, parents = js.stochastic_beam_step(key, state, hurt)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    assert after.done.tolist() == [False, False, True]
    assert np.isnan(after.threshold).tolist() == [False, True, True]
    assert not ((parents[1] == 1) & (tokens[1] >= 0)).any()
    assert (tokens[2] == -1).all()
    assert (after.tokens[2] == -1).all()
    assert (after.lengths[2] == 0).all()


@pytest.mark.slow
def test_batch_and_vmap_do_not_matter_and_values_compile_once():
    x = np.random.default_rng(4).normal(size=(3, BEAMS, 50)).astype(np.float32)
    keys, start = jax.random.split(jax.random.key(0), 3), js.init_stochastic_beams(BEAMS, 4, (3,))
    want = js.stochastic_beam_step(keys, start, x)
    before = traces(js.stochastic_beam_step)
    for _ in range(2):
        want = js.stochastic_beam_step(keys, want[0], x)
    assert traces(js.stochastic_beam_step) == before
    state = js.stochastic_beam_step(keys, start, x)[0]
    want = js.stochastic_beam_step(keys, state, x)
    order = np.array([2, 0, 1])
    moved = js.stochastic_beam_step(keys[order], jax.tree.map(lambda a: a[order], state), x[order])
    mapped = jax.vmap(js.stochastic_beam_step)(keys, state, jnp.asarray(x))
    for a, b, c in zip(*map(jax.tree.leaves, (want, moved, mapped)), strict=True):
        np.testing.assert_array_equal(a[order], b)
        np.testing.assert_array_equal(a, c)


def test_errors_name_the_argument():
    state, x = js.init_stochastic_beams(BEAMS, 4, (2,)), jnp.zeros((2, BEAMS, 5))
    with pytest.raises(ValueError, match="num_beams must be in"):
        js.init_stochastic_beams(0, 4)
    with pytest.raises(ValueError, match="logits must have shape"):
        js.stochastic_beam_step(jax.random.key(0), state, x[:, :1])
    with pytest.raises(ValueError, match="keys must be one key, or keys of shape"):
        js.stochastic_beam_step(jax.random.split(jax.random.key(0), 3), state, x)
    with pytest.raises(TypeError, match="state must be of type StochasticBeamState"):
        js.stochastic_beam_step(jax.random.key(0), js.init_beams(2, 2), x)
