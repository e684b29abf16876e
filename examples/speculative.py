"""Compares kinds of drafts in speculative decoding of the example model.

    python examples/speculative.py
    python examples/speculative.py --drafts 6

Drafts are verified by equality (`speculative_sample`), which gives the text of plain decoding, or
by rejection (`rejection_sample`), which gives another text with the same distribution. Drafts are

- lookup: the tokens that followed the previous occurrence of the last two tokens,
- coupled: draws of a draft model with the keys of the target,
- tree: these draws, each with the token that came closest to being drawn,
- argmax: the likeliest tokens of the draft model,
- chain, block: draws of the draft model with its own keys, for rejection.

The draft model was trained by `train.py`, like the target, and has a quarter of its weights. Both
are so small that drafts save little time: compare the tokens per step, not the seconds.
"""

import argparse
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from decode import MODEL, open_model, open_weights
from drafters import SIBLINGS, Drafts, draft, from_place, last_tokens, look_at, look_up
from jax import Array
from model import END, Cache, Config, Weights, extend, kept, prefill
from tokenizers import Tokenizer

from jaxsample import (
    SamplerState,
    SamplingParams,
    SpeculativeOutput,
    init_state,
    rejection_sample,
    request_keys,
    seed_words,
    speculative_sample,
    update_state,
)

DRAFT_MODEL = MODEL / "draft"
PROMPTS = (
    "import os\n\n\ndef ",
    "class Stack:\n",
    "def main(",
    "for line in ",
    "import sys\n\n\nclass Error(",
    "def parse(self, ",
    "try:\n    import ",
    "def test_open(self):\n",
)
PARAMS = SamplingParams(
    temperature=np.float32([0, 0, 0.5, 0.5, 0.8, 0.8, 1, 1]),
    top_p=np.float32([1, 1, 1, 0.9, 0.95, 0.95, 0.95, 1]),
    frequency_penalty=np.float32([0, 0.2, 0, 0.2, 0, 0.2, 0, 0.2]),
)
EQUAL = ("lookup", "coupled", "tree", "argmax")
REJECTING = ("chain", "block")
DRAFTER_SEED = 2**40
"""Added to the seeds of the requests, so that drafts share no noise with the target."""


class Texts(NamedTuple):
    """The rows of a batch.

    Attributes:
      state: the texts. The caches need not include their last token.
      cache, draft_cache: those of the target and of the draft model.
      active: bool [rows], texts that have not ended.
      drafted: int32 [rows], the number of drafts that could have been accepted.
      accepted, steps: int32 [rows], the number of accepted drafts and of steps.
    """

    state: SamplerState
    cache: Cache
    draft_cache: Cache
    active: Array
    drafted: Array
    accepted: Array
    steps: Array


def start(weights: Weights, drafter: Weights, config: Config, tokenizer: Tokenizer) -> Texts:
    """Reads the prompts."""
    ids = [[END, *tokenizer.encode(prompt).ids] for prompt in PROMPTS]
    lengths = np.array([*map(len, ids)], np.int32)
    prompts = np.zeros((len(ids), config.context), np.int32)
    for row, tokens in zip(prompts, ids, strict=True):
        row[: len(tokens)] = tokens
    caches = [jax.vmap(prefill, (None, 0, 0))(w, prompts, lengths)[1] for w in (weights, drafter)]
    state = init_state(prompts, lengths, config.vocab, config.context)
    zero = jnp.zeros_like(lengths)
    return Texts(state, *caches, jnp.full(lengths.shape, True), zero, zero, zero)


def seeds_of() -> list[np.ndarray]:
    """Returns the seeds of the requests, for the target and for draws of the draft model."""
    return [seed_words(np.arange(len(PROMPTS)) + more) for more in (0, DRAFTER_SEED)]


def verify(
    weights: Weights, texts: Texts, drafts: Drafts, seeds: Array, number: int, method: str
) -> tuple[SpeculativeOutput, Cache]:
    """Verifies drafts in one step of the target, on the last token and the drafts."""
    state, parents, start = texts.state, drafts.parents, texts.state.lengths - 1
    last, _ = last_tokens(state, 1)
    tokens = jnp.concatenate([last, jnp.maximum(drafts.tokens, 0)], axis=1)
    depths, tree = (np.arange(number + 1), None) if parents is None else look_at(parents)
    places = start[:, None] + depths.astype(np.int32)[None]
    logits, cache = extend(weights, texts.cache, tokens, places, tree)
    if method in REJECTING:
        keys = request_keys(seeds, state.lengths)  # one per step
        args = (keys, logits, drafts.tokens, drafts.logits, PARAMS, state)
        return rejection_sample(*args, method=method), cache
    keys = request_keys(seeds[:, None], from_place(state.lengths, number + 1))  # one per position
    out = speculative_sample(keys, logits, drafts.tokens, PARAMS, state, parents=parents)
    return out, cache if parents is None else kept(cache, start, out.nodes)


@functools.partial(jax.jit, static_argnames=("number", "method"))
def step(
    weights: Weights,
    drafter: Weights,
    texts: Texts,
    ends: Array,
    seeds: Array,
    drafter_seeds: Array,
    *,
    number: int,
    method: str,
) -> Texts:
    """Drafts, verifies, and appends accepted tokens up to an end-of-text or the length."""
    state = texts.state
    if method == "lookup" or not number:
        drafts = Drafts(look_up(state, number), texts.draft_cache)
    else:
        own = method in REJECTING
        drafts = draft(
            drafter,
            texts.draft_cache,
            state,
            PARAMS,
            drafter_seeds if own else seeds,
            number,
            "own" if own else method,
        )
    out, cache = verify(weights, texts, drafts, seeds, number, method)
    ends_here = (out.tokens == END).astype(jnp.int32)
    ended = jnp.cumsum(ends_here, axis=1) > ends_here
    places = from_place(state.lengths, number + 1)
    new = jnp.where(ended | (places >= ends[:, None]), -1, out.tokens)
    after = update_state(state, new, texts.active)
    some = texts.active.astype(jnp.int32)
    stopped = jnp.any(new == END, axis=1) | (after.lengths >= ends) | (out.tokens[:, 0] < 0)
    most = drafts.tokens if drafts.parents is None else drafts.tokens[:, ::SIBLINGS]
    return Texts(
        state=after,
        cache=cache,
        draft_cache=drafts.cache,
        active=texts.active & ~stopped,
        drafted=texts.drafted + some * jnp.sum(most >= 0, axis=1, dtype=jnp.int32),
        accepted=texts.accepted + some * out.num_accepted,
        steps=texts.steps + some,
    )


def write(run: Any, texts: Texts) -> tuple[Texts, float]:
    """Returns the finished texts and the seconds it took."""
    began = time.perf_counter()
    while texts.active.any():
        texts = run(texts)
    return texts, time.perf_counter() - began


def main() -> None:
    """Writes the texts without drafts and with each kind of draft, and compares them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=100, help="tokens per text (%(default)s)")
    parser.add_argument("--drafts", type=int, default=4, help="drafts per step (%(default)s)")
    args = parser.parse_args()
    config, tokenizer, weights = open_model(MODEL)
    drafter = open_weights(DRAFT_MODEL)[1]
    first = start(weights, drafter, config, tokenizer)
    seeds = seeds_of()
    ends = jnp.minimum(first.state.lengths + args.tokens, config.context - SIBLINGS * args.drafts)

    def texts_by(method: str, number: int) -> tuple[Texts, float]:
        options = {"number": number, "method": method}
        run = functools.partial(step, weights, drafter, ends=ends, seeds=seeds[0], **options)
        run = functools.partial(run, drafter_seeds=seeds[1])
        write(run, first)  # compiles
        return write(run, first)

    plain, seconds = texts_by("lookup", 0)
    written = plain.state.lengths - first.state.lengths
    print(f"{written.sum()} tokens of {len(PROMPTS)} texts; plain decoding takes {seconds:.2f} s")
    print(f"{'drafts':<8} {'accepted':>9} {'tokens per step':>15} {'seconds':>8}  text")
    for method in (*EQUAL, *REJECTING):
        texts, seconds = texts_by(method, args.drafts)
        share = texts.accepted.sum() / texts.drafted.sum()
        rate = (texts.state.lengths - first.state.lengths).sum() / texts.steps.sum()
        same = bool(jnp.all(texts.state.tokens == plain.state.tokens))
        verdict = "equal to plain decoding" if same else "different"
        print(f"{method:<8} {share:>9.1%} {rate:>15.2f} {seconds:>8.2f}  {verdict}")


if __name__ == "__main__":
    main()
