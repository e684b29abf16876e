"""Prints the launches and the temporaries of the samplers on NVIDIA GPUs, without running them."""

import argparse
import itertools
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from bench import markdown, report
from bench.__main__ import DTYPES, Parser
from bench.gpu_static import thunks
from bench.gpu_static.chips import CHIPS
from bench.gpu_static.compiler import Program, compiled
from bench.gpu_static.programs import NAMES, program
from bench.report import digits
from bench.works import Case


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles the requested programs and prints a table for each chip and dtype."""
    options = parse(arguments)
    print(", ".join(f"{name} {version}" for name, version in report.versions().items()))
    for chip, dtype in itertools.product(options.chip, options.dtype):
        case = Case(128, 128_256, dtype)
        names = tqdm(options.program, chip, leave=False, disable=None)
        found = {
            name: compiled(program(name, case, options.implementation), chip) for name in names
        }
        print(f"\n## {chip}, {case}\n\n{table(found)}", flush=True)


def table(found: Mapping[str, Program]) -> str:
    """Returns a table with a line for each program."""
    rows = (
        (
            name,
            *(str(len(thunks.launches(one.thunks, settled=way))) for way in (True, False)),
            digits(one.temporaries / 1e6),
            one.largest,
            digits(one.seconds),
            ", ".join(f"{name} {kernel.registers}" for name, kernel in one.kernels.items()),
        )
        for name, one in found.items()
    )
    headers = ["", "launches, settled", "all", "MB of temporaries", "largest array", "CPU s"]
    headers += ["kernels and registers"]
    return markdown.table(headers, rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options."""
    parser = Parser("python -m bench.gpu_static", description=__doc__)
    parser.add_argument("--chip", choices=CHIPS, nargs="+", default=list(CHIPS))
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=DTYPES[:1])
    parser.add_argument("--program", choices=NAMES, nargs="+", default=list(NAMES))
    parser.add_argument(
        "--implementation", choices=["pallas"], help="use kernels, for one chip (default: XLA)"
    )
    options = parser.parse_args(arguments)
    if options.implementation and len(options.chip) > 1:
        parser.error("kernels can be compiled for only one chip: select it with --chip")
    return options


if __name__ == "__main__":
    main()
