"""Decodes JSON that matches a schema, with a grammar engine that computes the allowed tokens.

    python examples/structured.py
    python examples/structured.py --temperature 1.5 --seed 3
    python examples/structured.py --schema schema.json

Before each token, llguidance computes a packed bitmask of the tokens that each grammar allows, and
`sample` applies it. Each row of a batch has its own grammar or none. A schema should bound the
length of strings: without a maxLength, a model may never close a string.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jsonschema
import numpy as np
from batching import SLOTS, Job, Slots, Text, admit, empty, step, text_in
from decode import MODEL, open_model
from jobs import make_jobs
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from model import END, Config, Weights
from request import Parser, Request, add_settings, settings_in

NAME = {"type": "string", "pattern": "^[a-z][a-z_]{0,15}$"}
TYPE = {"enum": ["int", "str", "list", "dict", "bool", "None"]}


def closed(**properties: Any) -> dict[str, Any]:
    """Returns the schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


FUNCTION = closed(
    name=NAME,
    arguments={"type": "array", "items": closed(name=NAME, type=TYPE), "maxItems": 3},
    returns=TYPE,
)
CLASS = closed(
    name={"type": "string", "pattern": "^[A-Z][a-z]{1,11}$"},
    doc={"type": "string", "maxLength": 40, "pattern": "^[A-Za-z ,.]*$"},
    bases={"type": "array", "items": {"enum": ["object", "Exception", "dict"]}, "maxItems": 2},
)
VERSION = closed(
    major={"type": "integer", "minimum": 0, "maximum": 9},
    minor={"type": "integer", "minimum": 0, "maximum": 99},
    final={"type": "boolean"},
)
DEMO = [
    ("# A function as JSON:\n", FUNCTION),
    ("# A class as JSON:\n", CLASS),
    ("# A version as JSON:\n", VERSION),
    ("# A function as JSON:\n", None),
]
"""Prompts with the schema that the text must match, or None."""


class Grammars:
    """The grammars of the rows, which compute the allowed next tokens on the host.

    Args:
      tokenizer: the JSON of a `tokenizers.Tokenizer`.
      vocab: the size of its vocabulary.
      schemas: one per row, None for a row that may write anything.

    Raises:
      ValueError: the engine does not support a schema.
    """

    def __init__(self, tokenizer: str, vocab: int, schemas: Sequence[dict | None]) -> None:
        # Fixed whitespace, which otherwise could repeat without end.
        style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        tokens = LLTokenizer(tokenizer, n_vocab=vocab, eos_token=END)
        self.matchers: dict[int, LLMatcher] = {}
        for row, schema in enumerate(schemas):
            if schema is not None:
                grammar = LLMatcher.grammar_from_json_schema(schema, overrides=style)
                self.matchers[row] = LLMatcher(tokens, grammar)
                if error := self.matchers[row].get_error():
                    raise ValueError(f"schema: {error.splitlines()[0]}")
        self.bitmask = allocate_token_bitmask(SLOTS, vocab)  # all bits set: all tokens are allowed

    def next_bitmask(self, active: np.ndarray) -> np.ndarray:
        """Returns the bitmask, int32 [SLOTS, ceil(vocab / 32)], updated for active rows."""
        for row, matcher in self.matchers.items():
            if active[row]:
                fill_next_token_bitmask(matcher, self.bitmask, row)
        return self.bitmask

    def accept(self, tokens: np.ndarray, active: np.ndarray) -> None:
        """Advances the grammar of each active row by its token."""
        for row, matcher in self.matchers.items():
            if active[row] and tokens[row] >= 0:
                matcher.consume_token(int(tokens[row]))


@functools.partial(jax.jit, donate_argnames="slots")
def masked_step(weights: Weights, slots: Slots, bitmask: np.ndarray) -> Slots:
    """Writes a token that the bitmask allows in each active row."""
    params = dataclasses.replace(slots.jobs.params, bitmask=bitmask)
    written = step(weights, slots._replace(jobs=slots.jobs._replace(params=params)))
    return written._replace(jobs=slots.jobs)


def write(weights: Weights, config: Config, jobs: list[Job], grammars: Grammars) -> list[Text]:
    """Returns the texts of up to SLOTS jobs, each constrained by the grammar of its row."""
    slots = empty(weights, config, jobs[0])
    for slot, job in enumerate(jobs):
        slots = admit(weights, slots, slot, job)
    active = np.array(slots.active)
    while active.any():
        slots = masked_step(weights, slots, grammars.next_bitmask(active))
        grammars.accept(np.asarray(slots.newest), active)
        active = np.array(slots.active)
    return [text_in(slots, slot) for slot in range(len(jobs))]


def verdict(text: str, reason: str, schema: dict | None) -> str:
    """Returns why a text ended, and whether it is JSON that matches its schema."""
    try:
        value = json.loads(text)
        if schema is not None:
            jsonschema.validate(value, schema)
    except (ValueError, jsonschema.ValidationError) as error:
        if schema is not None and reason == "length":
            return "length: max_tokens ran out before the JSON was complete"
        return f"{reason}, not valid: {str(error).splitlines()[0]}"
    return f"{reason}, valid"


def main() -> None:
    """Decodes a batch, then parses and validates the texts."""
    parser = Parser(description=__doc__.partition("\n")[0], argument_default=argparse.SUPPRESS)
    parser.add_argument("--schema", type=Path, help="JSON schema for all rows except the last")
    add_settings(parser)
    flags = vars(parser.parse_args())
    # Enough for the longest function that the schema allows.
    settings = {"max_tokens": 220, "seed": 0} | settings_in(flags)
    try:
        rows = DEMO
        if "schema" in flags:
            schema = json.loads(flags["schema"].read_bytes())
            if not isinstance(schema, dict):
                raise ValueError(f"{flags['schema']} must hold a JSON object")
            rows = [("# As JSON:\n", schema if row < SLOTS - 1 else None) for row in range(SLOTS)]
        seed = settings.pop("seed")
        requests = [Request(prompt=p, seed=seed + i, **settings) for i, (p, _) in enumerate(rows)]
        schemas = [schema for _, schema in rows]
        config, tokenizer, weights = open_model(MODEL)
        jobs = make_jobs(tokenizer, requests, config.context)
        grammars = Grammars(tokenizer.to_str(), config.vocab, schemas)
    except (OSError, ValueError) as error:
        parser.error(str(error))

    for request, schema, text in zip(
        requests, schemas, write(weights, config, jobs, grammars), strict=True
    ):
        written = tokenizer.decode(text.tokens.tolist())
        print(f"── {request} ──\n{request.prompt}{written.rstrip()}")
        print(f"── {verdict(written, text.reason, schema)} ──\n")


if __name__ == "__main__":
    main()
