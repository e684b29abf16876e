"""The adapter of MaxText in a loop of MaxText's engine."""

import contextlib
import os
import warnings

import jax
import numpy as np
import pytest
from adapter import PROMPTS, RULES, STEPS, STOP, Adapter, Client, params_of

pytest.importorskip("maxtext", reason="maxtext is not installed: docs/guides/integrations.md")

os.environ.setdefault("DECOUPLE_GCLOUD", "TRUE")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from maxtext.inference.maxengine.maxengine import MaxEngine
    from maxtext_sampler import JaxEngine, decoded, prefilled, tiny_config

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


def outputs_of(rows):
    """Returns the output of each row up to its stop token; the loop continues after it."""
    return [row[: row.index(STOP)] if STOP in row else row for row in rows]


class MaxText(Client):
    def __init__(self):
        self.config = tiny_config()
        self.engine = JaxEngine(self.config, RULES, bad_token=STOP)
        self.weights = self.engine.load_params(jax.random.key(0))
        self.own = MaxEngine(self.config)
        self.own.load_params(jax.random.key(0))

    def draw(self, params, seeds, prompts):
        rows = [
            {"sampling_params": jax.tree.map(lambda x: x[[slot]], params), "seed": seed}
            for slot, seed in enumerate(seeds)
        ]
        return outputs_of(decoded(self.engine, self.weights, prompts, STEPS, rows))

    def greedy(self, prompts):
        return outputs_of(decoded(self.own, self.weights, prompts, STEPS))

    @contextlib.contextmanager
    def nan_embedding(self, token):
        embedding = self.weights["token_embedder"]["embedding"]
        before = embedding[...]
        embedding[...] = before.at[token].set(np.nan)
        yield
        embedding[...] = before


@pytest.fixture(scope="module")
def client():
    return MaxText()


class TestMaxText(Adapter):
    def test_greedy_logprobs_match_the_client(self, client):
        prompt, params = PROMPTS[0], params_of([{"temperature": 0}])
        own = {"sampling_params": params, "seed": 3}
        _, drawn = prefilled(client.engine, client.weights, prompt, **own)
        _, expected = prefilled(client.own, client.weights, prompt)
        np.testing.assert_allclose(drawn.log_prob, expected.log_prob, rtol=1e-5)
