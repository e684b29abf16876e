"""jaxsample in Levanter: an `InferenceEngine` with parameters and seeds for each request.

    python examples/integrations/levanter_sampler.py

generates texts with a small Llama with random weights.
"""

import dataclasses
from typing import NamedTuple

import equinox
import haliax
import jax
import jax.numpy as jnp
import numpy as np
from levanter.inference.engine import InferenceEngine, InferenceEngineConfig, Request
from levanter.inference.jit_scheduler import DecodeState, SeqDecodingParams
from levanter.layers.sampler import Sampler
from levanter.models.llama import LlamaConfig

from jaxsample import SamplerState, SamplingParams, request_keys, sample, seed_words


class Row(NamedTuple):
    """The texts of rows, in place of their keys, which Levanter passes on unchanged."""

    seeds: jax.Array
    tokens: jax.Array
    length: jax.Array


class JaxDecodeState(DecodeState):
    """Levanter's state, which passes the sampler a `Row` for each new token."""

    def prng_keys_for(self, slot_ids, pos_ids):
        """Returns the rows of slots whose last tokens have the given positions."""
        slots = slot_ids.array
        return Row(self.prng_keys[slots], self.tokens.array[slots], pos_ids.array + 1)

    def reset(self):
        """Returns a state without texts."""
        return JaxDecodeState(**vars(super().reset()))


class JaxSampler(Sampler):
    """Draws a token of a row with its own parameters.

    Levanter passes a temperature and a top-p for each row. The engine below uses them for the index
    of the row in `params` and the length of its prompt.
    """

    params: SamplingParams
    bad_token: int = equinox.field(static=True)

    def __init__(self, vocab, params, bad_token):
        super().__init__(vocab)
        self.params, self.bad_token = params, bad_token

    def __call__(self, logits, temperatures, *, top_ps, key):
        """Returns a token and its log-prob under the sampled distribution."""
        place, prompt_length = (x.array.astype(int) for x in (temperatures, top_ps))
        params = jax.tree.map(lambda x: x[place], self.params)
        vocab = logits.axis_size(self.Vocab)
        state = SamplerState.from_tokens(key.tokens, prompt_length, key.length, vocab)
        keys = request_keys(key.seeds, key.length)
        output = sample(keys, logits.array, params, state, bad_token=self.bad_token)
        return haliax.named(output.tokens, ()), haliax.named(output.logprobs, ())


class JaxEngine(InferenceEngine):
    """Draws the tokens of each request with its own parameters and seed.

    All rules of `SamplingParams` work, including penalties.
    """

    def __init__(self, *, decode_state, **options):
        super().__init__(decode_state=JaxDecodeState(**vars(decode_state)), **options)

    def generate(self, requests, params, seeds, bad_token, **options):
        """Returns texts and log-probs, as Levanter's engine does.

        Args:
          requests: as in Levanter; their temperature, top-p and key are replaced.
          params: of all requests, from `SamplingParams.from_requests`. New values do not recompile.
          seeds: integers in [0, 2**64), one per request. Each of n generations has a seed that
            Levanter derives from it.
          bad_token: the token of a request with bad logits or parameters. If it is a stop token of
            the request, the text ends.
          **options: those of Levanter.
        """
        self.sampler = JaxSampler(self.model.Vocab, params, bad_token)
        rows = [
            dataclasses.replace(
                request,
                decode_params=dataclasses.replace(
                    request.decode_params,
                    temperature=np.float32(place),
                    top_p=np.float32(len(request.prompt_tokens)),
                    key=words,
                ),
            )
            for place, (request, words) in enumerate(zip(requests, seed_words(seeds), strict=True))
        ]
        return super().generate(rows, **options)


def request(place, prompt, max_tokens, stop_token):
    """Returns a Levanter request for one text."""
    stop = haliax.named(jnp.array([[stop_token]]), ("stop_seq", "position"))
    params = dataclasses.replace(
        SeqDecodingParams.default(),
        max_num_tokens=jnp.array(len(prompt) + max_tokens),
        stop_tokens=stop,
    )
    return Request(prompt, place, params, n_generations=1)


def tiny_llama(vocab_size=64):
    """Returns a language model with random weights."""
    config = LlamaConfig(
        max_seq_len=64,
        hidden_dim=16,
        intermediate_dim=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        initializer_range=1.0,
        gradient_checkpointing=False,
    )
    return config.build(haliax.Axis("vocab", vocab_size), key=jax.random.key(0))


SIZES = InferenceEngineConfig(
    max_seq_len=32,
    page_size=8,
    max_seqs=4,
    max_pages=32,
    max_queued_tokens=64,
    compute_dtype=jnp.float32,
)


def main():
    requests = [
        {"temperature": 0, "seed": 1},
        {"temperature": 0.8, "top_p": 0.9, "seed": 2},
        {"top_k": 8, "repetition_penalty": 1.3, "seed": 3},
    ]
    rules = ("temperature", "top_k", "top_p", "repetition_penalty")
    params = SamplingParams.from_requests(requests, rules=rules)
    engine = JaxEngine.from_model_with_config(tiny_llama(), None, SIZES)
    prompts = [[5, 6, 7], [8, 9], [10]]
    asked = [request(place, prompt, 13, stop_token=1) for place, prompt in enumerate(prompts)]
    seeds = [request["seed"] for request in requests]
    print(*engine.generate(asked, params, seeds, bad_token=1).tokens, sep="\n")


if __name__ == "__main__":
    main()
