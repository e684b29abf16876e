"""Median times of functions that are called in turns, so that disturbances affect all of them."""

import ctypes
import functools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from bench.works import Call, Work

BUDGET_MS = 2000
"""The time budget for all calls of one function."""

LEAST_REPEATS = 3
"""The number of calls of a function that is too slow for the budget."""

QUICK_MS = 100
"""The time below which a call is affected by the caches and threads of the previous call."""

REST_S = 0.005
"""The time for which the threads of some libraries keep spinning after a call."""

T = TypeVar("T")


class Timing(NamedTuple):
    """The time of a call in milliseconds, and the number of calls."""

    median: float
    quartiles: tuple[float, float]
    repeats: int


def measure(works: Mapping[str, Work | Call], most_repeats: int, label: str) -> dict[str, Timing]:
    """Compiles the works and calls them in rounds, each as often as the budget allows.

    Args:
      works: the works by name.
      most_repeats: the maximum number of calls.
      label: the label of the progress bar.
    """
    keep_memory()
    calls: dict[str, Call] = {}
    repeats: dict[str, int] = {}
    quick: dict[str, bool] = {}
    for name, work in _progress(works.items(), f"{label}, compiling"):
        calls[name] = ready(work)
        first = _milliseconds(calls[name])  # also warms up
        repeats[name] = min(most_repeats, max(LEAST_REPEATS, int(BUDGET_MS / first)))
        quick[name] = first < QUICK_MS

    rounds = max(repeats.values())
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in _progress(range(rounds), f"{label}, measuring"):
        for name, call in calls.items():
            # True in `repeats[name]` rounds, evenly spaced.
            if turn * repeats[name] % rounds < repeats[name]:
                if quick[name]:
                    time.sleep(REST_S)
                    _milliseconds(call)
                times[name].append(_milliseconds(call))
    return {name: _timing(values) for name, values in times.items()}


def keep_memory() -> None:
    """Makes the C library keep freed memory, as the allocators of servers do.

    By default it returns large arrays to the system, which clears and maps each page of the next
    one. For a result of the size of the logits this takes several times as long as computing it,
    and the time varies from call to call.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        trim_threshold, mmap_max = -1, -4
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)


def compile_seconds(
    function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int
) -> float:
    """Returns the median time to trace, lower and compile a function without any cache."""
    times = []
    for _ in _progress(range(repeats), "every stage, compiling"):
        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(function).lower(*arguments).compile()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ready(work: Work | Call) -> Call:
    """Compiles a work and returns its call."""
    if isinstance(work, Call):
        return work
    executable, arguments = compiled(work), work.arguments
    return Call(lambda: executable(*arguments))


def compiled(work: Work) -> jax.stages.Compiled:
    """Compiles a work; works that differ only in values share a program."""
    shapes = jax.eval_shape(lambda *arguments: arguments, *work.arguments)
    leaves, structure = jax.tree.flatten(shapes)
    return _compiled(work.function, structure, *leaves)


@functools.cache
def _compiled(
    function: Callable[..., Any], structure: Any, *shapes: jax.ShapeDtypeStruct
) -> jax.stages.Compiled:
    return jax.jit(function).lower(*jax.tree.unflatten(structure, shapes)).compile()


def _milliseconds(call: Call) -> float:
    call.prepare()
    start = time.perf_counter()
    jax.block_until_ready(call.run())
    return (time.perf_counter() - start) * 1000


def _timing(times: list[float]) -> Timing:
    low, median, high = map(float, np.quantile(times, (0.25, 0.5, 0.75)))
    return Timing(median, (low, high), len(times))


def _progress(items: Iterable[T], label: str) -> Iterable[T]:
    return tqdm(items, label, leave=False, disable=None)
