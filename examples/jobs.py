"""Converts requests to jobs: arrays with the same shapes for all requests.

A rule that no request of a run uses stays None and is not compiled. Otherwise, requests that do not
use it have its neutral value.
"""

import json
import operator
import reprlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from batching import Job
from model import END
from request import NEUTRAL, Request
from tokenizers import Tokenizer

from jaxsample import SamplingParams, seed_words


def make_jobs(tokenizer: Tokenizer, requests: list[Request], context: int) -> list[Job]:
    """Returns the requests as arrays, all of the same shapes."""
    prompts = [tokenize(tokenizer, request, context) for request in requests]
    return [
        Job(
            prompt=padded(prompt, context),
            length=np.int32(len(prompt)),
            max_tokens=np.int32(request.max_tokens),
            seed=seed_words(request.seed),
            params=params,
        )
        for request, prompt, params in zip(
            requests, prompts, make_params(requests, tokenizer), strict=True
        )
    ]


def tokenize(tokenizer: Tokenizer, request: Request, context: int) -> list[int]:
    """Returns the tokens of a prompt, which must leave room for `max_tokens` more."""
    tokens = [END, *tokenizer.encode(request.prompt).ids]
    if len(tokens) + request.max_tokens > context:
        raise ValueError(
            f"max_tokens {request.max_tokens} and the {len(tokens)} tokens of prompt "
            f"{reprlib.repr(request.prompt)} must fit a context of {context} tokens"
        )
    return tokens


def padded(tokens: Any, context: int) -> np.ndarray:
    """Returns tokens padded to int32 [context]."""
    return np.pad(np.asarray(tokens, np.int32), (0, context - len(tokens)), constant_values=END)


def make_params(requests: Sequence[Request], tokenizer: Tokenizer) -> list[SamplingParams]:
    """Returns the params of each request.

    Raises:
      ValueError: A bias for a text that is not a token; the message names it.
    """
    batch = SamplingParams.from_requests([in_tokens(request, tokenizer) for request in requests])
    return [jax.tree.map(operator.itemgetter(row), batch) for row in range(len(requests))]


def in_tokens(request: Request, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the settings of a request, with texts converted to token ids."""
    return {name: getattr(request, name) for name in NEUTRAL} | {
        "stop_token_ids": [END],
        "logit_bias": token_bias(request, tokenizer),
        # A word followed by a space may end in a different token.
        "bad_words": [
            tokenizer.encode(w + end).ids for w in request.bad_words for end in ("", " ")
        ],
    }


def token_bias(request: Request, tokenizer: Tokenizer) -> dict[int, float]:
    """Returns the bias of each token id."""
    bias: dict[int, float] = {}
    for name, value in request.logit_bias.items():
        ids = [int(name)] if name.isdecimal() else tokenizer.encode(name).ids
        if len(ids) != 1 or ids[0] >= tokenizer.get_vocab_size():
            raise ValueError(
                f"logit_bias must name tokens, by id or text; {json.dumps(name)} is not one token"
            )
        bias[ids[0]] = bias.get(ids[0], 0.0) + value
    return bias
