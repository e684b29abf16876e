"""The decorator of public functions, which checks arguments and calls a jitted program."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

from jaxsample._core import _checks, _shards

P = ParamSpec("P")
R = TypeVar("R")

Converter = Callable[[str, Any, Any], Any]
"""Takes the name and value of an argument and the first argument, returns the converted value."""


_OPTIONS = {
    "axis_name": """
  axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
    `shard_map`; None if it is not.""",
    "implementation": """
  implementation: static, "xla", or "pallas" for kernels on TPUs and NVIDIA GPUs (on a CPU, those
    for TPUs are interpreted); None for kernels on TPUs if they are estimated to be faster. The
    results are the same.""",
}
_RAISES = """
Raises:
  TypeError, ValueError: a wrong dtype or shape; the message names the argument.
"""


def static_integer(least: int, most: int) -> Converter:
    """Returns the converter of a static integer in a range."""
    return lambda name, value, _: _checks.static_integer(name, value, least, most)


def public(
    *,
    first: str = "logits",
    convert_first: Callable[[str, Any], Any] = _checks.logits,
    static: tuple[str, ...] | None = None,
    **converters: Converter,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a public function of a body, which is jitted.

    Arguments are checked and converted to arrays of known dtype before the body is traced: a new
    Python number never causes a recompilation, and integers of 64 bits are not truncated. The
    sections that all public functions share, the arguments of `_OPTIONS` and `_RAISES`, are added
    to the docstring.

    Args:
      first: the name of the argument that the others are checked against.
      convert_first: its converter.
      static: the names of the static arguments; None: the keyword-only ones.
      **converters: the converters of the other arguments, by name.
    """

    def decorated(body: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(body)
        options = [p.name for p in signature.parameters.values() if p.kind == p.KEYWORD_ONLY]
        program = jax.jit(body, static_argnames=options if static is None else static)

        body.__doc__ = _completed(body.__doc__, options)

        @functools.wraps(body)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            checked_first = given[first] = convert_first(first, given[first])
            if (axis_name := given.get("axis_name")) is not None:
                _shards.named(axis_name)
            _checks.implementation("implementation", given.get("implementation"))
            for name, convert in converters.items():
                given[name] = convert(name, given[name], checked_first)
            return program(*bound.args, **bound.kwargs)

        return checked

    return decorated


def _completed(doc: str | None, options: list[str]) -> str:
    """Returns a docstring with the arguments and errors that public functions share."""
    head, returns, rest = inspect.cleandoc(doc or "").partition("\n\nReturns:")
    head += "".join(_OPTIONS.get(name, "") for name in options)
    if "\nRaises:" not in rest:
        place = min(i for i in (rest.find("\nReferences:"), rest.find("\n>>>")) if i >= 0)
        rest = rest[:place] + _RAISES + rest[place:]
    return head + returns + rest
