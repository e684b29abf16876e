"""The plot of the report: the time of a draw in calls of `jnp.argmax`, by size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import peers
from bench.scaling import CATEGORICAL, GREEDY, Point

# The colours of Okabe and Ito, which colour-blind readers can distinguish; each peer also has its
# own marker.
LOOKS: dict[str, dict[str, Any]] = {
    peers.OURS: {"color": "#0072B2", "marker": "o", "linewidth": 3},
    CATEGORICAL: {"color": "#0072B2", "marker": "", "linestyle": "--"},
    GREEDY: {"color": "#0072B2", "marker": "", "linestyle": ":"},
    "sort stack": {"color": "#000000", "marker": "s"},
    "Hugging Face": {"color": "#D55E00", "marker": "^"},
    "llama.cpp": {"color": "#009E73", "marker": "D"},
    "llama.cpp and fill": {"color": "#009E73", "marker": "v", "linestyle": "-."},
    "tunix": {"color": "#E69F00", "marker": "P"},
    "maxtext": {"color": "#CC79A7", "marker": "X"},
    "tpu-inference": {"color": "#56B4E9", "marker": "*"},
}

LABELS = {
    peers.OURS: "jaxsample, k, p, min-p",
    CATEGORICAL: "jaxsample, categorical",
    GREEDY: "jaxsample, greedy",
}


def draw(sweeps: Mapping[str, Sequence[Point]], files: Sequence[Path]) -> None:
    """Writes the plot to files, PNG or SVG by their suffix."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, "vocabulary", [point.vocab for point in sweeps["vocab"]], sweeps["vocab"])
    _panel(right, "rows", [point.batch for point in sweeps["batch"]], sweeps["batch"])
    left.set_ylabel("time of a call, in calls of jnp.argmax")
    left.set_title(f"{sweeps['vocab'][0].batch} rows")
    right.set_title(f"{sweeps['batch'][0].vocab:,} tokens")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)

    with mpl.rc_context({"svg.hashsalt": "jaxsample", "svg.fonttype": "none"}):
        for file in files:
            figure.savefig(file, dpi=150)


def _panel(axes: Axes, label: str, sizes: Sequence[int], points: Sequence[Point]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_xticks(sizes, [_short(size) for size in sizes])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(1, color="gray", linewidth=1)
    for name, look in LOOKS.items():
        seen = [(s, p.timings) for s, p in zip(sizes, points, strict=True) if name in p.timings]
        ratios = [t[name].median / t["jnp.argmax"].median for _, t in seen]
        if seen:
            axes.plot([s for s, _ in seen], ratios, label=LABELS.get(name, name), **look)


def _short(size: int) -> str:
    """Returns a number in short form, such as 32, 4k or 1M."""
    for unit, letter in ((2**20, "M"), (2**10, "k")):
        if size >= unit:
            return f"{size / unit:.0f}{letter}"
    return str(size)
