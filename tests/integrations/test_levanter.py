"""The adapter of Levanter in Levanter's own engine."""

import contextlib
import dataclasses
import warnings

import numpy as np
import pytest
from adapter import PROMPTS, SEEDS, STEPS, STOP, Adapter, Client, params_of

pytest.importorskip("levanter", reason="levanter is not installed: docs/guides/integrations.md")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import equinox
    from levanter.inference.engine import InferenceEngine
    from levanter_sampler import SIZES, JaxEngine, request, tiny_llama

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


def asked(prompts):
    return [request(place, prompt, STEPS, STOP) for place, prompt in enumerate(prompts)]


def outputs_of(found):
    """Returns the output of each row up to its stop token."""
    return [row[: row.index(STOP)] if STOP in row else row for row in found.tokens]


class Levanter(Client):
    def __init__(self):
        self.model = tiny_llama()
        self.engine = JaxEngine.from_model_with_config(self.model, None, SIZES)

    def draw(self, params, seeds, prompts):
        return outputs_of(self.engine.generate(asked(prompts), params, seeds, STOP))

    def greedy(self, prompts):
        engine = InferenceEngine.from_model_with_config(self.model, None, SIZES)
        return outputs_of(engine.generate(asked(prompts)))

    @contextlib.contextmanager
    def nan_embedding(self, token):
        def weight(model):
            return model.embeddings.token_embeddings.weight.array

        changed = weight(self.model).at[token].set(np.nan)
        self.engine.model = equinox.tree_at(weight, self.model, changed)
        yield
        self.engine.model = self.model


@pytest.fixture(scope="module")
def client():
    return Levanter()


class TestLevanter(Adapter):
    def test_generations_of_a_request_differ(self, client):
        params = params_of([{"top_k": 8}])
        one = dataclasses.replace(asked(PROMPTS)[0], n_generations=3)
        texts = client.engine.generate([one], params, SEEDS[:1], STOP).tokens
        assert len({*map(tuple, texts)}) == 3
        assert (
            texts[0]
            == client.engine.generate(asked(PROMPTS[:1]), params, SEEDS[:1], STOP).tokens[0]
        )
