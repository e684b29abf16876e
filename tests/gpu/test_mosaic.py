"""The kernels of Mosaic GPU, compiled for two generations of NVIDIA GPUs without a GPU."""

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import jax
import pytest
from rows import exhaustive

from bench.gpu_static.__main__ import table
from bench.gpu_static.compiler import compiled
from bench.gpu_static.programs import JOINT, program
from bench.gpu_static.thunks import launches
from bench.works import Case

pytestmark = [
    pytest.mark.gpu_aot,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda13_plugin") is None,
        reason="the extra gpu is not installed",
    ),
    pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="kernels of a GPU need JAX 0.11"),
]

# Bounds of the launches for settled rows, of all launches, and of the registers of each kernel. A
# thread has at most 255 registers.
CASES = {
    "categorical": (6, 6, {"scan": 168}),
    "T .8": (11, 11, {"scan": 168}),
    "top-k 64": (23, 23, {"search": 232}),
    "top-p .95": (30, 34, {"row_masses": 128, "search": 232}),
    JOINT: (29, 33, {"row_masses": 128, "search": 232}),
}
VOCABULARIES = [(128_256, "float32"), (151_936, "bfloat16")]  # the second has a short chunk


def counted(chip, name, vocab, dtype):
    """Returns the launches and kernels of a program, compiled in this process."""
    found = compiled(program(name, Case(128, vocab, dtype), "pallas"), chip)
    text = table({f"{name}, {vocab} {dtype}, {chip}": found})
    settled, every = (len(launches(found.thunks, settled=way)) for way in (True, False))
    return text, settled, every, found.kernels


@pytest.mark.parametrize("chip", ["H200", "B200"])
@pytest.mark.parametrize(
    ("vocab", "dtype"), [VOCABULARIES[0], *(exhaustive(*of) for of in VOCABULARIES[1:])]
)
def test_launches_and_registers_are_bounded(chip, vocab, dtype):
    """No kernel spills registers or has a fused multiply-add, which XLA does not use either.

    Each chip has a process of its own, since Mosaic GPU compiles for one chip in each process.
    """
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawned) as process:
        for name, (settled_bound, every_bound, registers) in CASES.items():
            found = process.submit(counted, chip, name, vocab, dtype).result()
            text, settled, every, kernels = found
            print(text)
            assert settled <= settled_bound
            assert every <= every_bound
            assert kernels.keys() == registers.keys()
            for kernel, bound in registers.items():
                assert kernels[kernel].registers <= bound
                assert kernels[kernel].spilled == 0
                assert kernels[kernel].contracted == 0
