"""Drafts that share the noise of the target: their acceptance rates."""

import coupling
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from composed import a_state, every_param, only
from rows import every_kind, make

import jaxsample as js
from jaxsample import SamplingParams, nearest_draws, sample
from jaxsample._core import _draw

VOCAB = 600
SIGMAS = 4
"""The bound of a share in standard deviations; a correct one exceeds it in 6 of 100,000 tests."""


def keys_of(batch):
    return jax.vmap(jax.random.key)(np.arange(batch, dtype=np.int32))


@pytest.mark.slow
def test_the_first_draft_is_the_draw_and_the_others_do_not_depend_on_their_number():
    x = every_kind(3, VOCAB)
    x[1, 3] = np.nan
    keys = keys_of(len(x))
    most = np.asarray(nearest_draws(keys, x, num=VOCAB))
    np.testing.assert_array_equal(most[:, 0], js.categorical_sample(keys, x))
    np.testing.assert_array_equal(nearest_draws(keys, x, num=3), most[:, :3])
    for row, tokens in zip(x, most, strict=True):
        drawn = tokens[tokens >= 0]
        assert len(set(drawn)) == len(drawn)
        assert (tokens[len(drawn) :] == -1).all()
        assert np.isnan(row).any() or set(drawn) <= set(np.flatnonzero(row > -np.inf))
    assert (most[1] == -1).all()
    assert ((most >= 0).sum(-1)[:3] == [VOCAB, 0, VOCAB]).all()


@pytest.mark.slow
def test_the_order_is_by_arrival_time():
    """Compares with the definition in float64, on the noise of the library."""
    x = make("normal", 6, VOCAB)
    keys = keys_of(len(x))
    noise = _draw.random_words(keys)
    wide = jnp.broadcast_to(jnp.arange(coupling.CHUNK, dtype=jnp.int32), (6, coupling.CHUNK))
    chunk_time, token_time = (
        -np.log1p(-np.asarray(_draw.uniforms(noise, index, jnp.full_like(index, stream)), "f8"))
        for index, stream in ((wide[:, :3], 0), (wide, 1))
    )
    got = np.asarray(nearest_draws(keys, x, num=VOCAB))
    for row in range(len(x)):
        p, distance = coupling.softmax(x[row]), np.empty(VOCAB)
        chunks = np.split(np.arange(VOCAB), [256, 512])
        late = np.array([np.log(chunk_time[row, c] / p[i].sum()) for c, i in enumerate(chunks)])
        for behind, ids in zip(late - late.min(), chunks, strict=True):
            times = np.log(token_time[row, : ids.size] / p[ids])
            distance[ids] = behind + times - times.min()
        assert (np.diff(distance[got[row]]) > -1e-4).all()
        np.testing.assert_array_equal(got[row, :20], np.argsort(distance)[:20])


@pytest.mark.slow
def test_the_rules_of_sample_apply():
    x = every_kind(2, 300)
    stages = ("frequency_penalty", "bitmask", "temperature", "top_k", "top_p", "xtc")
    params, state = only(every_param(len(x)), stages), a_state(len(x))
    tokens = np.asarray(nearest_draws(keys_of(len(x)), x, params, state, num=3))
    out = sample(keys_of(len(x)), x, params, state, return_kept=True)
    np.testing.assert_array_equal(tokens[:, 0], out.tokens)
    kept = np.asarray(js.bitmask_logits(jnp.zeros(x.shape), out.kept_mask)) == 0
    good = np.asarray(out.tokens) >= 0
    chosen = np.take_along_axis(kept, np.maximum(tokens, 0), -1)
    assert (chosen | (tokens < 0))[good].all()
    few = np.asarray(out.num_kept) < 3
    assert (tokens[few & good] == -1).any(-1).all()


def assert_share(share, law, number):
    assert abs(share - law) < SIGMAS * np.sqrt(law * (1 - law) / number)


def assert_agreement(x, y, number):
    p, q = coupling.softmax(x), coupling.softmax(y)
    share = coupling.accepted(x, y, number)
    assert_share(share, coupling.agreement(p, q), number)
    return share, p, q


def test_coupled_drafts_are_accepted_as_by_the_law():
    for x, y in coupling.pairs(2, VOCAB):
        share, p, q = assert_agreement(x, y, 2000)
        assert share > np.sum(p * q) + 0.05  # the rate of drafts with independent noise


@pytest.mark.slow
def test_coupled_drafts_are_accepted_as_by_the_law_on_a_dozen_pairs():
    for x, y in coupling.pairs(12, VOCAB, seed=1):
        assert_agreement(x, y, 10000)


@pytest.mark.slow
def test_independent_noise_fails_the_same_test():
    x, y = next(coupling.pairs(1, VOCAB))
    number = 4000
    drawn, drafted = (
        js.categorical_sample(jax.random.key(seed), np.tile(of, (number, 1)))
        for seed, of in enumerate((x, y))
    )
    law = coupling.agreement(coupling.softmax(x), coupling.softmax(y))
    with pytest.raises(AssertionError):
        assert_share(float((drawn == drafted).mean()), law, number)


def kept(x, params):
    return np.asarray(js.process_logits(x.astype(np.float32), SamplingParams(**params)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "params"), [(6, {"top_p": 0.95}), (3, {"top_k": 50})], ids=["peaked", "mid"]
)
def test_acceptance_is_close_to_one_race_and_a_runner_up_increases_it(scale, params):
    """At least .97 of one race over the vocabulary; with a runner-up, at least 1 - TV."""
    rng, vocab, number = np.random.default_rng(0), 32000, 3000
    laws, full, tvs, shares = [], [], [], []
    for seed in range(4):
        x = rng.normal(size=vocab) * scale
        x, y = (kept(z, params) for z in (x, x + 0.5 * rng.normal(size=vocab)))
        p, q = coupling.softmax(x), coupling.softmax(y)
        laws.append(coupling.agreement(p, q))
        full.append(coupling.full_agreement(p, q))
        tvs.append(coupling.overlap(p, q))
        shares.append(coupling.accepted(x, y, number, num=2, seed=seed))
    assert np.mean(laws) >= 0.97 * np.mean(full)
    assert np.mean(shares) >= np.mean(tvs)
