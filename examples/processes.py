"""Runs a function in several processes on this machine; if one fails, all processes end.

JAX also ends a process that has lost another one, but in some cases only with a C++ stack trace.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, TextIO

FAILED = 2
"""The exit status of a process that has printed its error."""


class Failed(Exception):
    """A process has failed; the message gives the reason."""


def run(function: Callable[..., None], arguments: Mapping[str, tuple[Any, ...]]) -> None:
    """Calls a function once for each of the named arguments, each in its own process.

    Raises:
      Failed: One of the processes has failed, and all have ended. If the function raises it, the
        process prints only its message.
    """
    spawn = multiprocessing.get_context("spawn")
    started = []
    try:
        for name, args in arguments.items():
            process = spawn.Process(target=_call, args=(function, *args), name=name)
            process.start()
            started.append(process)
        _watch(started)
    finally:
        for process in started:
            process.kill()  # JAX catches SIGTERM
            process.join()


def tell(line: str, file: TextIO | None = None) -> None:
    """Prints a line in one write, since several processes print."""
    print(f"{line}\n", end="", file=file, flush=True)


def _call(function: Callable[..., None], *args: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent also gets it, and ends this process
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        function(*args)
    except Failed as failure:
        tell(f"{multiprocessing.current_process().name}: error: {failure}", sys.stderr)
    except Exception:
        traceback.print_exc()
    else:
        return
    os._exit(FAILED)  # at a normal exit JAX would wait for the others, which may be gone


def _follow_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _watch(processes: list[BaseProcess]) -> None:
    """Waits until all processes finish or one fails."""
    running = {process.sentinel: process for process in processes}
    while running:
        ended = [running.pop(sentinel) for sentinel in connection.wait(running)]
        for process in ended:
            process.join()
        if failed := [process for process in ended if process.exitcode]:
            others = "; the others were stopped" if len(processes) > 1 else ""
            raise Failed(_end(max(failed, key=_suspicion)) + others)


def _by_jax(process: BaseProcess) -> bool:
    """Returns whether JAX ended the process: with status 1 in JAX 0.9, later with SIGABRT."""
    return process.exitcode in (1, -signal.SIGABRT)


def _suspicion(process: BaseProcess) -> int:
    """Returns a rank that is highest for a process that failed first, not because of another."""
    return 0 if _by_jax(process) else 1 if process.exitcode > 0 else 2


def _end(process: BaseProcess) -> str:
    """Returns how a process failed."""
    status, why = process.exitcode, ""
    how = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
    if _by_jax(process):
        why = ", as JAX ends one that has lost another"
    return f"{process.name} ended {how}{why}"
