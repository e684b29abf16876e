"""Tests the library on random inputs for some minutes: `python -m tests.fuzz --minutes 5`.

Shapes, dtypes, logits (ties, infinities, NaN, subnormal and huge numbers), parameters in and out of
range, texts, states, orders and `vmap`s are random. Rules are compared with their definitions in
float64, `sample` bit for bit with the equivalent functions, and draws with the softmax.

A failure is printed as a line for tests/test_fuzz.py that repeats the case.
"""

import argparse
import collections
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

import fuzz_inputs as inputs
import fuzz_rules
import fuzz_sample
import jax
import numpy as np
from tqdm import tqdm

REPEATS = 20
"""The number of batches per program, since it takes longer to compile than to run."""

MAPPINGS = 30_000
"""The limit of memory mappings: each compiled program takes some, and Linux allows a process
65,530.
"""

CHECKS = {
    "sample": (fuzz_sample.check_sample, 0.45),
    "laws": (fuzz_sample.check_laws, 0.1),
    "draws": (fuzz_sample.check_draws, 0.05),
    "rule": (fuzz_rules.check, 0.4),
}
"""The checks by name, each with its share of all cases."""


def run(name: str, seed: int) -> None:
    """Runs a case: a program on batches of random rows.

    Raises:
      AssertionError: if a check fails.
    """
    rng = np.random.default_rng(seed)
    vocab, dtype = int(rng.choice(inputs.VOCABS)), str(rng.choice(inputs.DTYPES))
    check = CHECKS[name][0]
    what = str(rng.choice([*fuzz_rules.RULES])) if name == "rule" else fuzz_sample.order(rng)
    repeats = 1 if name == "draws" else REPEATS
    for _ in range(repeats):
        try:
            check(*((what, rng) if name == "rule" else (rng, what)), vocab, dtype)
        except Exception as error:
            error.add_note(f"{what}, {vocab} tokens, {dtype}")
            raise


def rows_of(name: str) -> int:
    """Returns the number of rows of a case, or the number of its draws."""
    return fuzz_sample.DRAWS if name == "draws" else REPEATS * inputs.BATCH


def mappings() -> int:
    """Returns the number of memory mappings of this process, if the system reports it."""
    maps = Path("/proc/self/maps")
    return maps.read_text().count("\n") if maps.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, metavar="N", help="duration in minutes")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first case")
    options = parser.parse_args()
    names, shares = [*CHECKS], [share for _, share in CHECKS.values()]
    cases, found = collections.Counter(), []
    end = time.monotonic() + 60 * options.minutes
    rng = np.random.default_rng(options.seed)
    bar = tqdm(total=round(60 * options.minutes), unit="s", bar_format="{l_bar}{bar}| {postfix}")
    while (left := end - time.monotonic()) > 0:
        name, seed = str(rng.choice(names, p=shares)), int(rng.integers(2**31))
        try:
            run(name, seed)
        except Exception as error:
            found.append(f'("{name}", {seed}),')
            notes = ", ".join(getattr(error, "__notes__", ()))
            tqdm.write(f"{found[-1]}  # {notes}\n{traceback.format_exc(limit=-3)}")
        cases[name] += 1
        bar.n = min(bar.total, round(bar.total - left))
        bar.set_postfix({**cases, "failures": len(found)})
        if mappings() > MAPPINGS:
            jax.clear_caches()
    bar.close()
    for name, number in cases.items():
        unit = "draws" if name == "draws" else "rows"
        print(f"{name}: {number} cases, {number * rows_of(name):,} {unit}")
    print(f"{len(found)} failures", *found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
