"""Rejection sampling: decisions equal the definition, and texts follow the law.

Wrong variants, which some systems contained, fail the same tests.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rejecting
from rows import slow, traces

import jaxsample as js
from jaxsample import SamplingParams, init_state, rejection, rejection_sample
from jaxsample._core import _draw, _residual
from jaxsample._core._source import opened
from jaxsample.rejection import _uniforms

METHODS = ("chain", "block")
PLAIN = SamplingParams()
BATCH, NUMBER, VOCAB = 300, 3, 20
"""A single shape, so that the tests share one program per method."""


def rows_of(batch=BATCH):
    """Returns logits of a target and a draft model, and drafts of the latter."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, NUMBER + 1, VOCAB)).astype(np.float32) * 2
    y = x[:, :-1] + rng.normal(size=(batch, NUMBER, VOCAB)).astype(np.float32)
    return x, y, drawn_from(y)


def drawn_from(y):
    return (y + np.random.default_rng(1).gumbel(size=y.shape)).argmax(-1)


def keys_of(batch=BATCH):
    return js.request_keys(np.arange(batch), np.zeros(batch, int))


def uniforms_of(keys, drafts):
    words = _draw.random_words(rejection._folded(keys, jnp.int32(rejection._VERIFICATION)))
    return np.asarray(_uniforms(words, jnp.asarray(drafts, jnp.int32)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["chain", "block"])
def test_decisions_match_their_definition(method):
    """Log-probs and counts are those of the target, for every token."""
    x, y, drafts = rows_of()
    keys, (p, q) = keys_of(), map(rejecting.softmax, (x, y))
    out = rejection_sample(keys, x, drafts, y, PLAIN, method=method)
    uniforms, close = uniforms_of(keys, drafts), 0
    for row in range(BATCH):
        chance = rejecting.chances(p[row], q[row], drafts[row], method)
        if np.abs(uniforms[row] - chance).min() < 1e-5:
            close += 1
        else:
            wanted = rejecting.number_accepted(chance, uniforms[row], method)
            assert out.num_accepted[row] == wanted
    assert close < 3
    assert len(set(np.asarray(out.num_accepted).tolist())) == NUMBER + 1
    place, end = np.arange(NUMBER + 1), np.asarray(out.num_accepted)[:, None]
    tokens = np.asarray(out.tokens)
    np.testing.assert_array_equal(tokens >= 0, place <= end)
    accepted = place[:-1] < end
    np.testing.assert_array_equal(tokens[:, :-1][accepted], drafts[accepted])
    logprobs = np.asarray(js.token_logprobs(x, np.maximum(tokens, 0)))
    np.testing.assert_array_equal(out.logprobs, np.where(tokens >= 0, logprobs, np.nan))
    np.testing.assert_array_equal(out.num_kept, np.where(tokens >= 0, VOCAB, 0))
    np.testing.assert_array_equal(out.nodes, np.where(tokens >= 0, place, -1))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["chain", "block"])
def test_all_drafts_of_the_target_are_accepted_and_none_of_probability_0(method):
    """For p = q there is no division by zero; tokens of target probability 0 are never accepted."""
    x, _, _ = rows_of()
    drafts = drawn_from(x[:, :-1])
    out = rejection_sample(keys_of(), x, drafts, x[:, :-1], PLAIN, method=method)
    np.testing.assert_array_equal(out.num_accepted, NUMBER)
    np.testing.assert_array_equal(out.tokens[:, :-1], drafts)
    left = np.where(np.arange(VOCAB) < 10, x, -np.inf)
    right = np.where(np.arange(VOCAB) < 10, -np.inf, x)[:, :-1]
    out = rejection_sample(keys_of(), left, drawn_from(right), right, PLAIN, method=method)
    np.testing.assert_array_equal(out.num_accepted, 0)
    assert ((np.asarray(out.tokens)[:, 0] < 10) & (out.tokens[:, 0] >= 0)).all()


@pytest.mark.parametrize("method", ["chain", slow("block")])
def test_bad_rows_padding_and_drafts_that_cannot_have_been_drawn(method):
    """A bad row returns -1 if it is reached, after the drafts before it."""
    x, _, drafts = rows_of()
    y = np.array(x[:, :-1])  # all drafts are accepted
    drafts[:7] = 2
    x[0, 0, 1] = x[1, 2, 1] = x[2, 3, 1] = np.nan
    y[3, 1, 4] = np.nan
    y[4, 1, 2] = -np.inf  # q = 0
    drafts[5, 1], drafts[6, 2] = -1, VOCAB
    x[5, 2:], y[5, 1:] = np.nan, np.inf
    out = rejection_sample(keys_of(), x, drafts, y, PLAIN, method=method)
    np.testing.assert_array_equal(out.num_accepted[:7], [0, 2, 3, 1, 1, 1, 2])
    tokens = np.asarray(out.tokens)
    last = np.take_along_axis(tokens, np.asarray(out.num_accepted)[:, None], 1)[:, 0]
    np.testing.assert_array_equal(last[:7] >= 0, np.arange(7) == 5)
    assert (last[7:] >= 0).all()
    assert (tokens[5, 2:] == -1).all()
    np.testing.assert_array_equal(np.isnan(out.logprobs), tokens < 0)


@pytest.mark.parametrize("method", ["chain", slow("block")])
def test_a_row_depends_only_on_itself(method):
    """It does not depend on slot or neighbours, each with its own key; nothing compiles again."""
    x, y, drafts = rows_of()
    keys = keys_of()
    want = rejection_sample(keys, x, drafts, y, PLAIN, method=method)
    traced = traces(rejection_sample)
    backwards = rejection_sample(keys[::-1], x[::-1], drafts[::-1], y[::-1], PLAIN, method=method)
    jax.tree.map(np.testing.assert_array_equal, backwards, jax.tree.map(lambda a: a[::-1], want))
    assert traces(rejection_sample) == traced


@pytest.mark.slow
def test_the_batch_and_more_padding_change_nothing():
    x, y, drafts = rows_of()
    keys = keys_of()
    want = rejection_sample(keys, x, drafts, y, PLAIN, method="block").tokens
    garbage = [np.pad(of, [(0, 0), (0, 2), (0, 0)], constant_values=np.nan) for of in (x, y)]
    longer = np.pad(drafts, [(0, 0), (0, 2)], constant_values=-1)
    out = rejection_sample(keys, garbage[0], longer, garbage[1], PLAIN, method="block")
    np.testing.assert_array_equal(out.tokens[:, : NUMBER + 1], want)
    alone = rejection_sample(keys[7], x[7], drafts[7], y[7], PLAIN, method="block")
    np.testing.assert_array_equal(alone.tokens, want[7])


def test_block_accepts_more_on_average_on_every_pair():
    """Enumerates all drafts; chain accepts the first draft with probability 1 - TV."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, q = (rejecting.softmax(rng.normal(size=(3, 4)) * 2) for _ in range(2))
        chain, block = (rejecting.expected_number(p, q, 3, method) for method in METHODS)
        assert block >= chain - 1e-12
        overlap = np.minimum(p[0], q[0]).sum()
        np.testing.assert_allclose(rejecting.expected_number(p, q, 1, "chain"), overlap)
        np.testing.assert_allclose(rejecting.expected_number(p, q, 1, "block"), overlap)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_accepted_drafts_is_as_expected(method):
    rng, rows, number = np.random.default_rng(3), 20000, 3
    x, y = rng.normal(size=(2, number + 1, 4)).astype(np.float32) * 1.5
    p, q = rejecting.softmax(x), rejecting.softmax(y)
    drafts = (y[:-1] + rng.gumbel(size=(rows, number, 4))).argmax(-1)
    given = [np.broadcast_to(of, (rows, *of.shape)) for of in (x, y[:-1])]
    out = rejection_sample(keys_of(rows), given[0], drafts, given[1], PLAIN, method=method)
    counts = np.asarray(out.num_accepted)
    wanted = rejecting.expected_number(p, q, number, method)
    assert abs(counts.mean() - wanted) < 4 * counts.std() / np.sqrt(rows)


def model(vocab):
    """Returns logits of a target and of a draft model after each token."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(vocab, vocab)).astype(np.float32) * 1.5
    return target, (target + rng.normal(size=target.shape) * 1.5).astype(np.float32)


def by(method):
    return lambda requests, position, *args: rejection_sample(*args, method=method)


def text_p_value(verify, vocab=4, length=4, number=3, rows=40000, params=PLAIN, state=None):
    target, draft = model(vocab)
    text, steps = rejecting.texts(target, draft, rows, length, number, params, verify, state)
    assert steps >= 3
    return rejecting.p_value(text, rejecting.law(target, length, params, state), vocab)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_texts_of_several_steps_follow_their_law(method):
    assert text_p_value(by(method)) > rejecting.ERROR_RATE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("chain", {"top_k": 3, "top_p": 0.95, "temperature": 0.8, "allowed": np.arange(4) < 3}),
        ("block", {"frequency_penalty": 0.7, "repetition_penalty": 1.5}),
    ],
)
def test_texts_follow_their_law_under_rules(method, params):
    rows, state = 20000, None
    if "frequency_penalty" in params:
        state = init_state(np.zeros((rows, 1), int), 1, 4, 20)
    p_value = text_p_value(by(method), rows=rows, params=SamplingParams(**params), state=state)
    assert p_value > rejecting.ERROR_RATE


@pytest.mark.slow
def test_texts_follow_the_mixture_of_xtc():
    """A position that is verified again also repeats the random choice of XTC."""
    chance, threshold = 0.5, 0.1
    params = SamplingParams(xtc_probability=chance, xtc_threshold=threshold)
    target, draft = model(4)
    left = js.xtc_logits(jax.random.key(0), target, 1.0, threshold)
    mixture = np.log(chance * rejecting.softmax(left) + (1 - chance) * rejecting.softmax(target))
    text, _ = rejecting.texts(target, draft, 20000, 4, 3, params, by("chain"))
    right, wrong = (
        rejecting.p_value(text, rejecting.law(of, 4, PLAIN), 4)
        for of in (mixture.astype(np.float32), target)
    )
    assert right > rejecting.ERROR_RATE > wrong


def patched(changes, method):
    """Returns the function with some parts replaced, given the requests and positions."""
    body = inspect.unwrap(rejection_sample)

    def verify(requests, position, keys, logits, drafts, draft_logits, params, state):
        with pytest.MonkeyPatch.context() as patch:
            for where, name, make in changes:
                old = getattr(where, name)
                patch.setattr(where, name, make(old, requests, position))
            return body(keys, logits, drafts, draft_logits, params, state, method=method)

    return verify


def uniforms_by_position(old, requests, position):
    """Accepts drafts by noise of their position, independent of the step."""

    def uniforms(noise, drafts):
        places = position[:, None] + jnp.arange(drafts.shape[-1], dtype=jnp.int32)[None]
        keys = js.request_keys(jnp.broadcast_to(requests[:, None] + 2**20, places.shape), places)
        return jax.vmap(jax.vmap(jax.random.uniform))(keys)

    return uniforms


def residual_of_chain(old, requests, position):
    def behind(noise, p, q, drafts, verified):
        factor = jnp.ones_like(verified.factor)
        return old(noise, p, q, drafts, verified._replace(factor=factor))

    return behind


def correction_from_target(old, requests, position):
    def behind(noise, p, q, drafts, verified):
        logits = p.at(verified.number).all_logprobs()
        return _residual.drawn(noise, opened(logits), logits)

    return behind


def rest_or(x, otherwise):
    empty = (x.logits == -jnp.inf).all(-1, keepdims=True)
    return jnp.where(empty, otherwise, x.logits)


def correction_by_noise_of_the_draft(old, requests, position):
    def behind(noise, p, q, drafts, verified):
        def drawn(_, x, otherwise):
            logits = rest_or(x, otherwise)
            number = jnp.minimum(verified.number, drafts.shape[-1] - 1)
            each = [
                jax.vmap(jax.random.categorical)(
                    rejecting.draft_keys(requests, position, i), logits
                )
                for i in range(drafts.shape[-1])
            ]
            return jnp.take_along_axis(jnp.stack(each, -1), number[:, None], -1)[:, 0].astype(
                jnp.int32
            )

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_residual, "drawn", drawn)
            return old(noise, p, q, drafts, verified)

    return behind


def correction_by_the_uniform_of_the_draft(old, requests, position):
    def behind(noise, p, q, drafts, verified):
        def drawn(_, x, otherwise):
            number = jnp.minimum(verified.number, drafts.shape[-1] - 1)
            u = jnp.take_along_axis(_uniforms(noise, drafts), number[:, None], -1)
            below = jnp.cumsum(jax.nn.softmax(rest_or(x, otherwise)), -1) <= u
            return jnp.minimum(jnp.sum(below, -1, dtype=jnp.int32), x.vocab - 1)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_residual, "drawn", drawn)
            return old(noise, p, q, drafts, verified)

    return behind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "wrong", "method"),
    [
        ("_next_token", correction_from_target, "chain"),
        ("_uniforms", uniforms_by_position, "block"),
        ("_next_token", residual_of_chain, "block"),
        ("_next_token", correction_by_noise_of_the_draft, "chain"),
        ("_next_token", correction_by_the_uniform_of_the_draft, "chain"),
    ],
)
def test_wrong_variants_fail_the_same_test(part, wrong, method):
    p_value = text_p_value(patched([(rejection, part, wrong)], method))
    assert p_value < rejecting.ERROR_RATE / 100


def test_a_uniform_is_below_1(monkeypatch):
    """Without rounding down, the largest words would give 1."""
    ones = np.uint32(2**32 - 1)
    monkeypatch.setattr(
        _draw.threefry2x32_p, "bind", lambda *args: [jnp.full_like(args[2], ones)] * 2
    )
    drafts = jnp.zeros((1, 3), jnp.int32)
    assert (_uniforms(jnp.zeros((1, 2), jnp.uint32), drafts) < 1).all()


@pytest.mark.slow
def test_greedy_rows_in_a_mixed_batch():
    """Greedy rows accept only the most likely tokens, and other rows are sampled."""
    x, y, drafts = rows_of()
    best = x.argmax(-1)
    drafts[::2] = best[::2, :-1]
    temperature = np.where(np.arange(BATCH) % 4 < 2, 0.0, 1.0)
    params = SamplingParams(temperature=temperature)
    out = rejection_sample(keys_of(), x, drafts, y, params)
    greedy = temperature == 0
    right = np.where(np.asarray(out.tokens) >= 0, out.tokens == best, True)
    assert right[greedy].all()
    assert (np.asarray(out.num_accepted)[greedy & (np.arange(BATCH) % 2 == 0)] == NUMBER).all()
    assert right[~greedy].mean() < 0.9
    np.testing.assert_array_equal(np.asarray(out.logprobs)[greedy & (out.num_accepted == 3)], 0)
