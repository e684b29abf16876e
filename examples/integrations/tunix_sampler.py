"""jaxsample in Tunix: a `tunix.generate.sampler.Sampler` with parameters and seeds for each row.

    python examples/integrations/tunix_sampler.py

generates texts with a small Llama with random weights.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from tunix.generate import sampler as tunix_sampler
from tunix.models.llama3 import model as llama3

from jaxsample import SamplerState, SamplingParams, request_keys, sample, seed_words

REPLACED = {"temperature", "top_p", "top_k", "beam_size", "seed", "forbidden_tokens"}


class JaxSampler(tunix_sampler.Sampler):
    """Draws the tokens of each row with its own parameters and seed.

    All rules of `SamplingParams` work, including penalties. A row with bad logits or parameters
    gets the first of `eos_tokens`, so its text ends.
    """

    def __call__(self, input_strings, max_generation_steps, params, seeds, **options):
        """Returns texts, as Tunix's sampler does.

        Args:
          input_strings: a prompt for each row.
          max_generation_steps: as in Tunix.
          params: for the batch, from `SamplingParams.from_requests`. New values do not recompile.
          seeds: integers in [0, 2**64), one per row.
          **options: those of Tunix: `max_prompt_length`, `eos_tokens`, `return_logprobs`, ...
            Log-probs are after temperature and penalties and before the cuts, as Tunix's are.
        """
        if given := REPLACED & options.keys():
            raise ValueError(f"params and seeds replace {', '.join(sorted(given))}")
        values = params, seed_words(seeds)  # in place of the key, which Tunix passes on
        return super().__call__(input_strings, max_generation_steps, seed=values, **options)

    def _sample(self, logits, eos, cache, sampler_state):
        """Draws a token of each row and appends it."""
        params, seeds = sampler_state.seed
        step, width = sampler_state.decoding_step, sampler_state.num_input_tokens
        lengths = sampler_state.positions[:, step] + 1
        prompt_lengths = sampler_state.positions[:, width - 1] + 1
        logits = logits[:, -1]
        state = SamplerState.from_tokens(
            sampler_state.token_buffer,
            prompt_lengths,
            lengths,
            logits.shape[-1],
            left_padding=width - prompt_lengths,
        )
        tokens, record = self._draw(request_keys(seeds, lengths), logits, params, state)
        tokens = jnp.where(tokens < 0, eos[0], tokens)
        changes = {
            "decoding_step": step + 1,
            "cache": cache,
            "token_buffer": sampler_state.token_buffer.at[:, step + 1].set(tokens),
            "done": sampler_state.done | jnp.isin(tokens, eos),
        }
        if (records := sampler_state.logprobs_buffer) is not None:
            changes["logprobs_buffer"] = jax.tree.map(
                lambda buffer, new: buffer.at[:, step + 1].set(new), records, record
            )
        return dataclasses.replace(sampler_state, **changes)

    def _draw(self, *arguments):
        """Returns the token of each row and the record that Tunix returns with it, the log-prob."""
        output = sample(*arguments, logprobs_mode="scaled_logprobs")
        return output.tokens, output.logprobs


class Numbers:
    """A tokenizer of texts such as "5 6 7", which are lists of token ids."""

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))

    def pad_id(self):
        return 0

    def eos_id(self):
        return 1

    def bos_id(self):
        return 2


def tiny_llama(vocab_size=64):
    """Returns a language model with random weights."""
    config = llama3.ModelConfig(
        num_layers=1,
        vocab_size=vocab_size,
        embed_dim=16,
        hidden_dim=32,
        num_heads=2,
        head_dim=8,
        num_kv_heads=1,
        rope_theta=10_000,
        norm_eps=1e-5,
    )
    return llama3.Llama3(config, rngs=nnx.Rngs(0))


CACHE = tunix_sampler.CacheConfig(cache_size=32, num_layers=1, num_kv_heads=1, head_dim=8)


def main():
    requests = [
        {"temperature": 0, "seed": 1},
        {"temperature": 0.8, "top_p": 0.9, "seed": 2},
        {"top_k": 8, "repetition_penalty": 1.3, "seed": 3},
    ]
    rules = ("temperature", "top_k", "top_p", "repetition_penalty")
    params = SamplingParams.from_requests(requests, rules=rules)
    sampler = JaxSampler(tiny_llama(), Numbers(), CACHE)
    seeds = [request["seed"] for request in requests]
    output = sampler(["5 6 7", "8 9", "10"], 13, params, seeds, echo=True)
    print(*output.text, sep="\n")


if __name__ == "__main__":
    main()
