"""Decodes JSON that matches a schema, with several tokens per step of the model.

    python examples/structured_speculative.py
    python examples/structured_speculative.py --drafts 6

The grammar also constrains the draft model: the host advances the grammar with each draft, so that
each position has the bitmask of the text before it, and then rolls it back to the accepted tokens.
The texts are those of plain decoding, token for token.
"""

import argparse
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from decode import MODEL, open_model, open_weights
from drafters import from_place, last_tokens
from jax import Array
from model import END, Cache, Config, Weights, extend, prefill
from speculative import DRAFT_MODEL
from structured import DEMO, Grammars, verdict
from tokenizers import Tokenizer

from jaxsample import (
    SamplerState,
    SamplingParams,
    SpeculativeOutput,
    init_state,
    request_keys,
    sample,
    seed_words,
    speculative_sample,
    update_state,
)

PARAMS = SamplingParams(temperature=0.8, top_p=0.95)
SEEDS = seed_words(np.arange(len(DEMO)))


class Written(NamedTuple):
    """Texts and the statistics of their drafts.

    Attributes:
      texts: the tokens of each row, without an end-of-text.
      ended: rows that ended with an end-of-text.
      drafted, accepted, steps: totals over all rows.
    """

    texts: list[list[int]]
    ended: np.ndarray
    drafted: int
    accepted: int
    steps: int


@jax.jit
def draft_token(
    weights: Weights, cache: Cache, state: SamplerState, bitmask: np.ndarray
) -> tuple[Array, Cache, SamplerState]:
    """Draws a token from the draft model with the keys of the target, and appends it."""
    logits, cache = extend(weights, cache, *last_tokens(state, 2))
    params = dataclasses.replace(PARAMS, bitmask=bitmask)
    keys = request_keys(SEEDS, state.lengths)
    tokens = sample(keys, logits[:, -1], params, state).tokens
    return tokens, cache, update_state(state, tokens)


@jax.jit
def verify(
    weights: Weights, cache: Cache, state: SamplerState, drafts: np.ndarray, bitmasks: np.ndarray
) -> tuple[SpeculativeOutput, Cache]:
    """Verifies drafts in one step of the target, each position with the bitmask of its text."""
    tokens = jnp.concatenate([last_tokens(state, 1)[0], jnp.maximum(drafts, 0)], axis=1)
    places = from_place(state.lengths, tokens.shape[1])
    logits, cache = extend(weights, cache, tokens, places - 1)
    params = dataclasses.replace(PARAMS, bitmask=bitmasks)
    return speculative_sample(
        request_keys(SEEDS[:, None], places), logits, drafts, params, state
    ), cache


def write(
    models: tuple[Weights, Weights],
    config: Config,
    tokenizer: Tokenizer,
    number: int,
    max_tokens: int,
) -> Written:
    """Writes a text for each prompt of the demonstration.

    Args:
      models: the target and the draft model.
      config: the config of the target.
      tokenizer: the tokenizer of both models.
      number: the number of drafts per step; 0 is plain decoding.
      max_tokens: the maximum number of tokens of each text.
    """
    prompts, schemas = zip(*DEMO, strict=True)
    grammars = Grammars(tokenizer.to_str(), config.vocab, schemas)
    ids = [[END, *tokenizer.encode(prompt).ids] for prompt in prompts]
    lengths = np.array([*map(len, ids)], np.int32)
    padded = np.stack([np.pad(row, (0, config.context - len(row))) for row in ids]).astype(np.int32)
    cache, draft_cache = (jax.vmap(prefill, (None, 0, 0))(w, padded, lengths)[1] for w in models)
    state = init_state(padded, lengths, config.vocab, config.context)
    texts: list[list[int]] = [[] for _ in ids]
    active, ended = np.full(len(ids), True), np.full(len(ids), False)
    drafted = accepted = steps = 0
    while active.any():
        going, ahead, walked = active.copy(), state, np.zeros(len(ids), int)
        drafts, bitmasks = [], [grammars.next_bitmask(going).copy()]
        for _ in range(number):
            token, draft_cache, ahead = draft_token(models[1], draft_cache, ahead, bitmasks[-1])
            tokens = np.asarray(token)
            drafts.append(np.where(going, tokens, -1))
            going &= (tokens != END) & (tokens >= 0)
            grammars.accept(tokens, going)
            walked += going
            bitmasks.append(grammars.next_bitmask(going).copy())
        given = np.stack(drafts, 1) if number else np.zeros((len(ids), 0), np.int32)
        out, cache = verify(models[0], cache, state, given, np.stack(bitmasks, 1))
        found, steps = np.array(out.tokens), steps + int(active.sum())
        drafted += int((given >= 0).sum())
        accepted += int(np.asarray(out.num_accepted)[active].sum())
        for row in np.flatnonzero(active):
            new = found[row][found[row] >= 0].tolist()[: max_tokens - len(texts[row])]
            ended[row] = END in new
            texts[row] += new[: new.index(END)] if ended[row] else new
            active[row] = new and not ended[row] and len(texts[row]) < max_tokens
            if active[row] and row in grammars.matchers:
                matcher = grammars.matchers[row]
                matcher.rollback(int(walked[row]) - (len(new) - 1))
                matcher.consume_token(new[-1])
        state = update_state(state, found, active)
    return Written(texts, ended, drafted, accepted, steps)


def main() -> None:
    """Writes the texts without and with drafts, compares them, and checks the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--drafts", type=int, default=4, help="drafts per step (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=200, help="tokens per text (%(default)s)")
    args = parser.parse_args()
    config, tokenizer, weights = open_model(MODEL)
    run = functools.partial(
        write,
        (weights, open_weights(DRAFT_MODEL)[1]),
        config,
        tokenizer,
        max_tokens=args.max_tokens,
    )
    plain, fast = run(0), run(args.drafts)
    for (prompt, schema), text, ended in zip(DEMO, fast.texts, fast.ended, strict=True):
        written = tokenizer.decode(text)
        print(f"{prompt}{written.rstrip()}")
        print(f"── {verdict(written, 'stop' if ended else 'length', schema)} ──\n")
    same = "equal to" if fast.texts == plain.texts else "different from"
    print(f"{fast.accepted / fast.drafted:.1%} of the drafts accepted,", end=" ")
    print(f"{sum(map(len, fast.texts)) / fast.steps:.2f} tokens per step of the model;", end=" ")
    print(f"the texts are {same} those of plain decoding")


if __name__ == "__main__":
    main()
