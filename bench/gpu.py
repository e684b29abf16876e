"""Times the samplers on a GPU by its own clock: `python -m bench.gpu`.

A call of small kernels spends longer on launching them than on running them. So both the time of a
call and the total time and number of its kernels are measured.
"""

import argparse
import functools
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData
from tqdm import tqdm

from bench import logits, markdown, peers, report
from bench.__main__ import DTYPES, RESULTS, Parser, file_at, out_path, whole_number
from bench.peers import PEERS
from bench.report import digits
from bench.timing import Timing, compiled, measure, ready
from bench.works import BASELINES, Call, Case, Work, works

ARGMAX = "jnp.argmax"
PEER = "FlashInfer"
CALLS = 5
"""The number of calls under the profiler."""

REPEATS = 100


class Kernels(NamedTuple):
    """The kernels that a GPU runs during a call.

    Attributes:
      microseconds: the total duration of its operations.
      operations: the number of kernels and copies.
    """

    microseconds: float
    operations: float


class Found(NamedTuple):
    """The time of a function: of its kernels, and of the whole call."""

    gpu: Kernels
    call: Timing


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the requested measurements, prints the tables and writes them."""
    options = parse(arguments)
    if jax.default_backend() != "gpu":
        sys.exit(f"python -m bench.gpu: needs a GPU, and JAX runs on {jax.default_backend()}")
    missing = peers.present()[1].get(PEER, "")
    path = file_at(options.out, "-gpu")
    found: dict[Case, dict[str, Found]] = {}
    for case in itertools.starmap(Case, itertools.product(options.batch, options.vocab, DTYPES)):
        found[case] = measured(case, with_peer=not missing)
        print(f"{table(case, found[case])}\n", flush=True)
        path.write_text(json.dumps(document(found, missing), indent=2) + "\n")
        path.with_suffix(".md").write_text(text(found, missing))
    print(f"written to {path}")


def measured(case: Case, *, with_peer: bool) -> dict[str, Found]:
    """Returns the functions of a case, with FlashInfer if it is installed."""
    plain = works(case)
    given: dict[str, Work | Call] = {**plain, **with_kernels(plain)}
    if with_peer and case.dtype == "float32":  # FlashInfer takes only float32 logits
        name = f"{PEER}, T {peers.T}, k {peers.K}, p {peers.P}".replace("0.", ".")
        given[name] = PEERS[PEER].work(logits.peaked(*case))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, (work for work in given.values() if isinstance(work, Work))))
    timings = measure(given, REPEATS, str(case))
    profiled = tqdm(given.items(), f"{case}, profiling", leave=False, disable=None)
    return {name: Found(kernels(ready(work)), timings[name]) for name, work in profiled}


def with_kernels(plain: Mapping[str, Work]) -> dict[str, Work]:
    """Returns the works of jaxsample with the kernels of Mosaic GPU."""
    return {
        f"{name}, kernels": work._replace(
            function=functools.partial(work.function, implementation="pallas")
        )
        for name, work in plain.items()
        if name not in BASELINES
    }


def kernels(call: Call) -> Kernels:
    """Returns the kernels of a call, averaged over a few calls."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                call.prepare()
                jax.block_until_ready(call.run())
        (path,) = Path(folder).rglob("*.xplane.pb")
        nanoseconds = durations(ProfileData.from_file(str(path)))
    return Kernels(sum(nanoseconds) / 1000 / CALLS, len(nanoseconds) / CALLS)


def durations(profile: Any) -> list[float]:
    """Returns the durations in nanoseconds of all events on the streams of the GPUs."""
    return [
        event.duration_ns
        for plane in profile.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]


def text(found: Mapping[Case, Mapping[str, Found]], missing: str) -> str:
    """Returns the tables in Markdown.

    Args:
      found: the results by case and name.
      missing: the reason why FlashInfer was not measured, or the empty string.
    """
    head = f"""# On a GPU

{report.device_name()}, {report.provenance()["date"][:10]}. {markdown.versions()}.

    pip install -e ".[bench]" && python -m bench.gpu

GPU: the total time of kernels and copies in microseconds, by the profiler. Call: the median time of
interleaved calls, which includes the time of the host to launch kernels and to test conditions. In
each row 12 tokens have .95 of the probability, unless a line says that rows are flat. Kernels:
`implementation="pallas"`. {PEER} (`pip install flashinfer-python`) copies its tokens to the host,
and has no log-probs and no min-p."""
    if missing:
        head += f"\n\nNot measured: {PEER} ({missing})."
    return "\n\n".join([head, *(table(*of) for of in found.items())]) + "\n"


def table(case: Case, found: Mapping[str, Found]) -> str:
    """Returns a table with a line for each function."""
    argmax = found[ARGMAX].gpu.microseconds
    rows = (
        (
            name,
            digits(one.gpu.microseconds),
            digits(one.gpu.microseconds / argmax),
            digits(one.gpu.operations),
            digits(one.call.median * 1000),
        )
        for name, one in found.items()
    )
    headers = ["", "GPU µs", f"of {ARGMAX}", "operations", "call µs"]
    return f"## {case}\n\n{markdown.table(headers, rows)}"


def document(found: Mapping[Case, Mapping[str, Found]], missing: str) -> dict[str, Any]:
    """Returns all results and the environment that they were measured in, ready for JSON."""
    return report.provenance() | {
        "peer_versions": peers.versions(),
        "absent_peers": {PEER: missing} if missing else {},
        "tables": [
            {
                **case._asdict(),
                "works": {
                    name: {"gpu": one.gpu._asdict(), "call_milliseconds": one.call._asdict()}
                    for name, one in of.items()
                },
            }
            for case, of in found.items()
        ],
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options."""
    parser = Parser("python -m bench.gpu", description=__doc__)
    rows, tokens = whole_number(1), whole_number(64, 2**21)
    parser.add_argument("--batch", type=rows, nargs="+", default=[128], metavar="N", help="rows")
    parser.add_argument(
        "--vocab", type=tokens, nargs="+", default=[128_256], metavar="N", help="tokens"
    )
    parser.add_argument(
        "--out", type=out_path, default=RESULTS, metavar="PATH", help="a JSON file, or a folder"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
