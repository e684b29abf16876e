"""jaxsample in Gemma: a `gm.text.Sampler` with parameters and seeds for each row.

    python examples/integrations/gemma_sampler.py

generates texts with a small Gemma with random weights.
"""

import dataclasses
import enum
import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from gemma import gm
from gemma.gm.text import _sampler_loop

from jaxsample import (
    SamplerState,
    SamplingParams,
    init_state,
    request_keys,
    sample,
    seed_words,
    update_state,
)


@flax.struct.dataclass(kw_only=True)
class State(_sampler_loop.SamplingState):
    """Gemma's state with the requests of the rows and their texts."""

    params: SamplingParams
    seeds: jax.Array
    texts: SamplerState


class Draw(gm.text.SamplingMethod):
    """Draws the next tokens of the texts in a state."""

    def __init__(self, state, bad_token):
        self.state, self.bad_token = state, bad_token

    def get_next_tokens(self, logits, rng):
        """Returns the token of each row; Gemma's `rng` for the batch is not used."""
        state = self.state
        keys = request_keys(state.seeds, state.last_token_pos + 1)
        return sample(keys, logits, state.params, state.texts, bad_token=self.bad_token).tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class JaxSamplerLoop(_sampler_loop.SamplerLoop):
    """Gemma's loop. `requests` are not static: they become part of the state of the loop."""

    requests: Any = dataclasses.field(compare=False)

    def sample(self, *, init_state, **options):
        """Runs the loop."""
        return super().sample(init_state=State(**vars(init_state), **self.requests), **options)

    @functools.partial(jax.jit, static_argnames=("self",))
    def _sample_step(self, state, *, params):
        loop = dataclasses.replace(self, sampling=Draw(state, self.end_tokens[0]))
        step = _sampler_loop.SamplerLoop._sample_step.__wrapped__
        new = step(loop, state, params=params)
        texts = update_state(state.texts, new.last_token)
        return State(**vars(new), params=state.params, seeds=state.seeds, texts=texts)


class JaxSampler(gm.text.Sampler):
    """Draws the tokens of each row with its own parameters and seed.

    All rules of `SamplingParams` work, including penalties, but only for the prompt and output
    of this call, not for earlier turns. A row with bad logits or parameters gets the end token, so
    that its text ends.
    """

    def sample(self, prompt, sampling_params, seeds, **options):
        """Returns texts, as Gemma's sampler does.

        Args:
          prompt: as in Gemma, one for each row.
          sampling_params: for the batch, from `SamplingParams.from_requests`. New values do not
            recompile.
          seeds: integers in [0, 2**64), one per row.
          **options: those of Gemma except `sampling` and `rng`: `max_new_tokens`, `stream`, ...
        """
        tokens = self._tokenize_prompts(prompt, add_bos=options.get("last_state") is None)
        tokens = jnp.pad(tokens, [(0, 0), (0, self.cache_length - tokens.shape[1])])
        room = self.cache_length + self.max_out_length
        texts = init_state(tokens, jnp.sum(tokens != 0, 1), self.model.config.num_embed, room)
        requests = {"params": sampling_params, "seeds": seed_words(seeds), "texts": texts}
        return super().sample(prompt, sampling=requests, **options)

    def _initialize_sampler_loop(self, requests):
        loop = super()._initialize_sampler_loop(None)
        return JaxSamplerLoop(**vars(loop), requests=requests)


class Special(gm.text.SpecialTokens, enum.IntEnum):
    """The special tokens of `Numbers`; all tokens that end a text have the same id."""

    PAD = 0
    EOS = END_OF_TURN = BEGIN_OF_TOOL_RESPONSE = 1
    BOS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers(gm.text.Tokenizer):
    """A tokenizer of texts such as "5 6 7", which are lists of token ids."""

    path: str = ""
    special_tokens = Special

    def encode(self, text, *, add_bos=False, add_eos=False):
        return [Special.BOS] * add_bos + [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(str(id) for id in np.ravel(ids) if id)


def tiny_gemma(vocab_size=64):
    """Returns a language model and random weights."""
    config = gm.nn.config.TransformerConfig(
        num_embed=vocab_size,
        embed_dim=16,
        hidden_dim=32,
        num_heads=2,
        head_dim=8,
        num_kv_heads=1,
        final_logit_softcap=None,
        use_post_attn_norm=False,
        use_post_ffw_norm=False,
        attention_types=(gm.nn.config.AttentionType.GLOBAL,),
    )
    model = gm.nn.Transformer(config=config, dtype=jnp.float32)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]


SIZES = {"cache_length": 64, "max_out_length": 32, "pad_length": 8}


def main():
    requests = [
        {"temperature": 0, "seed": 1},
        {"temperature": 0.8, "top_p": 0.9, "seed": 2},
        {"top_k": 8, "repetition_penalty": 1.3, "seed": 3},
    ]
    rules = ("temperature", "top_k", "top_p", "repetition_penalty")
    params = SamplingParams.from_requests(requests, rules=rules)
    model, weights = tiny_gemma()
    sampler = JaxSampler(model=model, params=weights, tokenizer=Numbers(), **SIZES)
    seeds = [request["seed"] for request in requests]
    for text in sampler.sample(["5 6 7", "8 9", "10"], params, seeds, max_new_tokens=13):
        print(text)


if __name__ == "__main__":
    main()
