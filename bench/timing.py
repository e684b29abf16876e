"""Medians of works that are measured in turn, so that what disturbs one disturbs them all."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from bench.works import Work

BUDGET_MS = 2000
"""What the calls of one work may take together."""

LEAST_REPEATS = 3
"""Calls of a work that is too slow for the budget."""

T = TypeVar("T")


class Timing(NamedTuple):
    """How long a call takes, in milliseconds, and how many were measured."""

    median: float
    quartiles: tuple[float, float]
    repeats: int


def measure(works: Mapping[str, Work], most_repeats: int, label: str) -> dict[str, Timing]:
    """Compiles the works and calls them in rounds, each as often as the budget allows.

    Args:
      works: by their names.
      most_repeats: the calls of a work that is quick.
      label: what the progress bar says.
    """
    calls: dict[str, Callable[[], Any]] = {}
    repeats: dict[str, int] = {}
    for name, work in _progress(works.items(), f"{label}, compiling"):
        calls[name] = _compiled(work)
        affordable = int(BUDGET_MS / _milliseconds(calls[name]))  # the first call also warms up
        repeats[name] = min(most_repeats, max(LEAST_REPEATS, affordable))

    rounds = max(repeats.values())
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in _progress(range(rounds), f"{label}, measuring"):
        for name, call in calls.items():
            # True in as many rounds as the work has repeats, and these lie evenly among all.
            if turn * repeats[name] % rounds < repeats[name]:
                times[name].append(_milliseconds(call))
    return {name: _timing(values) for name, values in times.items()}


def _compiled(work: Work) -> Callable[[], Any]:
    executable = jax.jit(work.function).lower(*work.arguments).compile()
    return lambda: executable(*work.arguments)


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return (time.perf_counter() - start) * 1000


def _timing(times: list[float]) -> Timing:
    low, median, high = map(float, np.quantile(times, (0.25, 0.5, 0.75)))
    return Timing(median, (low, high), len(times))


def _progress(items: Iterable[T], label: str) -> Iterable[T]:
    return tqdm(items, label, leave=False, disable=None)
