"""The running time of a program by its static schedule, in which operations do not overlap.

An operation takes the time of its bundles or that of its HBM traffic, whichever is longer. Copies
that the compiler starts early run while the operations in between leave HBM idle; their end waits
for the remainder. Conditionals count by their cheapest or by their most expensive branch.
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
"""Iterations of data-dependent loops when rows are searched: of a search in normal logits, and over
the groups of eight of 128 rows.
"""

COUNTS, COARSE, EXACT, TIED = 10, 13, 1, 0
"""Iterations of the loops of `_tpu/search.py`: the maximum in interpreted runs on text-like and
flat rows, in float32. The loops of top-k count; those of top-p first sum coarse words, then both
words. The last loop of each searches among ids, if only some of the equal logits are kept.
"""

KERNEL_TURNS = {
    2: (COUNTS, TIED),
    3: (COARSE, EXACT, TIED),
    5: (COUNTS, TIED, COARSE, EXACT, TIED),
}
"""These iterations by the number of such loops in a kernel, which identifies its searches."""

ROW_MASS = "row_mass"
"""The scope of the conditional that computes the mass of whole rows."""

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
    """The cost of an operation over all iterations.

    Attributes:
      name: the name of the operation.
      opcode: "fusion", "copy", ...
      result: the shape of the result.
      source: the JAX operation that it is from.
      cycles: the maximum of `bundles` and the cycles of HBM.
      bundles: the cycles of its bundles; None if the compiler left no schedule.
      read: the bytes read from HBM.
      written: the bytes written to HBM.
      turns: the number of executions.
      unknown: the number of inner data-dependent loops without a measured number of iterations,
        which were counted once.
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
    """The costs of a program's operations, in execution order."""

    costs: list[Cost]

    @property
    def cycles(self) -> float:
        """Returns the total number of cycles."""
        return sum(cost.cycles for cost in self.costs)

    @property
    def read(self) -> int:
        """Returns the bytes read from HBM."""
        return sum(cost.read for cost in self.costs)

    @property
    def written(self) -> int:
        """Returns the bytes written to HBM."""
        return sum(cost.written for cost in self.costs)

    @property
    def unscheduled(self) -> list[str]:
        """Returns the operations without a schedule, which count by HBM alone.

        Scalars, which are computed between operations, and DMAs are not included.
        """
        return [
            cost.name
            for cost in self.costs
            if cost.bundles is None and cost.opcode not in _DMA and re.search(r"\[\d", cost.result)
        ]

    @property
    def unknown(self) -> list[str]:
        """Returns the operations with a loop that was counted once."""
        return [cost.name for cost in self.costs if cost.unknown]


def cheapest(program: Compiled, chip: Chip, *, weighed: bool = False) -> Estimate:
    """Takes the cheapest branch of every conditional and skips data-dependent loops.

    If `weighed`, the mass of whole rows is computed.
    """
    return _Walk(program, chip, min, 0, weighed).estimate()


def dearest(program: Compiled, chip: Chip) -> Estimate:
    """Takes the most expensive branch of every conditional and the iterations of a search."""
    return _Walk(program, chip, max, SEARCH_TURNS, weighed=True).estimate()


class _Walk:
    """One path through a program."""

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
        copies: dict[str, float] = {}  # the copies in flight, with their remaining cycles
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
    """Advances the copies, the oldest first, for the cycles in which HBM is idle."""
    for name, left in copies.items():
        copies[name] = max(left - idle, 0.0)
        idle = max(idle - left, 0.0)
