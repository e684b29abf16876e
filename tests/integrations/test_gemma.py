"""The adapter of Gemma in Gemma's own loop."""

import contextlib
import dataclasses

import numpy as np
import pytest
from adapter import PROMPTS, REQUESTS, SEEDS, STEPS, STOP, Adapter, Client, params_of

pytest.importorskip("gemma", reason="gemma is not installed: docs/guides/integrations.md")

from gemma import gm
from gemma_sampler import SIZES, JaxSampler, Numbers, tiny_gemma

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


def texts_of(prompts):
    return [" ".join(map(str, prompt)) for prompt in prompts]


def outputs_of(found):
    """Returns the output of each row up to its stop token."""
    rows = np.asarray(found.tokens)[:, :STEPS].tolist()
    return [row[: row.index(STOP)] if STOP in row else row for row in rows]


class Gemma(Client):
    def __init__(self):
        model, weights = tiny_gemma()
        self.settings = {"model": model, "params": weights, "tokenizer": Numbers(), **SIZES}
        self.sampler = JaxSampler(**self.settings)

    def draw(self, params, seeds, prompts):
        options = {"max_new_tokens": STEPS, "return_state": True}
        return outputs_of(self.sampler.sample(texts_of(prompts), params, seeds, **options))

    def greedy(self, prompts):
        sampler = gm.text.Sampler(**self.settings)
        found = sampler.sample(texts_of(prompts), max_new_tokens=STEPS, return_state=True)
        return outputs_of(found)

    @contextlib.contextmanager
    def nan_embedding(self, token):
        before, embedder = self.sampler, self.settings["params"]["embedder"]
        changed = embedder["input_embedding"].at[token].set(np.nan)
        # The embedding also computes the logits: other rows get one NaN logit, which is masked.
        self.sampler = dataclasses.replace(
            before,
            params=before.params | {"embedder": embedder | {"input_embedding": changed}},
            forbidden_tokens=[token],
        )
        yield
        self.sampler = before


@pytest.fixture(scope="module")
def client():
    return Gemma()


class TestGemma(Adapter):
    def test_a_stream_has_the_tokens_of_the_text(self, client):
        params, options = params_of(REQUESTS), {"max_new_tokens": STEPS, "return_state": True}
        stream = client.sampler.sample(texts_of(PROMPTS), params, SEEDS, stream=True, **options)
        *_, last = stream
        assert outputs_of(last) == client.serve()
