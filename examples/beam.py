"""Generates four texts per prompt by beam search, diverse beams, stochastic beams and sampling.

    python examples/beam.py
    python examples/beam.py --beams 8 --length 60

Each method is one compiled loop. The KV cache has a row for each beam, and `take_beams` reorders it
by the parents of the beams.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from decode import MODEL, open_model
from jax import Array
from model import END, Cache, Config, Weights, decode_step, forward, prefill
from tokenizers import Tokenizer
from tqdm import tqdm

from jaxsample import (
    beam_step,
    finalize_beams,
    init_beams,
    init_stochastic_beams,
    stochastic_beam_step,
    take_beams,
    token_logprobs,
)

PROMPTS = (
    "import os\n\n\ndef ",
    "class Stack:\n    def __init__(self",
    "for line in ",
    "try:\n    import ",
    "def test_open(self):\n",
    "if __name__ == ",
)
METHODS = ("beams", "diverse beams", "stochastic beams", "sampling")
DIVERSITY = 1.0


class Texts(NamedTuple):
    """The texts of a method.

    Attributes:
      tokens: int32 `[prompts, beams, length]`, valid up to `lengths`.
      lengths: int32 `[prompts, beams]`, including the end-of-text.
    """

    tokens: Array
    lengths: Array


def encoded(tokenizer: Tokenizer, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Returns the prompts, int32 `[prompts, context]`, and their lengths."""
    ids = [[END, *tokenizer.encode(prompt).ids] for prompt in PROMPTS]
    prompts = np.zeros((len(ids), config.context), np.int32)
    for row, tokens in zip(prompts, ids, strict=True):
        row[: len(tokens)] = tokens
    return prompts, np.array([*map(len, ids)], np.int32)


@functools.partial(jax.jit, static_argnames=("method", "beams", "length"))
def search(
    weights: Weights, prompts: Array, lengths: Array, *, method: str, beams: int, length: int
) -> Texts:
    """Returns `beams` continuations of each prompt."""
    key, batch = jax.random.key(0), (len(prompts),)

    def draw(state: Any, logits: Array, position: Array) -> Any:
        now = jax.random.fold_in(key, position)
        return stochastic_beam_step(now, state, logits, stop_token_ids=[END])

    def extend(state: Any, logits: Array, position: Array) -> Any:
        return beam_step(state, logits, stop_token_ids=[END], diversity_penalty=DIVERSITY)

    if method == "stochastic beams":
        state = loop(weights, prompts, lengths, init_stochastic_beams(beams, length, batch), draw)
        return Texts(state.tokens, state.lengths)
    if method == "sampling":  # a stochastic search with one beam is a plain draw
        start = init_stochastic_beams(1, length, (*batch, beams))
        state = loop(weights, prompts, lengths, start, draw)
        return Texts(state.tokens[:, :, 0], state.lengths[:, :, 0])
    groups = beams if method == "diverse beams" else 1
    start = init_beams(beams, length, batch, num_groups=groups)
    found = finalize_beams(loop(weights, prompts, lengths, start, extend), num_return=beams)
    return Texts(found.tokens, found.lengths)


def loop(
    weights: Weights, prompts: Array, lengths: Array, start: Any, step: Callable[..., Any]
) -> Any:
    """Returns the final state of a search.

    Args:
      weights: the model.
      prompts: int32 `[prompts, context]`.
      lengths: int32 `[prompts]`.
      start: the state before the first token; its beams `[prompts, *]` are the rows of the cache.
      step: advances a state with logits `[prompts, *, vocab]` at a position of the output.
    """
    rows = start.tokens.shape[:-1]

    def for_beams(x: Array) -> Array:
        x = x.reshape(x.shape[0], *(1 for _ in rows[1:]), *x.shape[1:])
        return jnp.broadcast_to(x, (*rows, *x.shape[len(rows) :]))

    def flat(x: Array) -> Array:
        return x.reshape(-1, *x.shape[len(rows) :])

    def body(carry: tuple[Any, Array, Cache, Array]) -> tuple[Any, Array, Cache, Array]:
        state, logits, cache, position = carry
        state, tokens, parents = step(state, logits, position)
        cache = jax.tree.map(flat, take_beams(cache, parents))
        places = flat(for_beams(lengths)) + position
        logits, cache = decode_step(weights, cache, jnp.maximum(flat(tokens), 0), places)
        logits, cache = jax.tree.map(lambda x: x.reshape(*rows, *x.shape[1:]), (logits, cache))
        return state, logits, cache, position + 1

    logits, cache = jax.tree.map(
        for_beams, jax.vmap(prefill, (None, 0, 0))(weights, prompts, lengths)
    )
    carry = start, logits, cache, jnp.int32(0)
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[0].done), body, carry)[0]


@jax.jit
def logprobs_of(weights: Weights, prompts: Array, lengths: Array, texts: Texts) -> Array:
    """Returns the log-probabilities of texts, `[prompts, beams]`, recomputed by the model."""

    def of_text(prompt: Array, start: Array, tokens: Array, length: Array) -> Array:
        place = jnp.arange(len(tokens))
        whole = prompt.at[start + place].set(jnp.maximum(tokens, 0), mode="drop")
        logits = forward(weights, whole[None])[0, start - 1 + place]
        each = token_logprobs(logits, jnp.maximum(tokens, 0))
        return jnp.sum(jnp.where(place < length, each, 0))

    of_prompt = jax.vmap(of_text, (None, None, 0, 0))
    return jax.vmap(of_prompt)(prompts, lengths, *texts)


def distinct(texts: Texts, n: int) -> float:
    """Returns the mean share of distinct n-grams among the texts of a prompt."""
    shares = []
    for tokens, lengths in zip(np.asarray(texts.tokens), np.asarray(texts.lengths), strict=True):
        rows = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
        grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
        if grams:
            shares.append(len(set(grams)) / len(grams))
    return float(np.mean(shares))


def main() -> None:
    """Runs each method, and prints one of its texts and a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--beams", type=int, default=4, help="beams per prompt (%(default)s)")
    parser.add_argument("--length", type=int, default=40, help="tokens per text (%(default)s)")
    args = parser.parse_args()
    config, tokenizer, weights = open_model(MODEL)
    prompts, lengths = encoded(tokenizer, config)
    room = config.context - int(lengths.max())
    if args.beams < 1 or not 1 <= args.length <= room:
        parser.error(f"--beams must be at least 1 and --length in [1, {room}]")

    table = []
    for method in tqdm(METHODS, leave=False):
        texts = search(
            weights, prompts, lengths, method=method, beams=args.beams, length=args.length
        )
        scores = np.asarray(logprobs_of(weights, prompts, lengths, texts)) / texts.lengths
        tqdm.write(f"── {method} ".ljust(60, "─"))
        best = int(scores[0].argmax())
        tqdm.write(PROMPTS[0] + tokenizer.decode(texts.tokens[0, best, : texts.lengths[0, best]]))
        table.append((method, scores.max(1).mean(), scores.mean(), texts))

    print("\nLog-prob per token of each prompt's best text and of all, and distinct n-grams:")
    print(f"\n{'':18}{'best':>8}{'all':>8}{'1-grams':>9}{'2-grams':>9}")
    for method, best, mean, texts in table:
        grams = f"{distinct(texts, 1):9.0%}{distinct(texts, 2):9.0%}"
        print(f"{method:18}{best:8.2f}{mean:8.2f}{grams}")


if __name__ == "__main__":
    main()
