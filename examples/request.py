"""User requests, from flags or a file, with all checks that need no model."""

import argparse
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, NoReturn

import jaxsample
from jaxsample import SamplingParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to continue it.

    The settings from min_tokens to no_repeat_ngram_size are those of `SamplingParams`.

    Attributes:
      prompt: the text to continue.
      seed: the seed of the draws.
      max_tokens: the maximum number of tokens to write.
      logit_bias: numbers, including -Infinity, by the text or the id of a token.
      bad_words: texts that must not be written.

    Raises:
      ValueError: A field has the wrong type or is out of range; the message names it.
    """

    prompt: str
    seed: int = 0
    max_tokens: int = 120
    min_tokens: int = 0
    temperature: float = 0.8
    dynatemp_low: float = 1.0
    dynatemp_high: float = 1.0
    dynatemp_exponent: float = 1.0
    smoothing_factor: float = 0.0
    smoothing_curve: float = 1.0
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    top_a: float = 0.0
    top_n_sigma: float = 0.0
    tail_free: float = 1.0
    top_h: float = 1.0
    p_less: bool = False
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    no_repeat_ngram_size: int = 0
    logit_bias: dict = dataclasses.field(default_factory=dict)
    bad_words: list = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        for name in KINDS:
            check(name, getattr(self, name))

    def __str__(self) -> str:
        """Returns the settings that affect the text."""
        shown, hidden = ["seed", "temperature"], set()
        if self.temperature == 0:
            shown, hidden = [], {"temperature", "top_k", "top_p", "min_p"}
        asked = {name for name in NEUTRAL if getattr(self, name) != NEUTRAL[name]} - hidden
        names = dict.fromkeys([*shown, *(name for name in NEUTRAL if name in asked)])
        settings = [f"{name} {json.dumps(getattr(self, name))}" for name in names]
        return ", ".join(settings if shown else ["greedy", *settings])


KINDS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Request)}
_KIND_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "an object of numbers",
    list: "a list of strings",
}
_LOWEST = {"seed": 0, "max_tokens": 1}


def check(name: str, value: Any) -> None:
    """Raises a ValueError that names the field and its allowed values, if `value` is invalid."""
    kind = KINDS[name]
    _check_kind(name, kind, value)
    if kind is dict:
        for token, bias in value.items():
            _check_kind(f"a token of {name}", str, token)
            if bias != -math.inf:
                _check_kind(f"{name}[{json.dumps(token)}]", float, bias)
        SamplingParams(logit_bias=[*value.values()]).validate()
    elif kind is list:
        for word in value:
            _check_kind(f"each of {name}", str, word)
            if not word:
                raise ValueError(f"each of {name} must be a text, got {json.dumps(word)}")
    elif name in _LOWEST:
        if value < _LOWEST[name]:
            raise ValueError(f"{name} must be at least {_LOWEST[name]}, got {value}")
    elif kind is not str:
        SamplingParams(**{name: value}).validate()


def _check_kind(name: str, kind: type, value: Any) -> None:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be {_KIND_NAMES[kind]}, got {json.dumps(value)}")
    if kind is str and value.encode(errors="ignore").decode() != value:
        raise ValueError(f"{name} must be valid Unicode, got {value!r}")
    bits = 64 if name == "seed" else 31
    if kind in (int, float) and abs(value) >= 2**bits:
        raise ValueError(f"{name} must be below 2**{bits}, got {value}")


PLAIN = Request(prompt="")
NEUTRAL: dict[str, Any] = {
    name: {"logit_bias": {}, "bad_words": []}.get(name, jaxsample.NEUTRAL[name])
    for name in KINDS
    if name in jaxsample.NEUTRAL
}
"""The neutral value of each rule, at which it does nothing."""


def load_requests(path: Path, overrides: dict[str, Any]) -> list[Request]:
    """Reads requests from a JSON list of objects; `overrides` replaces fields in all of them.

    Raises:
      OSError: The file cannot be read.
      ValueError: The file is not such a list; the message names the request and the field.
    """
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold a JSON list of one request or more")
    return [_request(f"{path}, request {i}", e, overrides) for i, e in enumerate(entries, 1)]


def _request(place: str, entry: object, overrides: dict[str, Any]) -> Request:
    if not isinstance(entry, dict) or "prompt" not in entry:
        raise ValueError(f"{place}: must be an object with a prompt, got {json.dumps(entry)}")
    for name in entry.keys() - KINDS.keys():
        raise ValueError(f"{place}: unknown field {name!r}; the fields are {', '.join(KINDS)}")
    try:
        return Request(**(entry | overrides))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


class Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Exits with the error message."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser(description: str) -> Parser:
    """Returns the command line parser; settings that are not given are not in its namespace."""
    parser = Parser(description=description, argument_default=argparse.SUPPRESS)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", action="append", help="text to continue; may be repeated")
    source.add_argument("--requests", type=Path, help="JSON file with a list of requests")
    add_settings(parser)
    return parser


def add_settings(parser: Parser) -> None:
    """Adds a flag for each setting."""
    for field in dataclasses.fields(Request):
        if field.name != "prompt":
            default = json.dumps(getattr(PLAIN, field.name))
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=functools.partial(parse_flag, field.name),
                help=f"for every request (default: the value of the request, or {default})",
            )


def parse_flag(name: str, text: str) -> Any:
    """Parses the value of a setting: a number, or else JSON."""
    kind = KINDS[name]
    try:
        value = kind(text) if kind in (int, float) else json.loads(text)
    except (ValueError, RecursionError):
        value = text
    try:
        check(name, value)
    except ValueError as error:
        # argparse reports the message of no other error.
        raise argparse.ArgumentTypeError(str(error)) from None
    return value


DEMO = [
    Request(prompt="import os\n\n\ndef ", temperature=0),
    Request(prompt="import os\n\n\ndef ", top_p=0.9, seed=8),
    Request(prompt="def main(", temperature=0.7, top_k=20, top_p=1, seed=1),
    Request(prompt='class Queue:\n    """', temperature=1, top_p=1, min_p=0.1, seed=5),
    Request(prompt="import os\n\n\ndef ", temperature=0, repetition_penalty=1.3, max_tokens=80),
    Request(prompt="class Stack:\n", dry_multiplier=0.8, seed=2, max_tokens=80),
    Request(prompt="for line in ", temperature=1.2, top_n_sigma=1, top_p=1, seed=3, max_tokens=40),
    Request(prompt="def parse(self, ", xtc_probability=0.5, seed=4, max_tokens=60),
    Request(prompt="class Error(", bad_words=["self"], logit_bias={"def ": 2}, max_tokens=80),
]


def settings_in(flags: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings among the flags."""
    return {name: value for name, value in flags.items() if name in KINDS and name != "prompt"}


def make_requests(flags: dict[str, Any]) -> list[Request]:
    """Returns the requests that the flags specify: prompts, a file or else the demo."""
    settings = settings_in(flags)
    if "prompt" in flags:
        return [Request(prompt=prompt, **settings) for prompt in flags["prompt"]]
    if "requests" in flags:
        return load_requests(flags["requests"], settings)
    return [dataclasses.replace(request, **settings) for request in DEMO]
