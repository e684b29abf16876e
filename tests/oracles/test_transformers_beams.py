"""Beam search compared with `generate` of transformers, on the logits of one model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsample as js

pytest.importorskip("transformers", reason="transformers is not installed: the extra `oracles`")

import transformers_beams_oracle as oracle

pytestmark = pytest.mark.oracle

STOPS = ([39], [13, 37, 39])
PENALTIES = (-1.0, 0.0, 0.5, 1.0, 2.0)
SETTINGS = [*itertools.product(STOPS, PENALTIES)]


@pytest.fixture(scope="module")
def model():
    return oracle.model()


def searched(model, num_beams, settings, rules=None, **options):
    """Returns our searches on the logits of the model, `[settings, prompts]`, in one batch."""
    shape = (len(settings), len(oracle.PROMPTS))
    stops = np.array([[*stops, -1, -1][:3] for stops, _ in settings])[:, None]
    penalties = np.array([penalty for _, penalty in settings], np.float32)[:, None]
    state = js.init_beams(num_beams, oracle.MAX_LENGTH, shape)
    while not state.done.all():
        written = np.asarray(state.tokens)[..., : int(state.lengths.max())]
        logits = oracle.logits_behind(model, written)
        if rules is not None:
            logits = rules(jax.nn.log_softmax(logits), written)
        state, *_ = js.beam_step(
            state,
            logits,
            stop_token_ids=stops,
            length_penalty=penalties,
            normalize=rules is None,
            **options,
        )
    return jax.tree.map(np.asarray, js.finalize_beams(state, num_return=num_beams))


def assert_same(got, tokens, scores=None):
    """Compares all hypotheses of some prompts, in order."""
    for i, length in np.ndenumerate(got.lengths):
        np.testing.assert_array_equal(got.tokens[i][:length], tokens[i][:length])
        assert (tokens[i][length:] == oracle.PAD).all()
    if scores is not None:
        np.testing.assert_allclose(got.scores, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("num_beams", [2, 4, 8])
def test_sequences_and_scores(model, num_beams, early_stopping, record_property):
    found = searched(model, num_beams, SETTINGS, early_stopping=early_stopping)
    for i, (stops, penalty) in enumerate(SETTINGS):
        tokens, scores = oracle.generated(
            model,
            num_beams=num_beams,
            eos_token_id=stops,
            length_penalty=penalty,
            early_stopping=early_stopping,
        )
        assert_same(jax.tree.map(lambda x: x[i], found), tokens, scores)
    assert len(set(found.lengths.flat)) > 4
    searches = len(oracle.PROMPTS) * len(SETTINGS)
    record_property("compared", f"beams {num_beams}, {early_stopping}: {searches} searches")


@pytest.mark.parametrize("stops", STOPS)
def test_one_beam_is_the_greedy_text(model, stops):
    tokens, _ = oracle.generated(model, num_beams=1, eos_token_id=stops)
    found = searched(model, 1, [(stops, 1.0)])
    assert_same(jax.tree.map(lambda x: x[0], found), tokens)


def test_processors_see_log_probs_that_are_not_normalized_again(model, record_property):
    def rules(logprobs, written):
        prompts = np.broadcast_to(oracle.padded()[0][:, None], (*written.shape[:-1], 5))
        texts = np.concatenate([prompts, written], axis=-1)
        x = js.no_repeat_ngram_logits(logprobs, texts, texts.shape[-1], 2)
        seen = jax.nn.one_hot(jnp.asarray(texts), oracle.VOCAB).any(-2)
        return js.repetition_penalized_logits(x, seen, 1.5)

    theirs = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "length_penalty": 0.5}
    tokens, scores = oracle.generated(
        model, num_beams=4, eos_token_id=STOPS[1], early_stopping="never", **theirs
    )
    found = searched(model, 4, [(STOPS[1], 0.5)], rules, early_stopping="never")
    assert_same(jax.tree.map(lambda x: x[0], found), tokens, scores)
    record_property("compared", f"beams, processors: {len(oracle.PROMPTS)} searches")
