"""The schedule of one operation: its VLIW bundles, one per cycle, in loops.

Each line of a dump is a bundle, `0x3 LB: >> { instructions }`: an address, labels, one `>` for each
enclosing loop, and the instructions. The compiler marks the test that ends a loop.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +([A-Z]{2})? *: ?([> ]*)\{(.*)")
_TURNS = re.compile(r"scmp\.ge\.s32\.totalorder [^;]*?, (\d+) /\* loop exit test")


class Schedule(NamedTuple):
    """The running time of the bundles of an operation.

    Attributes:
      cycles: the total over all bundles, each multiplied by the iterations of the loops around it.
      unknown: the number of loops whose number of iterations is computed at run time.
    """

    cycles: int
    unknown: int


class _Loop:
    def __init__(self) -> None:
        self.own = 0
        self.text: list[str] = []
        self.inner: list[_Loop] = []


def schedule(dump: str, turns: Sequence[int] = ()) -> Schedule:
    """Adds up the bundles of a dump.

    Args:
      dump: the bundles.
      turns: the iterations of the loops whose number of iterations is computed at run time, in
        order; one each by default.
    """
    stack = [_Loop()]
    for line in dump.splitlines():
        if not (match := _BUNDLE.match(line)):
            stack[-1].text.append(line)
            continue
        label, marks, text = match.groups()
        # The compiler does not mark the depth of an empty bundle.
        depth = len(stack) - 1 if text.startswith("}") else marks.count(">")
        starts = label == "LB"
        del stack[depth + (0 if starts else 1) :]
        if starts:
            stack[-1].inner.append(_Loop())
            stack.append(stack[-1].inner[-1])
        while len(stack) <= depth:  # back in the loop: the previous bundle was moved into it
            stack.append(stack[-1].inner[-1])
        stack[-1].own += 1
        stack[-1].text.append(text)
    return _sum(stack[0], iter(turns))


def _sum(loop: _Loop, turns: Iterator[int]) -> Schedule:
    cycles, unknown = loop.own, 0
    for inner in loop.inner:
        tests = _TURNS.findall("\n".join(inner.text))
        known = int(tests[0]) if len(tests) == 1 else None
        times = next(turns, 1) if known is None else known
        once = _sum(inner, turns)
        cycles += once.cycles * times
        unknown += once.unknown + (known is None)
    return Schedule(cycles, unknown)
