"""The launches of a program, from the sequence of thunks that XLA executes."""

import itertools
import re
from typing import NamedTuple

_THUNK = re.compile(r"( *)\d+: k(\w+)")
_PART = re.compile(r"( *)(\w+):\s*$")
_NO_LAUNCH = {"AsyncStart", "AsyncDone", "DynamicSliceFusion"}


class Thunk(NamedTuple):
    """A step of a program.

    Attributes:
      kind: "CustomKernel", "Copy", "Conditional", "While", ...
      parts: the branches of a conditional, or the condition and the body of a loop.
    """

    kind: str
    parts: dict[str, list["Thunk"]]


def parse(text: str) -> list[Thunk]:
    """Parses a dump: each thunk is a line, indented by four spaces more than its parent."""
    inside: list[list[Thunk]] = [[]]  # the open list at each depth
    for line in text.replace("No thunks.", "\n").splitlines():
        if match := _PART.match(line):  # the condition of a loop is not indented
            depth = len(match[1]) // 4 if match[1] else len(inside) - 1
            inside[depth + 1 :] = [inside[depth][-1].parts.setdefault(match[2], [])]
        elif match := _THUNK.match(line):
            depth = len(match[1]) // 4
            if depth == len(inside):
                inside.append(inside[-1][-1].parts.setdefault("", []))
            del inside[depth + 1 :]
            inside[depth].append(Thunk(match[2], {}))
    return inside[0]


def launches(thunks: list[Thunk], *, settled: bool) -> list[Thunk]:
    """Returns the kernels and copies of a program, in order.

    Conditionals and loops count as launches, since their predicates are copied to the host.

    Args:
      thunks: the thunks of the program.
      settled: whether to take only the branch of each conditional with the fewest launches, and
        only the condition of each loop, instead of all of them.
    """
    found = []
    for thunk in thunks:
        parts = [launches(part, settled=settled) for part in thunk.parts.values()]
        if settled and thunk.kind == "Conditional":
            parts = [min(parts, key=len)]
        elif settled and thunk.kind == "While":
            parts = parts[:1]
        found += [] if thunk.kind in _NO_LAUNCH else [thunk]
        found += itertools.chain.from_iterable(parts)
    return found
