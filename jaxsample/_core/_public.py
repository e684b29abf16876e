"""The wrapper of public functions, which checks arguments and calls a jitted program."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
from jax import Array

from jaxsample._core import _checks, _chunks
from jaxsample._tpu.choice import check

P = ParamSpec("P")
R = TypeVar("R")

Converter = Callable[[str, Any, Array], Any]
"""Takes the name and value of an argument and the logits, returns an array or a static value."""


def static_integer(least: int, most: int) -> Converter:
    """Makes the converter of a static integer in a range."""
    return lambda name, value, _: _checks.static_integer(name, value, least, most)


def public(
    *,
    rows: str = "logits",
    convert_rows: Callable[[str, Any], Array] = _checks.logits,
    **converters: Converter,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a public function of a body that is jitted.

    Logits and `axis_name` and `implementation`, where the function has them, are checked, and
    the arguments that are named here are converted, before the body is traced: a Python number
    never compiles anew, and an integer of 64 bits is not cut. Keyword-only arguments are static.

    Args:
      rows: the name of the argument that holds the logits, or another array `[..., n]`.
      convert_rows: its converter.
      **converters: of the other arguments, by name.
    """

    def decorated(body: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(body)
        static = [p.name for p in signature.parameters.values() if p.kind == p.KEYWORD_ONLY]
        program = jax.jit(body, static_argnames=static)

        @functools.wraps(body)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            logits = given[rows] = convert_rows(rows, given[rows])
            _chunks.shards(logits, given.get("axis_name"))
            check(given.get("implementation"))
            for name, convert in converters.items():
                given[name] = convert(name, given[name], logits)
            return program(*bound.args, **bound.kwargs)

        return checked

    return decorated
