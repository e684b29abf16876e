"""How long a program takes by its static schedule: the operations one after the other.

An operation takes as long as its bundles, or as HBM takes for its bytes if that is longer. Copies
that the compiler starts ahead run while the operations between leave HBM idle; what is left of one
at its end is waited for. Conditionals count by their cheapest or by their dearest branch.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from bench.tpu import hlo
from bench.tpu.bundles import schedule
from bench.tpu.chips import Chip
from bench.tpu.compiler import Compiled
from bench.tpu.hlo import Operation

SEARCH_TURNS = 16
"""Turns of loops that end by the data where rows are searched: of a search in normal logits, and of
the groups of eight that 128 rows are."""

COUNTS, COARSE, EXACT, TIED = 10, 13, 1, 0
"""Turns of the loops of `_tpu/search.py`: the most in interpreted runs of rows like text and of
flat ones, in float32. Those of top-k count; those of top-p add up coarse words, and then both
words. The last loop of each is a search among ids, where equal logits are not all kept.
"""

KERNEL_TURNS = {
    2: (COUNTS, TIED),
    3: (COARSE, EXACT, TIED),
    5: (COUNTS, TIED, COARSE, EXACT, TIED),
}
"""These turns by the number of such loops in a kernel, which tells what it searches for."""

ROW_MASS = "row_mass"
"""The scope of the conditional that takes the mass of whole rows."""

_NOTHING = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "opt-barrier",
}

_DMA = {"copy-start", "slice-start"}


class Cost(NamedTuple):
    """What an operation takes, all its turns together.

    Attributes:
      name: of the operation.
      opcode: "fusion", "copy", ...
      result: its shape.
      source: the JAX operation that it is from.
      cycles: its bundles, or HBM.
      bundles: cycles of its bundles alone; None where the compiler left no schedule.
      read: bytes from HBM.
      written: bytes to HBM.
      turns: how often it runs.
      unknown: loops inside whose turns are computed and were not measured: they were counted once.
    """

    name: str
    opcode: str
    result: str
    source: str
    cycles: float
    bundles: int | None
    read: int
    written: int
    turns: int
    unknown: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The costs of a program's operations, in the order that they run in."""

    costs: list[Cost]

    @property
    def cycles(self) -> float:
        """Of all together."""
        return sum(cost.cycles for cost in self.costs)

    @property
    def read(self) -> int:
        """Bytes from HBM."""
        return sum(cost.read for cost in self.costs)

    @property
    def written(self) -> int:
        """Bytes to HBM."""
        return sum(cost.written for cost in self.costs)

    @property
    def unscheduled(self) -> list[str]:
        """The operations whose bundles the compiler did not write: HBM alone is counted.

        Scalars are not among them, which are computed between operations, nor are DMAs.
        """
        return [
            cost.name
            for cost in self.costs
            if cost.bundles is None and cost.opcode not in _DMA and re.search(r"\[\d", cost.result)
        ]

    @property
    def unknown(self) -> list[str]:
        """The operations with a loop that was counted once."""
        return [cost.name for cost in self.costs if cost.unknown]


def cheapest(program: Compiled, chip: Chip, *, weighed: bool = False) -> Estimate:
    """Every conditional by its cheapest branch; loops that end by the data do not turn.

    If `weighed`, the mass of whole rows is taken.
    """
    return _Walk(program, chip, min, 0, weighed).estimate()


def dearest(program: Compiled, chip: Chip) -> Estimate:
    """Every conditional by its dearest branch; loops that end by the data turn as in a search."""
    return _Walk(program, chip, max, SEARCH_TURNS, weighed=True).estimate()


class _Walk:
    """One way through a program."""

    def __init__(
        self,
        program: Compiled,
        chip: Chip,
        choose: Callable[..., Any],
        search_turns: int,
        weighed: bool,
    ) -> None:
        self.module = hlo.parse(program.hlo)
        self.bundles = program.bundles
        self.chip = chip
        self.choose = choose
        self.search_turns = search_turns
        self.weighed = weighed

    def estimate(self) -> Estimate:
        return Estimate(self.computation(self.module.entry, 1))

    def computation(self, name: str, turns: int) -> list[Cost]:
        operations = self.module.computations[name]
        copies: dict[str, float] = {}  # under way, and the cycles that are left of each
        costs: list[Cost] = []
        for one in operations.values():
            if one.opcode.endswith("-start"):
                (end,) = (o for o in operations.values() if _ends(o, one))
                moved = self.operation(operations, one._replace(result=end.result), turns)
                copies[one.name] = moved.cycles
                costs.append(moved._replace(cycles=0.0))
            elif one.opcode.endswith("-done"):
                left = copies.pop(one.operands[0])
                costs.append(_wait(one, left, turns))
            elif one.opcode == "conditional":
                branches = one.calls("branch_computations") or (
                    one.calls("true_computation") + one.calls("false_computation")
                )
                ways = [self.computation(branch, turns) for branch in branches]
                choose = max if self.weighed and self._weighs_rows(branches) else self.choose
                costs += choose(ways, key=lambda way: sum(cost.cycles for cost in way))
            elif one.opcode == "while":
                inside = turns * (hlo.turns(self.module, one) or self.search_turns)
                for role in ("condition", "body") if inside else ("condition",):
                    costs += self.computation(one.calls(role)[0], inside or turns)
            elif one.opcode == "call":
                costs += self.computation(one.calls("to_apply")[0], turns)
            elif one.opcode not in _NOTHING:
                cost = self.operation(operations, one, turns)
                costs.append(cost)
                _go_on(copies, cost.cycles - self._hbm(cost))
        return costs

    def _weighs_rows(self, branches: tuple[str, ...]) -> bool:
        inside = (one for name in branches for one in self.module.computations[name].values())
        return any(f"/{ROW_MASS}/" in one.rest for one in inside)

    def operation(self, operations: dict[str, Operation], one: Operation, turns: int) -> Cost:
        read = hlo.bytes_read(self.module, operations, one) * turns
        written = hlo.bytes_written(operations, one) * turns
        dump = self.bundles.get(one.name)
        found = schedule(dump) if dump else None
        if dump and found and (of_search := KERNEL_TURNS.get(found.unknown)):
            found = schedule(dump, of_search)._replace(unknown=0)
        cost = Cost(
            name=one.name,
            opcode=one.opcode,
            result=one.result,
            source=one.source,
            cycles=0.0,
            bundles=found.cycles * turns if found else None,
            read=read,
            written=written,
            turns=turns,
            unknown=found.unknown if found else 0,
        )
        return cost._replace(cycles=max(cost.bundles or 0, self._hbm(cost)))

    def _hbm(self, cost: Cost) -> float:
        return (cost.read + cost.written) / self.chip.bytes_a_cycle


def _ends(one: Operation, start: Operation) -> bool:
    return one.opcode.endswith("-done") and one.operands[0] == start.name


def _wait(end: Operation, cycles: float, turns: int) -> Cost:
    return Cost(end.name, end.opcode, end.result, end.source, cycles, 0, 0, 0, turns, 0)


def _go_on(copies: dict[str, float], idle: float) -> None:
    """Copies go on, the oldest first, for as long as HBM is idle."""
    for name, left in copies.items():
        copies[name] = max(left - idle, 0.0)
        idle = max(idle - left, 0.0)
