"""The tests of every adapter, and the requests that they serve."""

import jax
import numpy as np
import pytest

from jaxsample import SamplingParams

STOP, VOCAB, STEPS = 1, 64, 20
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


class Client:
    """A model of 64 tokens in the loop of a client; token 0 is padding and token 1 stops."""

    def draw(self, params, seeds, prompts):
        """Returns the output of each row by the adapter, without the prompt, up to STOP."""
        raise NotImplementedError

    def greedy(self, prompts):
        """Returns the outputs of the client's own greedy sampler."""
        raise NotImplementedError

    def nan_embedding(self, token):
        """Returns a context in which the embedding of a token is NaN."""
        raise NotImplementedError

    def serve(self, requests=REQUESTS, seeds=SEEDS, prompts=PROMPTS):
        return self.draw(params_of(requests), seeds, prompts)


class Adapter:
    """Tests of an adapter, for a module with the fixture `client`."""

    def test_greedy_text_matches_the_client(self, client):
        expected = client.greedy(PROMPTS)
        assert client.serve([{"temperature": 0}] * 4) == expected
        mixed = client.serve()
        assert mixed[0] == expected[0]
        assert mixed[2] != expected[2]  # this row has a penalty

    def test_outputs_are_tokens_of_the_vocabulary(self, client):
        for output in client.serve():
            assert output
            assert all(0 <= token < VOCAB for token in output)

    def test_a_presence_penalty_sees_the_output(self, client):
        output = client.serve()[2]
        assert len(output) > 10
        assert len({*output}) == len(output)

    def test_the_same_request_gives_the_same_text_in_another_slot(self, client):
        order = [2, 0, 3, 1]
        moved = client.serve(*([x[i] for i in order] for x in (REQUESTS, SEEDS, PROMPTS)))
        assert moved == [client.serve()[i] for i in order]

    def test_new_values_are_used_and_compile_nothing(self, client, compilations):
        old = client.serve()
        with compilations() as compiled:
            other_seeds = client.serve(seeds=[6, 7, 8, 9])
            colder = client.serve([{**request, "temperature": 0.01} for request in REQUESTS])
        assert not compiled
        assert [x == y for x, y in zip(other_seeds, old, strict=True)] == [True, False, True, False]
        assert colder[3] != old[3]

    def test_compilations_are_counted(self, compilations):
        with compilations() as compiled:
            jax.jit(lambda x: x + 3)(np.arange(3))
        assert compiled

    def test_a_row_of_nan_ends_and_harms_no_other(self, client):
        expected = client.serve()
        unused = min({*range(20, VOCAB)}.difference(*expected))
        with client.nan_embedding(unused):
            outputs = client.serve(prompts=[PROMPTS[0], [8, unused], *PROMPTS[2:]])
        assert outputs == [expected[0], [], *expected[2:]]

    @pytest.mark.parametrize("temperature", [np.nan, -1])
    def test_a_row_of_a_bad_parameter_ends_and_harms_no_other(self, client, temperature):
        params = params_of(REQUESTS)
        params.temperature[3] = temperature
        assert client.draw(params, SEEDS, PROMPTS) == [*client.serve()[:3], []]
