"""The adapter of Tunix in Tunix's own loop."""

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest
from adapter import PROMPTS, REQUESTS, SEEDS, STEPS, STOP, Adapter, Client, params_of

pytest.importorskip("tunix", reason="tunix is not installed: docs/guides/integrations.md")

from flax import nnx
from tunix.generate.sampler import Sampler
from tunix.rl.common import compute_per_token_logps
from tunix_sampler import CACHE, JaxSampler, Numbers, tiny_llama

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

OPTIONS = {"max_prompt_length": 8, "eos_tokens": [STOP], "return_logprobs": True}


def texts_of(prompts):
    return [" ".join(map(str, prompt)) for prompt in prompts]


class Tunix(Client):
    def __init__(self):
        self.model = tiny_llama()
        self.sampler = JaxSampler(self.model, Numbers(), CACHE)

    def output(self, params, seeds, prompts):
        return self.sampler(texts_of(prompts), STEPS, params, seeds, **OPTIONS)

    def draw(self, params, seeds, prompts):
        return [tokens.tolist() for tokens in self.output(params, seeds, prompts).tokens]

    def greedy_output(self, prompts):
        return Sampler(self.model, Numbers(), CACHE)(texts_of(prompts), STEPS, **OPTIONS)

    def greedy(self, prompts):
        return [tokens.tolist() for tokens in self.greedy_output(prompts).tokens]

    @contextlib.contextmanager
    def nan_embedding(self, token):
        embedding = self.model.embedder.input_embedding
        before = embedding[...]
        embedding[...] = before.at[token].set(np.nan)
        self.sampler.transformer_state = nnx.variables(self.model, nnx.Param)
        yield
        embedding[...] = before
        self.sampler.transformer_state = nnx.variables(self.model, nnx.Param)


@pytest.fixture(scope="module")
def client():
    return Tunix()


class TestTunix(Adapter):
    def test_greedy_logprobs_match_the_client(self, client):
        drawn = client.output(params_of([{"temperature": 0}] * 4), SEEDS, PROMPTS)
        expected = client.greedy_output(PROMPTS)
        for got, want in zip(drawn.logprobs, expected.logprobs, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5)

    def test_logprobs_match_the_trainer(self, client):
        requests = [{"temperature": 0.7, "top_p": p} for p in (1.0, 0.9, 0.8, 0.5)]
        drawn = client.output(params_of(requests), SEEDS, PROMPTS)
        completions = [[*tokens, *[0] * (STEPS - len(tokens))] for tokens in drawn.tokens]
        expected = compute_per_token_logps(
            *client.sampler.model_def_and_state(),
            prompt_tokens=jnp.asarray(drawn.padded_prompt_tokens),
            completion_tokens=jnp.array(completions),
            pad_id=0,
            eos_id=STOP,
            temperature=0.7,
        )
        for got, want in zip(drawn.logprobs, expected, strict=True):
            np.testing.assert_allclose(got, want[: len(got)], atol=1e-5)

    def test_values_of_the_params_are_refused_as_arguments(self, client):
        with pytest.raises(ValueError, match="params and seeds replace temperature, top_p"):
            client.sampler(["5"], 4, params_of(REQUESTS[:1]), [3], temperature=1.0, top_p=0.9)
