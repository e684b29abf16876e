"""Beam search compared with that of Tunix, on the logits of one model.

Tunix compares sums of log-probs, like a length penalty of 0. In Tunix a finished text keeps the
place of a beam, in `beam_step` it does not, so the two may differ after the first text ends. The
loop of Tunix takes one step more than it stores: its best beam is the best including that token.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from adapter import PROMPTS

from jaxsample import beam_step, finalize_beams, init_beams

pytest.importorskip("tunix", reason="tunix is not installed: docs/guides/integrations.md")

from flax import nnx
from tunix.generate.sampler import Sampler
from tunix_sampler import CACHE, Numbers, tiny_llama

pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Some donated buffers:UserWarning"),
]

STEPS = 8
BOS = Numbers().bos_id()


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@nnx.jit
def logits_of(model, texts):
    """Returns the logits after each token of texts `[texts, length]`."""
    positions = jnp.broadcast_to(jnp.arange(texts.shape[1]), texts.shape)
    seen = jnp.tril(jnp.ones((texts.shape[1],) * 2, bool))
    return model(texts, positions, None, jnp.broadcast_to(seen, (len(texts), *seen.shape)))[0]


def searched(model, num_beams, stops):
    """Returns our best text of each prompt, of STEPS + 1 tokens if it does not end."""
    prompts = [[BOS, *prompt] for prompt in PROMPTS]
    state = init_beams(num_beams, STEPS + 1, (len(prompts),))
    texts = np.zeros((len(prompts), num_beams, 8 + STEPS), int)
    while not state.done.all():
        step = int(state.lengths.max())
        for text, prompt, written in zip(texts, prompts, np.asarray(state.tokens), strict=True):
            text[:, : len(prompt)] = prompt
            text[:, len(prompt) : len(prompt) + step] = written[:, :step]
        logits = logits_of(model, texts.reshape(-1, texts.shape[-1])).reshape(*texts.shape, -1)
        last = [len(prompt) + step - 1 for prompt in prompts]
        logits = logits[np.arange(len(prompts)), :, last]
        state, *_ = beam_step(state, logits, stop_token_ids=stops, length_penalty=0.0)
    found = finalize_beams(state)
    return [x[:n].tolist() for x, n in zip(found.tokens[:, 0], found.lengths[:, 0], strict=True)]


def searched_by_tunix(model, num_beams, stops):
    """Returns Tunix's text of each prompt, without the stop token."""
    texts = [" ".join(map(str, prompt)) for prompt in PROMPTS]
    sampler = Sampler(model, Numbers(), CACHE)
    output = sampler(texts, STEPS, max_prompt_length=8, eos_tokens=stops, beam_size=num_beams)
    return [tokens.tolist() for tokens in output.tokens]


@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize("stops", [[-1], [7, 19, 33, 50]], ids=["none end", "some end"])
def test_best_texts_match_tunix(model, num_beams, stops):
    texts = [text[:STEPS] for text in searched(model, num_beams, stops)]
    ended = [text[-1] in stops for text in texts]
    expected = searched_by_tunix(model, num_beams, stops)
    assert [x[:-1] if end else x for x, end in zip(texts, ended, strict=True)] == expected
    if num_beams > 1:
        assert any(ended) == (stops != [-1])
