"""The command line: `python -m bench`."""

import argparse
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from bench import report
from bench.rules import rules
from bench.sizes import FULL, QUICK
from bench.timing import measure
from bench.works import Case, works

TABLES = {"batch": [1, 32, 128], "vocab": [32000, 128256], "repeats": 100}
QUICK_TABLES = {"batch": [8], "vocab": [32000], "repeats": 5}
RULES = {"batch": [32], "vocab": [128256], "repeats": 30}
DTYPES = ["float32", "bfloat16"]
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the requested measurements, prints the results and writes them to files."""
    options = parse(arguments)
    if options.report:
        performance_report(options)
    else:
        tables(options)


def tables(options: argparse.Namespace) -> None:
    """Prints the table of each case as soon as it is measured."""
    sizes = itertools.product(options.batch, options.vocab, options.dtype)
    cases = [Case(*size) for size in sizes]
    print(report.headline(options.rules))
    tables = {}
    for number, case in enumerate(cases, 1):
        measured = rules(case) if options.rules else works(case)
        timings = measure(measured, options.repeats, label=f"{number}/{len(cases)}: {case}")
        table = report.rules_table if options.rules else report.table
        print(f"\n{table(case, timings)}", flush=True)
        tables[case] = timings
    if options.out:
        ratios = report.to_argmax if options.rules else report.times_as_fast_as
        path = file_at(options.out, "-rules" if options.rules else "")
        path.write_text(json.dumps(report.document(tables, ratios), indent=2) + "\n")
        print(f"\nwritten to {path}")


def performance_report(options: argparse.Namespace) -> None:
    """Prints the report and writes it; a quick one is written only if `--out` is given."""
    from bench import performance  # imports matplotlib, which the tables do not need

    found = performance.measured(QUICK if options.quick else FULL)
    path = file_at(options.out or RESULTS, "-report")
    command = f"python -m bench --report{' --quick' * options.quick}"
    print(performance.text(found, command, path.with_suffix(".png").name))
    if options.out or not options.quick:
        for file in performance.write(found, command, path):
            print(f"written to {file}")


def file_at(out: Path, suffix: str) -> Path:
    """Returns the path of the JSON file; in a folder it is named by the device."""
    if out == RESULTS:
        out.mkdir(exist_ok=True)
    name = re.sub(r"\W+", "-", report.device_name()).lower()
    return out / f"{name}{suffix}.json" if out.is_dir() else out


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options and fills in the default sizes."""
    parser = Parser(
        "python -m bench",
        description="Time the samplers against JAX's own operations and a sort-based stack.",
        epilog="The tables take about ten minutes on two cores, and so does the report.",
    )
    # The lower bound is the 64 of the top-k benchmark, the upper bound is that of the library.
    vocab = whole_number(64, 2**21)
    parser.add_argument("--quick", action="store_true", help="use small sizes and few repeats")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--rules", action="store_true", help="each rule alone, relative to jnp.argmax"
    )
    kinds.add_argument(
        "--report",
        action="store_true",
        help="write bars, peers, memory and scaling, at fixed sizes, to bench/results",
    )
    parser.add_argument(
        "--batch", type=whole_number(1), nargs="+", metavar="N", help="numbers of rows"
    )
    parser.add_argument("--vocab", type=vocab, nargs="+", metavar="N", help="vocabulary sizes")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", help="dtypes of the logits")
    parser.add_argument(
        "--repeats", type=whole_number(1), metavar="N", help="maximum calls of each function"
    )
    parser.add_argument(
        "--out",
        type=out_path,
        nargs="?",
        const=RESULTS,
        metavar="PATH",
        help="JSON file to write, or folder for a file named by the device (bench/results)",
    )
    options = parser.parse_args(arguments)
    sizes = QUICK_TABLES if options.quick else RULES if options.rules else TABLES
    for name, value in (sizes | {"dtype": DTYPES}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
        elif options.report:
            parser.error(f"--report has sizes of its own, and no --{name}")
    return options


def whole_number(least: int, most: int = 10**6) -> Callable[[str], int]:
    """Returns an argument type: an integer in a range."""

    def convert(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be in [{least}, {most}], got {text}")
        return int(text)

    return convert


def out_path(text: str) -> Path:
    """Converts an argument to a path in an existing folder, so that errors precede a long run."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"no such folder: {path.parent}")
    return path


if __name__ == "__main__":
    main()
