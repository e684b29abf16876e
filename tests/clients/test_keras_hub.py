"""The adapter of KerasHub in KerasHub's own loop."""

import jax
import numpy as np
import pytest

from jaxsample import SamplingParams

pytest.importorskip("keras_hub", reason="keras-hub is not installed: see the integrations guide")

from keras_hub_sampler import JaxSampler, tiny_llama

pytestmark = pytest.mark.clients

STOP, NAN, VOCAB, LENGTH = 1, 63, 64, 24
RULES = ("temperature", "top_k", "top_p", "presence_penalty")
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
REQUESTS = [
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 0, "presence_penalty": 1e6},
    {"top_k": 8, "temperature": 1.5},
]
SEEDS = [3, 2**40 + 5, 4, 5]


def params_of(requests):
    return SamplingParams.from_requests(requests, rules=RULES)


@pytest.fixture(scope="module")
def model():
    model = tiny_llama()
    model.compile(sampler=JaxSampler(params_of(REQUESTS), SEEDS, bad_token=STOP))
    return model


def generate(model, prompts=PROMPTS):
    """Returns the text of each row up to its stop token, with its prompt."""
    ids = np.array([[*prompt, *[0] * (LENGTH - len(prompt))] for prompt in prompts])
    output = model.generate({"token_ids": ids, "padding_mask": ids > 0}, stop_token_ids=[STOP])
    return [
        tokens[mask].tolist()
        for tokens, mask in zip(output["token_ids"], output["padding_mask"], strict=True)
    ]


def serve(model, requests=REQUESTS, seeds=SEEDS, prompts=PROMPTS):
    model.sampler.assign(params_of(requests), seeds)
    return generate(model, prompts)


def test_greedy_text_is_that_of_the_greedy_sampler_of_keras_hub(model):
    greedy = tiny_llama()
    greedy.compile(sampler="greedy")
    expected = generate(greedy)
    assert serve(model, [{"temperature": 0}] * 4) == expected
    assert serve(model)[0] == expected[0]  # in a batch of other requests, too
    assert serve(model)[2] != expected[2]  # the penalty counts


def test_texts_continue_their_prompts_with_tokens_of_the_vocabulary(model):
    texts = serve(model)
    for text, prompt in zip(texts, PROMPTS, strict=True):
        assert text[: len(prompt)] == prompt
        assert len(text) > len(prompt)
        assert all(0 <= token < VOCAB for token in text)


def test_a_presence_penalty_sees_the_output_of_the_loop(model):
    output = serve(model)[2][len(PROMPTS[2]) :]
    assert len(output) > 10
    assert len({*output}) == len(output)


def test_the_same_request_gives_the_same_text_in_another_slot(model):
    order = [2, 0, 3, 1]
    moved = serve(model, *([x[i] for i in order] for x in (REQUESTS, SEEDS, PROMPTS)))
    assert moved == [serve(model)[i] for i in order]


def test_new_values_compile_nothing_and_are_used(model, compilations):
    old = serve(model)
    with compilations() as compiled:
        seeds = serve(model, seeds=[6, 7, 8, 9])
        cold = serve(model, [{**request, "temperature": 0.01} for request in REQUESTS])
    assert not compiled
    assert seeds[0] == old[0]
    assert seeds[1] != old[1]
    assert seeds[3] != old[3]
    assert cold[3] != old[3]


def test_the_listener_counts_compilations(compilations):
    with compilations() as compiled:
        jax.jit(lambda x: x + 3)(np.arange(3))
    assert compiled


def test_a_bad_row_ends_with_the_bad_token_and_harms_no_other(model):
    expected = serve(model)
    assert not any(NAN in text for text in expected)
    embeddings = model.backbone.token_embedding.embeddings
    before = np.asarray(embeddings)
    embeddings.assign(np.where(np.arange(VOCAB)[:, None] == NAN, np.nan, before))
    try:
        texts = serve(model, prompts=[PROMPTS[0], [8, NAN], *PROMPTS[2:]])
    finally:
        embeddings.assign(before)
    assert texts == [expected[0], [8, NAN, STOP], *expected[2:]]


def test_a_bad_parameter_makes_a_bad_row(model):
    expected = serve(model)
    params = params_of(REQUESTS)
    params.temperature[3] = np.nan
    model.sampler.assign(params, SEEDS)
    assert generate(model) == [*expected[:3], [*PROMPTS[3], STOP]]


def test_other_fields_or_shapes_are_refused(model):
    with pytest.raises(ValueError, match="params must have the fields"):
        model.sampler.assign(SamplingParams.from_requests([{}] * 4, rules=("top_k",)), SEEDS)
    with pytest.raises(ValueError, match="shape"):
        model.sampler.assign(params_of([{}]), [3])
