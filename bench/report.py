"""The timings as Markdown tables and as JSON documents."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from tabulate import tabulate

import jaxsample
from bench.timing import Timing
from bench.works import BASELINES, Case

Timings = Mapping[str, Timing]


def headline(rules: bool) -> str:
    """Returns the device and versions, and how to read the tables."""
    measured_on = ", ".join([device_name(), *(f"{name} {v}" for name, v in versions().items())])
    if rules:
        return f"{measured_on}\nMedians of a call, and what part of jnp.argmax they take."
    return f"{measured_on}\nMedians of a call; 2x is twice as fast as the baseline above it."


def table(case: Case, timings: Timings) -> str:
    """Returns a table of the median of each sampler and its speedup over each baseline."""
    ratios = times_as_fast_as(timings)
    medians = [f"{name}\n{digits(timings[name].median)} ms" for name in BASELINES]
    lines = [
        [name, digits(timings[name].median), *(f"{digits(r)}x" for r in of.values())]
        for name, of in ratios.items()
    ]
    text = tabulate(
        lines,
        headers=["", "median ms", *medians],
        colalign=["left", *["right"] * (1 + len(BASELINES))],
        disable_numparse=True,
    )
    return f"{case}\n\n{text}"


def rules_table(case: Case, timings: Timings) -> str:
    """Returns a table of the median of each rule and its ratio to `jnp.argmax`."""
    lines = [
        [name, digits(timings[name].median), digits(ratio)]
        for name, ratio in to_argmax(timings).items()
    ]
    text = tabulate(
        lines,
        headers=["", "median ms", "of jnp.argmax"],
        colalign=["left", "right", "right"],
        disable_numparse=True,
    )
    return f"{case}\n\n{text}"


def document(tables: Mapping[Case, Timings], ratios: Callable[[Timings], Any]) -> dict[str, Any]:
    """Returns all timings and the environment that they were measured in, ready for JSON."""
    return provenance() | {
        "tables": [
            {
                **case._asdict(),
                "milliseconds": {name: timing._asdict() for name, timing in timings.items()},
                ratios.__name__: ratios(timings),
            }
            for case, timings in tables.items()
        ],
    }


def provenance() -> dict[str, Any]:
    """Returns the date, the versions and the device of the measurement."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "device": device(),
    }


def to_argmax(timings: Timings) -> dict[str, float]:
    """Returns the time of each function in calls of `jnp.argmax`."""
    argmax = timings["jnp.argmax"].median
    return {name: timing.median / argmax for name, timing in timings.items()}


def times_as_fast_as(timings: Timings) -> dict[str, dict[str, float]]:
    """Returns the speedup of each sampler over each baseline."""
    return {
        name: {baseline: timings[baseline].median / timing.median for baseline in BASELINES}
        for name, timing in timings.items()
        if name not in BASELINES
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python, JAX and jaxsample."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "jaxsample": jaxsample.__version__,
    }


def device() -> dict[str, Any]:
    """Returns the device, and the processor that launches its programs."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def device_name() -> str:
    """Returns the device in one or two words; JAX calls every processor "cpu"."""
    found = device()
    return str(found["processor"] if found["platform"] == "cpu" else found["kind"])


def _processor() -> str:
    # Python does not report the model on Linux; Linux reports it only on x86.
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (models or [platform.processor() or platform.machine()])[0]


def digits(value: float) -> str:
    """Returns a number with three significant digits and without an exponent."""
    return f"{float(f'{value:.3g}'):g}"
