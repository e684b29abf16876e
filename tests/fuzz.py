"""Tries the library on random inputs for some minutes: `python -m tests.fuzz --minutes 5`.

Random shapes, dtypes, logits (ties, infinities, NaN, subnormal and huge numbers), parameters in and
out of range, texts, states, orders and `vmap`s: rules against their definitions in float64,
`sample` against the functions that it stands for, bit for bit, and draws against the softmax.

A failure is printed as a line for tests/test_fuzz.py that runs the same case again.
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
"""Batches that a program is tried on, since it takes longer to compile than to run."""

MAPPINGS = 30_000
"""Of memory: compiled programs hold some each, and Linux grants a process 65,530."""

CHECKS = {
    "sample": (fuzz_sample.check_sample, 0.45),
    "laws": (fuzz_sample.check_laws, 0.1),
    "draws": (fuzz_sample.check_draws, 0.05),
    "rule": (fuzz_rules.check, 0.4),
}
"""By name, what is checked and how often, as a share of all cases."""


def run(name: str, seed: int) -> None:
    """Runs a case: a program on batches of random rows.

    Raises:
      AssertionError: what was found does not hold.
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
    """The rows that a case looks at, or the draws that it makes."""
    return fuzz_sample.DRAWS if name == "draws" else REPEATS * inputs.BATCH


def mappings() -> int:
    """The memory mappings of this process, where the system tells."""
    maps = Path("/proc/self/maps")
    return maps.read_text().count("\n") if maps.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, metavar="N", help="how long")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first case")
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
