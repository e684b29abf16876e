"""jaxsample in MaxText: a `MaxEngine` with parameters and seeds for each request.

    DECOUPLE_GCLOUD=TRUE python examples/integrations/maxtext_sampler.py

generates texts with a small Llama with random weights.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import maxtext
import numpy as np
from maxtext.configs import pyconfig
from maxtext.inference.maxengine.maxengine import MaxEngine, engine_api

from jaxsample import SamplingParams, init_state, request_keys, sample, seed_words, update_state


class JaxEngine(MaxEngine):
    """Draws the tokens of each slot with the parameters and the seed of its request.

    All rules of `SamplingParams` work, including penalties. The engine's own sampler, whose top-k
    and top-p are static, is set to "greedy". The state of the engine has the logits, from which the
    token of each row is drawn again.

    Args:
      config: as in MaxText.
      rules: those of `SamplingParams.from_requests`, the same for all requests.
      bad_token: the token of a row with bad logits or parameters. If it is a stop token, the text
        ends.
    """

    def __init__(self, config, rules, bad_token):
        super().__init__(config)
        self.rules, self.bad_token = rules, bad_token

    def prefill(self, *, padded_tokens, true_length, sampling_params, seed, **options):
        """Returns a prefix and the first token, with the params and the seed of one request."""
        prefix, result = super().prefill(
            padded_tokens=padded_tokens, true_length=true_length, algorithm="greedy", **options
        )
        rows = self._rows(padded_tokens[None], [true_length], sampling_params, [seed])
        return self._drawn(prefix, result, rows)

    def init_decode_state(self, *arguments, **options):
        """Returns a state with empty slots."""
        state = super().init_decode_state(*arguments, **options)
        slots = self.max_concurrent_decodes
        params = SamplingParams.from_requests([{}] * slots, rules=self.rules)
        empty = np.zeros((slots, 0), int), np.zeros(slots, int), params, [0] * slots
        return state | {"rows": self._rows(*empty)}

    def insert(self, prefix, decode_state, slot, request_id=None):
        """Returns the state with a prefix inserted in a slot."""
        (prefix, row), (state, rows) = map(_split, (prefix, decode_state))
        rows = _put(rows, row, slot)
        return super().insert(prefix, state, slot, request_id) | {"rows": rows}

    def generate(self, params, decode_state, **options):
        """Returns the next state and the tokens of all slots; `params` are the weights."""
        state, rows = _split(decode_state)
        state, result = super().generate(params, state, algorithm="greedy", **options)
        return self._drawn(state, result, rows)

    def _rows(self, prompts, lengths, params, seeds):
        """Returns the params, seeds and texts of rows."""
        room = self.config.max_target_length
        texts = init_state(prompts, np.array(lengths), self.config.vocab_size, room)
        return params, seed_words(seeds), texts

    def _drawn(self, state, result, rows):
        """Returns a state and a result with drawn tokens in place of those of the engine."""
        params, seeds, texts = rows
        drawn = self._draw(state["logits"], result.data, params, seeds, texts)
        tokens, logprobs, data, texts = drawn
        result = type(result)(**vars(result) | {"data": data, "log_prob": logprobs})
        changes = {"tokens": tokens, "token_logp": logprobs, "rows": (params, seeds, texts)}
        return state | changes, result

    @functools.partial(jax.jit, static_argnums=0, donate_argnames="texts")
    def _draw(self, logits, data, params, seeds, texts):
        keys = request_keys(seeds, texts.lengths)
        options = {"logprobs_mode": "raw_logprobs", "bad_token": self.bad_token}
        output = sample(keys, logits[:, 0], params, texts, **options)
        tokens, logprobs = output.tokens[:, None], output.logprobs[:, None]
        data = data.at[:, :1].set(tokens)
        return tokens, logprobs, data, update_state(texts, output.tokens)


def _split(state):
    """Returns MaxText's state and the rows."""
    return {name: x for name, x in state.items() if name != "rows"}, state["rows"]


@jax.jit
def _put(rows, row, slot):
    """Returns rows with the row of a slot replaced."""
    return jax.tree.map(lambda x, new: x.at[slot].set(new[0]), rows, row)


if getattr(engine_api, "_IS_STUB", False):  # without JetStream, the substitute is not a pytree
    names = ("data", "tokens_idx", "valid_idx", "length_idx", "log_prob", "samples_per_slot")
    jax.tree_util.register_pytree_node(
        engine_api.ResultTokens,
        lambda result: ([getattr(result, name) for name in names], None),
        lambda _, values: engine_api.ResultTokens(**dict(zip(names, values, strict=True))),
    )


def tiny_config(**changes):
    """Returns the config of a small Llama with 64 tokens and four slots, with changes."""
    settings = {
        "run_name": "tiny",
        "skip_jax_distributed_system": True,
        "enable_checkpointing": False,
        "dataset_type": "synthetic",
        "jax_cache_dir": "",
        "decoder_block": "llama2",
        "base_num_decoder_layers": 1,
        "base_emb_dim": 16,
        "base_mlp_dim": 32,
        "base_num_query_heads": 2,
        "base_num_kv_heads": 1,
        "head_dim": 8,
        "vocab_size": 64,
        "logits_via_embedding": False,
        "scan_layers": False,
        "attention": "dot_product",
        "dtype": "float32",
        "weight_dtype": "float32",
        "per_device_batch_size": 4,
        "max_prefill_predict_length": 8,
        "max_target_length": 32,
        "decode_sampling_strategy": "greedy",
        "return_log_prob": True,
    }
    settings |= changes
    base = Path(maxtext.__file__).parent / "configs/base.yml"
    return pyconfig.initialize(["", str(base), *(f"{k}={v}" for k, v in settings.items())])


def prefilled(engine, weights, prompt, **options):
    """Returns the prefix and the first token of a prompt."""
    tokens = np.zeros(engine.config.max_prefill_predict_length, int)
    tokens[: len(prompt)] = prompt
    sizes = {"padded_tokens": jnp.array(tokens), "true_length": len(prompt)}
    return engine.prefill(params=weights, **sizes, **options)


def decoded(engine, weights, prompts, steps, requests=()):
    """Returns the next tokens of prompts, `[prompts, steps]`, as `maxtext.inference.decode` does.

    Args:
      engine: that of MaxText, or a `JaxEngine` with `requests`.
      weights: from `engine.load_params`.
      prompts: lists of tokens.
      steps: the number of tokens per prompt.
      requests: `sampling_params` and `seed` of each prompt.
    """
    state = engine.init_decode_state()
    results = np.zeros((len(prompts), steps), int)
    for slot, prompt in enumerate(prompts):
        own = requests[slot] if requests else {}
        prefix, first = prefilled(engine, weights, prompt, **own)
        results[slot, 0] = first.data[0, 0]
        state = engine.insert(prefix, state, slot)
    for step in range(1, steps):
        state, result = engine.generate(weights, state)
        results[:, step] = result.data[: len(prompts), 0]
    return results.tolist()


def main():
    requests = [
        {"temperature": 0},
        {"temperature": 0.8, "top_p": 0.9},
        {"top_k": 8, "repetition_penalty": 1.3},
    ]
    rules = ("temperature", "top_k", "top_p", "repetition_penalty")
    engine = JaxEngine(tiny_config(), rules, bad_token=1)
    weights = engine.load_params(jax.random.key(0))
    prompts = [[5, 6, 7], [8, 9], [10]]
    params = [SamplingParams.from_requests([request], rules=rules) for request in requests]
    rows = [{"sampling_params": x, "seed": seed} for seed, x in enumerate(params)]
    print(*decoded(engine, weights, prompts, 13, rows), sep="\n")


if __name__ == "__main__":
    main()
