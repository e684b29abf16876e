"""The adapter of KerasHub in KerasHub's own loop."""

import contextlib

import numpy as np
import pytest
from adapter import PROMPTS, REQUESTS, SEEDS, STEPS, STOP, Adapter, Client, params_of

from jaxsample import SamplingParams

pytest.importorskip("keras_hub", reason="keras-hub is not installed: docs/guides/integrations.md")

from keras_hub_sampler import JaxSampler, tiny_llama

pytestmark = pytest.mark.clients


def generate(model, prompts):
    """Returns the output of each row up to its stop token."""
    ids = np.array([prompt + [0] * (4 + STEPS - len(prompt)) for prompt in prompts])
    output = model.generate({"token_ids": ids, "padding_mask": ids > 0}, stop_token_ids=[STOP])
    texts = [
        tokens[mask].tolist()
        for tokens, mask in zip(output["token_ids"], output["padding_mask"], strict=True)
    ]
    assert [text[: len(prompt)] for text, prompt in zip(texts, prompts, strict=True)] == prompts
    outputs = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    return [output[:-1] if output[-1] == STOP else output for output in outputs]


class KerasHub(Client):
    def __init__(self):
        self.model = tiny_llama()
        self.model.compile(sampler=JaxSampler(params_of(REQUESTS), SEEDS, bad_token=STOP))

    def draw(self, params, seeds, prompts):
        self.model.sampler.assign(params, seeds)
        return generate(self.model, prompts)

    def greedy(self, prompts):
        model = tiny_llama()
        model.compile(sampler="greedy")
        return generate(model, prompts)

    @contextlib.contextmanager
    def nan_embedding(self, token):
        embeddings = self.model.backbone.token_embedding.embeddings
        before = np.asarray(embeddings)
        changed = before.copy()
        changed[token] = np.nan
        embeddings.assign(changed)
        yield
        embeddings.assign(before)


@pytest.fixture(scope="module")
def client():
    return KerasHub()


class TestKerasHub(Adapter):
    def test_other_fields_or_shapes_are_refused(self, client):
        sampler = client.model.sampler
        with pytest.raises(ValueError, match="params must have the fields"):
            sampler.assign(SamplingParams.from_requests([{}] * 4, rules=("top_k",)), SEEDS)
        with pytest.raises(ValueError, match="shape"):
            sampler.assign(params_of(REQUESTS[:1]), SEEDS[:1])
        client.serve(prompts=PROMPTS)
