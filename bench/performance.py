"""The performance report: the bars, the peers, the temporaries and the scaling, in one process."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from bench import logits, markdown, peers, plot, report
from bench.bars import Line, bars
from bench.memory import Temporaries, memory
from bench.scaling import OURS, Point, scaling, spreads
from bench.sizes import Sizes
from bench.timing import Timing, measure


class Performance(NamedTuple):
    """The results in the report.

    Attributes:
      sizes: the sizes of the measurements.
      lines: the bars.
      timings: the timings from which the bars are computed.
      absent: the peers that do not run here, with the reasons.
      peers: the timings of jaxsample and of each peer, by the batch size.
      memory: the temporaries.
      scaling: the sweeps, "vocab" and "batch".
    """

    sizes: Sizes
    lines: list[Line]
    timings: dict[str, Timing]
    absent: dict[str, str]
    peers: dict[int, dict[str, Timing]]
    memory: list[Temporaries]
    scaling: dict[str, list[Point]]


def measured(sizes: Sizes) -> Performance:
    """Measures all parts of the report."""
    present, absent = peers.present()
    lines, timings = bars(sizes)
    beside = {}
    for batch in sizes.peer_batches:
        x = logits.peaked(batch, sizes.vocab, "float32")
        works = peers.ours(x) | {name: peer.work(x) for name, peer in present.items()}
        beside[batch] = measure(works, sizes.repeats, f"peers, {batch} rows")
    sweeps = scaling(sizes, present)
    return Performance(sizes, lines, timings, absent, beside, memory(sizes), sweeps)


def text(found: Performance, command: str, plot: str) -> str:
    """Returns the report in Markdown.

    Args:
      found: the results.
      command: the command that measured them.
      plot: the file name of the plot, which is in the folder of the report.
    """
    sections = [
        markdown.head(command),
        markdown.bars(found.lines, found.sizes),
        markdown.beside(found.peers, found.absent, found.sizes),
        markdown.temporaries(found.memory, found.sizes),
        markdown.sweeps(found.scaling, plot),
    ]
    return "\n\n".join(sections) + "\n"


def write(found: Performance, command: str, path: Path) -> list[Path]:
    """Writes JSON, Markdown, PNG and SVG: `path` with the suffix of each."""
    data, words, *plots = (path.with_suffix(f".{kind}") for kind in ("json", "md", "png", "svg"))
    data.write_text(json.dumps(document(found), indent=2) + "\n")
    words.write_text(text(found, command, plots[0].name))
    plot.draw(found.scaling, plots)
    return [data, words, *plots]


def document(found: Performance) -> dict[str, Any]:
    """Returns all results and the environment that they were measured in, ready for JSON."""
    return report.provenance() | {
        "sizes": found.sizes._asdict(),
        "peer_versions": peers.versions(),
        "absent_peers": found.absent,
        "bars": [line._asdict() | {"verdict": line.verdict} for line in found.lines],
        "bars_milliseconds": _milliseconds(found.timings),
        "peers_milliseconds": {
            batch: _milliseconds(timings) for batch, timings in found.peers.items()
        },
        "memory": [temporaries._asdict() for temporaries in found.memory],
        "scaling": {
            sweep: [
                point._asdict()
                | {"timings": _milliseconds(point.timings)}
                | {"nanoseconds_a_logit": {name: point.nanoseconds(name) for name in OURS}}
                for point in points
            ]
            for sweep, points in found.scaling.items()
        },
        "spreads": spreads(found.scaling),
    }


def _milliseconds(timings: dict[str, Timing]) -> dict[str, Any]:
    return {name: timing._asdict() for name, timing in timings.items()}
