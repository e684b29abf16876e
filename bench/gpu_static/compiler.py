"""Compiles a function for a GPU that need not be present."""

import functools
import math
import re
import resource
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bench.gpu_static import thunks
from bench.gpu_static.chips import CHIPS
from bench.gpu_static.thunks import Thunk
from bench.tpu import hlo
from bench.works import Work

_OPTIONS = {
    "xla_gpu_fail_ptx_compilation_on_register_spilling": True,
    "xla_gpu_deviceless_cub_mode": "DEVICELESS_CUB_NO_FALLBACK",  # for sorts by CUB
}
_NOT_WRITTEN = {"parameter", "bitcast", "tuple", "get-tuple-element", "while", "conditional"}


class Program(NamedTuple):
    """A compiled function.

    Attributes:
      thunks: the steps of the program.
      module: the operations of the program.
      temporaries: the size of the temporary memory in bytes.
      seconds: the processor time to trace and to compile.
    """

    thunks: list[Thunk]
    module: hlo.Module
    temporaries: int
    seconds: float

    @property
    def largest(self) -> str:
        """Returns the shape of the largest array, by elements, that an operation writes."""
        computations = self.module.computations
        operations = [one for of in computations.values() for one in of.values()]
        fused = {name for one in operations for name in one.calls("calls") + one.calls("to_apply")}
        written = " ".join(
            one.result
            for name in computations.keys() - fused
            for one in computations[name].values()
            if one.opcode not in _NOT_WRITTEN
        )
        return max(re.findall(r"\w+\[[\d,]*\]", written), key=elements)


def elements(shape: str) -> int:
    """Returns the number of elements of an array, from the text of its shape."""
    return math.prod(map(int, re.findall(r"\d+", shape.partition("[")[2])))


def compiled(work: Work, chip: str, number: int = 1) -> Program:
    """Compiles a function whose rows are sharded over a number of chips.

    Raises:
      RuntimeError: if a kernel spills registers, or a library would sort.
    """
    start, mesh = _processor_seconds(), _mesh(chip, number)
    place = NamedSharding(mesh, PartitionSpec("batch"))
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), work.arguments
    )
    with tempfile.TemporaryDirectory() as folder, jax.default_device(mesh.devices[0]):
        lowered = jax.jit(work.function).trace(*shapes).lower(lowering_platforms=("cuda",))
        program = lowered.compile({**_OPTIONS, "xla_dump_to": folder})
        seconds = _processor_seconds() - start
        (path,) = Path(folder).glob("*.thunk_sequence.txt")
        sequence = thunks.parse(path.read_text())
    temporaries = program.memory_analysis().temp_size_in_bytes
    return Program(sequence, hlo.parse(str(program.as_text())), temporaries, seconds)


@functools.cache
def _mesh(chip: str, number: int) -> Mesh:
    found = topologies.get_topology_desc(
        platform="cuda", target_config=CHIPS[chip].target_config, topology=f"1x1x{number}"
    )
    return Mesh(np.array(found.devices), "batch")


def _processor_seconds() -> float:
    """Returns the processor time of this process and of its child processes."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
