"""The kernels of Mosaic GPU, compiled for NVIDIA GPUs of two generations, without one."""

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

# Launches where the candidates settle every row, and in all, and the registers of each kernel.
# A thread has 255, and what needs more spills.
CASES = {
    "categorical": (7, 7, {"scan": 168}),
    "T .8": (12, 12, {"scan": 168}),
    "top-k 64": (24, 24, {"search": 232}),
    "top-p .95": (33, 37, {"row_masses": 128, "search": 232}),
    JOINT: (35, 39, {"row_masses": 128, "search": 232}),
}
VOCABULARIES = [(128_256, "float32"), (151_936, "bfloat16")]  # the second has a short chunk


def counted(chip, name, vocab, dtype):
    """Launches and kernels of a program, compiled by this process."""
    found = compiled(program(name, Case(128, vocab, dtype), "pallas"), chip)
    text = table({f"{name}, {vocab} {dtype}, {chip}": found})
    settled, every = (len(launches(found.thunks, settled=way)) for way in (True, False))
    return text, settled, every, found.kernels


@pytest.mark.parametrize("chip", ["H200", "B200"])
@pytest.mark.parametrize(
    ("vocab", "dtype"), [VOCABULARIES[0], *(exhaustive(*of) for of in VOCABULARIES[1:])]
)
def test_launches_and_registers_are_bounded(chip, vocab, dtype):
    """No kernel spills, and no product is contracted with a sum, as none is by XLA.

    A process compiles kernels for one chip.
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
