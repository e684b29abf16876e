"""jaxsample in KerasHub: a `keras_hub.samplers.Sampler` with parameters and seeds for each row.

    KERAS_BACKEND=jax python examples/integrations/keras_hub_sampler.py

generates texts with a small Llama with random weights.
"""

import jax
import keras
import keras_hub
import numpy as np

from jaxsample import SamplerState, SamplingParams, request_keys, sample, seed_words


class JaxSampler(keras_hub.samplers.Sampler):
    """Draws the tokens of each row with its own parameters and seed.

    All rules of `SamplingParams` work, including penalties. The values are variables of the
    sampler: `assign` sets them for new requests without recompilation.

    Args:
      params: for a batch, from `SamplingParams.from_requests`.
      seeds: integers in [0, 2**64), one per row.
      bad_token: the token of a row with bad logits or parameters. If it is a stop token, the text
        of the row ends.
    """

    def __init__(self, params, seeds, bad_token):
        super().__init__()
        self.bad_token = bad_token
        values, self._structure = jax.tree.flatten((params, seed_words(seeds)))
        self._values = [keras.Variable(x, dtype=str(x.dtype), trainable=False) for x in values]

    @property
    def variables(self):
        """The variables that `generate` passes to its compiled function."""
        return self._values

    def assign(self, params, seeds):
        """Sets the requests of the rows, with the same fields and shapes as the previous ones."""
        values, structure = jax.tree.flatten((params, seed_words(seeds)))
        if structure != self._structure:
            raise ValueError("params must have the fields of the params before")
        for variable, value in zip(self._values, values, strict=True):
            variable.assign(value)

    def __call__(self, next, prompt, cache, index, mask, **kwargs):
        """Runs the loop of KerasHub with a `next` that returns tokens instead of logits."""
        prompt_lengths = mask.astype("int32").sum(axis=-1)

        def next_tokens(tokens, cache, index):
            logits, hidden_states, cache = next(tokens, cache, index)
            params, seeds = jax.tree.unflatten(self._structure, [v.value for v in self._values])
            state = SamplerState.from_tokens(tokens, prompt_lengths, index, logits.shape[-1])
            keys = request_keys(seeds, index)
            output = sample(keys, logits, params, state, bad_token=self.bad_token)
            return output.tokens, hidden_states, cache

        return super().__call__(next_tokens, prompt, cache, index, mask, **kwargs)

    def compute_probabilities(self, tokens):
        """Returns the tokens, which are already drawn."""
        return tokens

    def get_next_token(self, tokens):
        """Returns the tokens."""
        return tokens


def tiny_llama(vocab_size=64):
    """Returns a language model with random weights."""
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=vocab_size,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=32,
    )
    for weight in backbone.token_embedding.weights:  # so that logits differ
        weight.assign(30 * weight)
    return keras_hub.models.LlamaCausalLM(backbone)


def main():
    requests = [
        {"temperature": 0, "seed": 1},
        {"temperature": 0.8, "top_p": 0.9, "seed": 2},
        {"top_k": 8, "repetition_penalty": 1.3, "seed": 3},
    ]
    rules = ("temperature", "top_k", "top_p", "repetition_penalty")
    params = SamplingParams.from_requests(requests, rules=rules)
    model = tiny_llama()
    model.compile(sampler=JaxSampler(params, [r["seed"] for r in requests], bad_token=1))

    prompts = np.pad([[5, 6, 7], [8, 9, 0], [10, 0, 0]], [(0, 0), (0, 13)])
    inputs = {"token_ids": prompts, "padding_mask": prompts > 0}
    output = model.generate(inputs, stop_token_ids=[1])
    for tokens, mask in zip(output["token_ids"], output["padding_mask"], strict=True):
        print(tokens[mask].tolist())


if __name__ == "__main__":
    main()
