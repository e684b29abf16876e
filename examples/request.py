"""What a user asks of the decoder: from flags or a file, and checked as far as needs no model."""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NoReturn

from jaxsample import SamplingParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to continue it.

    Raises:
      ValueError: A field of the wrong type or outside its range; the message names it.
    """

    prompt: str
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int = 120

    def __post_init__(self) -> None:
        for name in KINDS:
            check(name, getattr(self, name))

    def __str__(self) -> str:
        """The settings that matter to the text."""
        if self.temperature == 0:
            return "greedy"
        neutral = {"top_k": 0, "top_p": 1, "min_p": 0}
        names = ["seed", "temperature", *(n for n in neutral if getattr(self, n) != neutral[n])]
        return ", ".join(f"{name} {getattr(self, name)}" for name in names)


KINDS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Request)}
_KIND_NAMES = {str: "a string", int: "an integer", float: "a number"}
_LOWEST = {"seed": 0, "max_tokens": 1}


def check(name: str, value: object) -> None:
    """Raises a ValueError, naming the field and what it allows, for a `value` it does not."""
    kind = KINDS[name]
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"{name} must be {_KIND_NAMES[kind]}, got {json.dumps(value)}")
    if kind is str:
        if value.encode(errors="ignore").decode() != value:
            raise ValueError(f"{name} must be valid Unicode, got {value!r}")
        return
    if abs(value) >= 2**31:
        raise ValueError(f"{name} must be below 2**31, got {value}")
    if name not in _LOWEST:
        SamplingParams(**{name: value}).validate()
    elif value < _LOWEST[name]:
        raise ValueError(f"{name} must be at least {_LOWEST[name]}, got {value}")


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
    """Tells what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser(description: str) -> Parser:
    """The flags of the command line; a setting that is not given is not in the namespace."""
    parser = Parser(description=description, argument_default=argparse.SUPPRESS)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", action="append", help="a text to continue; may be repeated")
    source.add_argument("--requests", type=Path, help="a JSON list of objects of these settings")
    for field in dataclasses.fields(Request):
        if field.name != "prompt":
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=functools.partial(parse_flag, field.name),
                help=f"of every request (default: {field.default}, or what the request says)",
            )
    return parser


def parse_flag(name: str, text: str) -> Any:
    """Reads the value of a setting."""
    try:
        value = KINDS[name](text)
    except ValueError:
        value = text
    try:
        check(name, value)
    except ValueError as error:
        # The only error whose message argparse passes on.
        raise argparse.ArgumentTypeError(str(error)) from None
    return value


DEMO = [
    Request(prompt="import os\n\n\ndef ", temperature=0),
    Request(prompt="import os\n\n\ndef ", temperature=0.8, top_p=0.9, seed=8),
    Request(prompt="def main(", temperature=0.7, top_k=20, top_p=1, seed=1),
    Request(prompt='class Queue:\n    """', temperature=1, top_p=1, min_p=0.1, seed=5),
]


def make_requests(flags: dict[str, Any]) -> list[Request]:
    """The requests that the flags ask for: prompts, a file or else the demonstration."""
    settings = {name: value for name, value in flags.items() if name in KINDS and name != "prompt"}
    if "prompt" in flags:
        return [Request(prompt=prompt, **settings) for prompt in flags["prompt"]]
    if "requests" in flags:
        return load_requests(flags["requests"], settings)
    return [dataclasses.replace(request, **settings) for request in DEMO]
