r"""Continues a batch of prompts, each with its own sampling settings, in one compiled loop.

    python examples/decode.py
    python examples/decode.py --prompt $'import os\n\n\ndef ' --temperature 0.7 --seed 3
    python examples/decode.py --requests requests.json

A request's text depends on the request alone: the same seed gives the same text whatever else is
in the batch. The key of each draw comes from the request's seed and the position in its text, and
`sample` treats each row by itself. The model must do so too, bit for bit, and a matrix product may
round differently with another number of rows: hence a loop always has `SLOTS` rows.
"""

import json
import reprlib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from model import END, Cache, Config, Weights, decode_step, load, prefill
from request import Request, make_parser, make_requests
from tokenizers import Tokenizer

from jaxsample import SamplingParams, sample

SLOTS = 8
REPEATS = 3


class Batch(NamedTuple):
    """The requests of a loop, one a slot; a slot without a request is asked for no token.

    Attributes:
      prompts: int32 [SLOTS, context], padded.
      lengths: int32 [SLOTS], the number of tokens in each prompt.
      max_tokens: int32 [SLOTS].
      keys: key [SLOTS].
      params: Arrays of [SLOTS], traced like all the others: no setting is ever compiled in.
    """

    prompts: Array
    lengths: Array
    max_tokens: Array
    keys: Array
    params: SamplingParams


class Texts(NamedTuple):
    """What was written.

    Attributes:
      tokens: int32 [SLOTS, context].
      logprobs: float32 [SLOTS, context], of each token under the distribution it was drawn from.
      counts: int32 [SLOTS], how many of the above are the text; it includes an end-of-text.
    """

    tokens: Array
    logprobs: Array
    counts: Array


def make_batch(requests: list[Request], prompts: list[list[int]], config: Config) -> Batch:
    """Puts up to SLOTS requests and their tokens in a batch."""
    padded = np.full((SLOTS, config.context), END, np.int32)
    lengths = np.ones(SLOTS, np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)

    def column(name: str, dtype: Any) -> Array:
        values = np.zeros(SLOTS, dtype)
        values[: len(requests)] = [getattr(request, name) for request in requests]
        return jnp.asarray(values)

    return Batch(
        prompts=jnp.asarray(padded),
        lengths=jnp.asarray(lengths),
        max_tokens=column("max_tokens", np.int32),
        keys=jax.vmap(jax.random.key)(column("seed", np.int32)),
        params=SamplingParams(
            temperature=column("temperature", np.float32),
            top_k=column("top_k", np.int32),
            top_p=column("top_p", np.float32),
            min_p=column("min_p", np.float32),
        ),
    )


@jax.jit
def read(weights: Weights, batch: Batch) -> tuple[Array, Cache]:
    """Reads the prompts: logits [SLOTS, vocab] of the token after each, and the cache.

    One prompt at a time and each padded to the whole context: one compilation serves them all, and
    none of them can touch another.
    """
    return lax.map(lambda prompt: prefill(weights, *prompt), (batch.prompts, batch.lengths))


@jax.jit
def write(
    weights: Weights, batch: Batch, logits: Array, cache: Cache, recorded: Texts | None = None
) -> Texts:
    """Writes tokens until every row has stopped: at an end-of-text or after its max_tokens.

    Args:
      weights: The model.
      batch: The requests.
      logits: float32 [SLOTS, vocab], of the first token to write.
      cache: The prompts.
      recorded: If given, the same loop runs without the sampler and writes these tokens again.

    Returns:
      The texts.
    """

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        t, active, logits, cache, texts = state
        positions = batch.lengths + t
        if recorded is None:
            keys = jax.vmap(jax.random.fold_in)(batch.keys, positions)
            tokens, logprobs, _ = sample(keys, logits, batch.params)
        else:
            tokens = recorded.tokens[:, t]
            logprobs = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
        texts = Texts(
            texts.tokens.at[:, t].set(tokens),
            texts.logprobs.at[:, t].set(logprobs),
            texts.counts + active.astype(jnp.int32),
        )
        # A token of -1 tells of logits that are not finite.
        active &= (tokens != END) & (tokens >= 0) & (t + 1 < batch.max_tokens)
        # A row that has stopped may run past the context, where a write to the cache is dropped.
        logits, cache = decode_step(weights, cache, tokens, positions)
        return t + 1, active, logits, cache, texts

    blank = jnp.zeros(batch.prompts.shape)
    texts = Texts(blank.astype(jnp.int32), blank, jnp.zeros(SLOTS, jnp.int32))
    state = 0, batch.max_tokens > 0, logits, cache, texts
    return lax.while_loop(lambda state: state[1].any(), step, state)[-1]


def run(weights: Weights, batch: Batch) -> tuple[Texts, np.ndarray]:
    """Decodes a batch; also returns the seconds [3] of reading, writing and writing again."""
    (logits, cache), reading = timed(read, weights, batch)
    texts, writing = timed(write, weights, batch, logits, cache)
    _, replaying = timed(write, weights, batch, logits, cache, texts)
    return texts, np.array([reading, writing, replaying])


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The finished result of a call and the seconds it took."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - began


def print_texts(tokenizer: Tokenizer, requests: list[Request], texts: Texts) -> None:
    """Prints each prompt and its continuation between two rules."""
    width = min(shutil.get_terminal_size().columns, 100)
    bold = "\033[1m{}\033[0m" if sys.stdout.isatty() else "{}"
    for request, tokens, logprobs, count in zip(requests, *map(np.asarray, texts), strict=False):
        reason = {END: "stop", -1: "error: the logits are not finite"}.get(
            tokens[count - 1], "length"
        )
        total = logprobs[:count].sum()
        print(f"── {request} ".ljust(width, "─"))
        text = tokenizer.decode(tokens[: count - (reason != "length")].tolist())
        print(bold.format(request.prompt) + text.rstrip())
        length = "1 token" if count == 1 else f"{count} tokens"
        footer = f"{reason}, {length}, log-prob {total:z.2f} ({total / count:z.2f} per token)"
        print(f" {footer} ──".rjust(width, "─"), end="\n\n")


def print_speed(tokens: int, first: np.ndarray, seconds: np.ndarray) -> None:
    """Prints the rates from the seconds [3] of `run`, at first and once compiled."""
    reading, writing, replaying = seconds
    compiling = (first - seconds).sum()
    print(f"{tokens} tokens in {writing:.2f} s: {tokens / writing:.0f} tokens/s", end=" ")
    print(f"(after {compiling:.1f} s to compile and {reading:.2f} s to read the prompts)")
    print(f"sampler: {1 - replaying / writing:.1%} of that time", end=" ")
    print(f"(the same loop takes {replaying:.2f} s to write recorded tokens without sampling)")


def tokenize(tokenizer: Tokenizer, request: Request, context: int) -> list[int]:
    """The tokens of a prompt, which must leave room for those to be written."""
    tokens = [END, *tokenizer.encode(request.prompt).ids]
    if len(tokens) + request.max_tokens > context:
        raise ValueError(
            f"max_tokens {request.max_tokens} and the {len(tokens)} tokens of prompt "
            f"{reprlib.repr(request.prompt)} must fit a context of {context} tokens"
        )
    return tokens


def main() -> None:
    """Decodes, prints the texts, then measures."""
    parser = make_parser(__doc__.partition("\n")[0])
    weights = Path(__file__).parent / "weights"
    parser.add_argument("--model", type=Path, default=weights, help="a folder made by train.py")
    args = parser.parse_args()
    try:
        requests = make_requests(vars(args))
        config = Config(**json.loads((args.model / "config.json").read_bytes())["sizes"])
        tokenizer = Tokenizer.from_buffer((args.model / "tokenizer.json").read_bytes())
        weights = load(args.model / "weights.npz", config)
        prompts = [tokenize(tokenizer, request, config.context) for request in requests]
    except (OSError, ValueError) as error:
        parser.error(str(error))

    loops = [slice(start, start + SLOTS) for start in range(0, len(requests), SLOTS)]
    batches = [make_batch(requests[loop], prompts[loop], config) for loop in loops]
    results = [run(weights, batch) for batch in batches]
    for loop, (texts, _) in zip(loops, results, strict=True):
        print_texts(tokenizer, requests[loop], texts)

    first = np.sum([seconds for _, seconds in results], axis=0)
    again = [np.sum([run(weights, b)[1] for b in batches], axis=0) for _ in range(REPEATS)]
    tokens = sum(int(texts.counts.sum()) for texts, _ in results)
    print_speed(tokens, first, np.median(again, axis=0))


if __name__ == "__main__":
    main()
