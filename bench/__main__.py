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
from bench.timing import measure
from bench.works import Case, works

FULL = {"batch": [1, 32, 128], "vocab": [32000, 128256], "repeats": 100}
QUICK = {"batch": [8], "vocab": [32000], "repeats": 5}
DTYPES = ["float32", "bfloat16"]
RULES = {"batch": [32], "vocab": [128256], "repeats": 30}
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of each case as soon as it is measured."""
    options = parse(arguments)
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
        write(options.out, report.document(tables, ratios), "-rules" if options.rules else "")


def write(out: Path, document: object, suffix: str) -> None:
    """Writes a document to a JSON file, or to the device's file in a folder."""
    if out == RESULTS:
        out.mkdir(exist_ok=True)
    name = re.sub(r"\W+", "-", report.device_name()).lower()
    path = out / f"{name}{suffix}.json" if out.is_dir() else out
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nwritten to {path}")


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the sizes that are not given filled in."""
    parser = Parser(
        "python -m bench",
        description="Times the samplers against JAX's own operations and a stack of sorts.",
        epilog="The full run takes about six minutes on two cores.",
    )
    # The least vocabulary has the 64 tokens that top-k asks for, the largest is the library's.
    vocab = whole_number(64, 2**21)
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    parser.add_argument("--rules", action="store_true", help="each rule alone, beside jnp.argmax")
    parser.add_argument("--batch", type=whole_number(1), nargs="+", metavar="N", help="rows")
    parser.add_argument("--vocab", type=vocab, nargs="+", metavar="N", help="tokens")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=DTYPES, help="of the logits")
    parser.add_argument(
        "--repeats", type=whole_number(1), metavar="N", help="the most calls of each work"
    )
    parser.add_argument(
        "--out",
        type=out_path,
        nargs="?",
        const=RESULTS,
        metavar="PATH",
        help="a JSON file to write, or a folder for one named by the device (bench/results)",
    )
    options = parser.parse_args(arguments)
    sizes = RULES if options.rules else FULL
    for name, value in (QUICK if options.quick else sizes).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def whole_number(least: int, most: int = 10**6) -> Callable[[str], int]:
    """An argument type: a number in a range."""

    def convert(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be in [{least}, {most}], got {text}")
        return int(text)

    return convert


def out_path(text: str) -> Path:
    """An argument type: a path in a folder that exists, since a long run should not end in vain."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"no such folder: {path.parent}")
    return path


if __name__ == "__main__":
    main()
