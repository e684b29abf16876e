"""The static schedules of the samplers on TPUs: `python -m bench.tpu_static`.

No TPU is needed and no program runs: all figures are computed by the compiler for a chip. They are
lower bounds of the time of a program and show which operations take its cycles. They do not predict
the time.
"""

import argparse
import datetime
import functools
import importlib.metadata
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from bench import markdown, report
from bench.report import digits
from bench.tpu.chips import CHIPS
from bench.tpu.compiler import compiled
from bench.tpu.estimate import (
    COARSE,
    COUNTS,
    EXACT,
    SEARCH_TURNS,
    Cost,
    Estimate,
    cheapest,
    dearest,
)
from bench.tpu.programs import OURS, THEIRS, WEIGHED
from bench.works import Case

RESULTS = Path(__file__).parent / "results" / "tpu-static.json"
ARGMAX = "jnp.argmax"
TEXT_ROWS = 13
"""The number of text-like rows out of 128 that keep more than the candidates with top-p .95."""

TEXT_BLOCKS = 8
"""The number of blocks of eight adjacent rows of 128 text-like rows that contain one of these."""

SHARE = 0.01
"""Operations below this share of a program are merged into one line."""


class Place(NamedTuple):
    """The chip and the sizes that programs are compiled for."""

    chip: str
    case: Case

    def __str__(self) -> str:
        return f"{self.chip}, {self.case}"

    @property
    def floor(self) -> float:
        """Returns the cycles in which HBM reads the logits once."""
        size = {"float32": 4, "bfloat16": 2}[self.case.dtype]
        return self.case.batch * self.case.vocab * size / CHIPS[self.chip].bytes_a_cycle


class Found(NamedTuple):
    """The estimates of a program, or the reason why there is none.

    Attributes:
      settled: takes the cheapest branches: the candidates settle every row.
      searched: takes the most expensive branches: some rows need every search.
      failure: the error message of the compiler.
    """

    settled: Estimate
    searched: Estimate
    failure: str = ""

    def like_text(self, name: str, case: Case) -> float | None:
        """Returns the cycles for text-like rows, if some of them need the search of the program."""
        if name not in WEIGHED or case.batch != 128:
            return None
        gathered = name.endswith("XLA") or (case.dtype == "float32" and case.vocab % 128 == 0)
        blocks = -(-TEXT_ROWS // 8) if gathered else TEXT_BLOCKS
        part = blocks * 8 / case.batch
        return self.settled.cycles + part * (self.searched.cycles - self.settled.cycles)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles the requested programs, prints the tables and writes them."""
    options = parse(arguments)
    cases = [Case(options.batch, options.vocab, dtype) for dtype in options.dtype]
    found: dict[Place, dict[str, Found]] = {}
    names = [*OURS, *THEIRS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each compiler is a separate process
        for case, chip in itertools.product(cases, options.chip):
            place = Place(chip, case)
            estimates = pool.map(functools.partial(estimated, place), names)
            shown = tqdm(estimates, str(place), len(names), leave=False, disable=None)
            found[place] = dict(zip(names, shown, strict=True))
            options.out.write_text(json.dumps(document(found), indent=1) + "\n")
            options.out.with_suffix(".md").write_text(text(found))
    print(text(found))


def estimated(place: Place, name: str) -> Found:
    """Returns the estimates of a program."""
    try:
        program = compiled(place.chip, name, place.case)
    except RuntimeError as error:
        nothing = Estimate([])
        return Found(nothing, nothing, str(error))
    chip = CHIPS[place.chip]
    return Found(cheapest(program, chip, weighed=name in WEIGHED), dearest(program, chip))


def text(found: Mapping[Place, Mapping[str, Found]]) -> str:
    """Returns the tables in Markdown."""
    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    first = next(iter(found))
    sections = [
        f"""# Static schedules on TPU

**Estimates of the TPU compiler. Nothing here was measured, and no TPU was at hand.**
{listed}.

    pip install -e ".[bench,tpu]" && python -m bench.tpu_static

An operation counts as its scheduled bundles, each as often as the loops around it turn, or as the
time that HBM takes for its bytes if that is longer. Operations follow one another; copies that the
compiler starts ahead use HBM while it is idle. A loop inside an operation whose turns are computed
counts once. An operation whose bundles the compiler did not write counts as its bytes: joins of
copies, which take no time, and what TPU7x gives to its SparseCores, whose gathers count as all that
they gather from. The JSON file names both kinds.

"Settled" counts each conditional by its cheapest branch, which is what runs where the candidates
settle every row, and that which takes the mass of whole rows where top-p always needs it.
"Searched" counts each by its dearest, for all rows, and loops that end by the data as
{SEARCH_TURNS} turns: more than any one batch runs. The loops of the search's kernel count as
often as they turned where they were interpreted: {COUNTS} times for top-k, {COARSE} and {EXACT} for
top-p. "Like text" has the part of "searched" that 128 rows like text run with top-p .95:
{TEXT_ROWS} of them need the search, in two blocks of eight where rows are gathered, else in
{TEXT_BLOCKS} of 16.

The floor is one read of the logits from HBM. Bandwidths are those that Google publishes
(cloud.google.com/tpu/docs), clocks follow from the published peaks. A TPU7x program runs on one of
the two cores of a chip and has half of its bandwidth.

{_chips()}

Kilocycles; in brackets, in floors. MB are those of the settled program, to and from HBM."""
    ]
    sections += [_programs(place, programs) for place, programs in found.items()]
    sections.append(f"## Where the cycles go\n\n{first}. Kilocycles, of all turns together.")
    sections += [_operations(name, found[first][name]) for name in OURS if name in found[first]]
    return "\n\n".join(sections) + "\n"


def _chips() -> str:
    rows = (
        (name, *map(digits, (chip.bandwidth / 1e9, chip.clock / 1e9, chip.bytes_a_cycle)))
        for name, chip in CHIPS.items()
    )
    return markdown.table(["core", "GB/s", "GHz", "bytes a cycle"], rows)


def _programs(place: Place, programs: Mapping[str, Found]) -> str:
    argmax = programs[ARGMAX].settled.cycles

    def line(name: str, one: Found) -> tuple[str, ...]:
        if one.failure:
            return (name, "not compiled", "", "", "", "", "", "")
        kilocycles = (
            f"{digits(of.cycles / 1e3)} ({digits(of.cycles / place.floor)})"
            for of in (one.settled, one.searched)
        )
        megabytes = (digits(size / 1e6) for size in (one.settled.read, one.settled.written))
        text = one.like_text(name, place.case)
        missing = len(one.searched.unscheduled)
        to_argmax = digits(one.settled.cycles / argmax) if argmax else ""
        return (
            name,
            next(kilocycles),
            "" if text is None else digits(text / 1e3),
            *kilocycles,
            to_argmax,
            *megabytes,
            str(missing or ""),
        )

    headers = [
        "estimate",
        "settled",
        "like text",
        "searched",
        f"of {ARGMAX}",
        "MB read",
        "MB written",
        "without bundles",
    ]
    rows = [line(name, one) for name, one in programs.items()]
    failures = [f"- {one.failure}" for one in programs.values() if one.failure]
    table = markdown.table(headers, rows)
    return "\n\n".join(
        [f"## {place}\n\nHBM floor {digits(place.floor / 1e3)}.\n\n{table}", *failures]
    )


def _operations(name: str, found: Found) -> str:
    headers = ["estimate", "from", "result", "cycles", "bundles", "MB read", "MB written", "turns"]
    tables = []
    for label, estimate in (("settled", found.settled), ("searched", found.searched)):
        if label == "searched" and estimate == found.settled:
            continue
        costs = sorted(estimate.costs, key=lambda cost: -cost.cycles)
        large = [cost for cost in costs if cost.cycles >= SHARE * estimate.cycles]
        others = sum(cost.cycles for cost in costs[len(large) :])
        rows = [_operation(cost) for cost in large]
        rows.append((f"{len(costs) - len(large)} others", "", "", digits(others / 1e3), *[""] * 4))
        tables.append(f"{name}, {label}:\n\n{markdown.table(headers, rows, words=3)}")
    return "\n\n".join(tables)


def _operation(cost: Cost) -> tuple[str, ...]:
    bundles = "none" if cost.bundles is None else digits(cost.bundles / 1e3)
    megabytes = (digits(size / 1e6) for size in (cost.read, cost.written))
    result = f"`{cost.result.split(' ')[0]}`"
    times = "" if cost.turns == 1 else str(cost.turns)
    return (cost.name, cost.source, result, digits(cost.cycles / 1e3), bundles, *megabytes, times)


def document(found: Mapping[Place, Mapping[str, Found]]) -> dict[str, Any]:
    """Returns all estimates and the versions that made them, ready for JSON."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kind": "estimates of the TPU compiler; nothing was measured",
        "versions": versions(),
        "search_turns": SEARCH_TURNS,
        "chips": {name: chip._asdict() | {"clock": chip.clock} for name, chip in CHIPS.items()},
        "tables": [
            {
                "chip": place.chip,
                **place.case._asdict(),
                "floor": place.floor,
                "programs": {name: _program(one) for name, one in programs.items()},
            }
            for place, programs in found.items()
        ],
    }


def _program(found: Found) -> dict[str, Any]:
    if found.failure:
        return {"failure": found.failure}
    return {"settled": _estimate(found.settled), "searched": _estimate(found.searched)}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    large = [cost for cost in estimate.costs if cost.cycles >= SHARE * estimate.cycles]
    return {
        "cycles": round(estimate.cycles),
        "read": estimate.read,
        "written": estimate.written,
        "without_bundles": estimate.unscheduled,
        "loops_counted_once": estimate.unknown,
        "operations": [cost._asdict() | {"cycles": round(cost.cycles)} for cost in large],
    }


def versions() -> dict[str, str]:
    """Returns the versions of JAX and of the compiler."""
    return report.versions() | {"libtpu": importlib.metadata.version("libtpu")}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options."""
    parser = argparse.ArgumentParser("python -m bench.tpu_static", description=__doc__)
    parser.add_argument("--chip", choices=CHIPS, nargs="+", default=list(CHIPS))
    parser.add_argument("--batch", type=int, default=128, metavar="N", help="rows")
    parser.add_argument("--vocab", type=int, default=128_256, metavar="N", help="tokens")
    dtypes = ["float32", "bfloat16"]
    parser.add_argument("--dtype", choices=dtypes, nargs="+", default=dtypes)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="PATH", help="a JSON file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
