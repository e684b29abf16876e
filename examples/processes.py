"""Runs a function in several processes of this machine; when one of them fails, all of them end.

JAX by itself ends a process that has lost another one too, but at worst with a C++ stack trace.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any


class Failed(Exception):
    """A process has failed; the message says which one and how."""


def run(function: Callable[..., None], arguments: Mapping[str, tuple[Any, ...]]) -> None:
    """Calls a function once for each of the named arguments, each time in a process of its own.

    Raises:
      Failed: One of the processes has failed, and none of them runs any more.
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


def _call(function: Callable[..., None], *args: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and ends this process
    threading.Thread(target=_follow_parent, daemon=True).start()
    function(*args)


def _follow_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _watch(processes: list[BaseProcess]) -> None:
    """Waits for all to finish or one to fail."""
    running = {process.sentinel: process for process in processes}
    while running:
        ended = [running.pop(sentinel) for sentinel in connection.wait(running)]
        for process in ended:
            process.join()
        if failed := [process for process in ended if process.exitcode]:
            others = "; the others were stopped" if len(processes) > 1 else ""
            raise Failed(_end(min(failed, key=_lost)) + others)


def _lost(process: BaseProcess) -> bool:
    """Whether this end may come from another's: by an error, or by JAX, which aborts."""
    return process.exitcode > 0 or process.exitcode == -signal.SIGABRT


def _end(process: BaseProcess) -> str:
    """How a process failed."""
    if process.exitcode > 0:
        return f"{process.name} ended with status {process.exitcode}"
    name = signal.Signals(-process.exitcode).name
    why = ", as JAX does when another one is gone or silent" if name == "SIGABRT" else ""
    return f"{process.name} was ended by {name}{why}"
