"""Medians of works that are measured in turn, so that what disturbs one disturbs them all."""

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
"""What the calls of one work may take together."""

LEAST_REPEATS = 3
"""Calls of a work that is too slow for the budget."""

QUICK_MS = 100
"""A call that is quicker notices what the call before it left, in the caches and of its threads."""

REST_S = 0.005
"""How long the threads of some libraries go on spinning after a call."""

T = TypeVar("T")


class Timing(NamedTuple):
    """The time of a call, in milliseconds, and the number of calls."""

    median: float
    quartiles: tuple[float, float]
    repeats: int


def measure(works: Mapping[str, Work | Call], most_repeats: int, label: str) -> dict[str, Timing]:
    """Compiles the works and calls them in rounds, each as often as the budget allows.

    Args:
      works: by their names.
      most_repeats: the calls of a work that is quick.
      label: what the progress bar says.
    """
    keep_memory()
    calls: dict[str, Call] = {}
    repeats: dict[str, int] = {}
    quick: dict[str, bool] = {}
    for name, work in _progress(works.items(), f"{label}, compiling"):
        calls[name] = ready(work)
        first = _milliseconds(calls[name])  # which also warms up
        repeats[name] = min(most_repeats, max(LEAST_REPEATS, int(BUDGET_MS / first)))
        quick[name] = first < QUICK_MS

    rounds = max(repeats.values())
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in _progress(range(rounds), f"{label}, measuring"):
        for name, call in calls.items():
            # True in as many rounds as the work has repeats, and these lie evenly among all.
            if turn * repeats[name] % rounds < repeats[name]:
                if quick[name]:
                    time.sleep(REST_S)
                    _milliseconds(call)
                times[name].append(_milliseconds(call))
    return {name: _timing(values) for name, values in times.items()}


def keep_memory() -> None:
    """Has the C library keep what is freed, as the allocators of servers do.

    It gives large arrays back to the system instead, which clears and maps each page of the next
    one: for a result of the size of the logits that takes several times as long as to compute it,
    and differs from call to call.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc's
        trim_threshold, mmap_max = -1, -4
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)


def compile_seconds(
    function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int
) -> float:
    """The median time of tracing, lowering and compiling a function that was never seen."""
    times = []
    for _ in _progress(range(repeats), "every stage, compiling"):
        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(function).lower(*arguments).compile()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ready(work: Work | Call) -> Call:
    """The call of a work, compiled."""
    if isinstance(work, Call):
        return work
    executable, arguments = compiled(work), work.arguments
    return Call(lambda: executable(*arguments))


def compiled(work: Work) -> jax.stages.Compiled:
    """The program of a work; works that differ in values alone share it."""
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
