"""Programs that XLA compiles for NVIDIA GPUs of three generations, on a machine without one."""

import importlib.util
from typing import NamedTuple

import jax.numpy as jnp
import pytest
from jax import lax
from rows import exhaustive

from bench.gpu_static.__main__ import table
from bench.gpu_static.chips import CHIPS
from bench.gpu_static.compiler import compiled, elements
from bench.gpu_static.programs import BITMASK, JOINT, PENALTIES, SPECULATIVE, program
from bench.gpu_static.thunks import launches, parse
from bench.works import Case, Work

pytestmark = pytest.mark.gpu_aot

needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="the extra gpu is not installed"
)

ROWS, VOCAB = 128, 128256


class Bounds(NamedTuple):
    """The launches if the candidates settle every row, all launches, and the temporaries in MB."""

    settled: int
    all: int
    temporaries: float


# For A100, H200 and B200, as measured with jax 0.12.0.1. Searched rows are copied with their
# weights, 32 at a time; penalised logits are written once.
BOUNDS = {
    ("greedy", "float32"): [(6, 6, 1.3)] * 3,
    ("greedy", "bfloat16"): [(5, 5, 0.52)] * 3,
    ("categorical", "float32"): [(9, 9, 0.78)] * 3,
    ("categorical", "bfloat16"): [(9, 9, 0.65)] * 3,
    ("T .8", "float32"): [(14, 14, 1.1), (13, 13, 0.78), (13, 13, 0.78)],
    ("top-k 64", "float32"): [(23, 67, 19), (22, 66, 19), (22, 66, 19)],
    ("top-p .95", "float32"): [(28, 78, 35), (25, 73, 35), (25, 73, 35)],
    (JOINT, "float32"): [(28, 90, 37), (25, 86, 37), (25, 86, 37)],
    (JOINT, "bfloat16"): [(28, 93, 28), (25, 88, 28), (25, 88, 30)],
    (BITMASK, "float32"): [(32, 96, 38), (27, 89, 38), (28, 91, 44)],
    (PENALTIES, "float32"): [(32, 94, 103), (29, 90, 103), (29, 90, 103)],
    (SPECULATIVE, "float32"): [(33, 95, 37), (31, 92, 37), (32, 93, 37)],
}
SHORT = ("greedy", "categorical")  # by compile time
UNSEARCHED = (*SHORT, "T .8")
DEFAULT = [("T .8", "float32", "B200"), (JOINT, "float32", "H200")]
DEFAULT += [(name, "float32", chip) for name in SHORT for chip in CHIPS]
DEFAULT += [(name, "bfloat16", "A100") for name in SHORT]


def cases():
    for (name, dtype), of_chips in BOUNDS.items():
        for chip, bounds in zip(CHIPS, of_chips, strict=True):
            marked = pytest.param if (name, dtype, chip) in DEFAULT else exhaustive
            yield marked(name, dtype, chip, Bounds(*bounds))


@needs_plugin
@pytest.mark.parametrize(("name", "dtype", "chip", "bounds"), [*cases()])
def test_launches_and_memory_are_bounded(name, dtype, chip, bounds):
    """The compilation itself fails if a kernel spills registers or a library sorts."""
    found = compiled(program(name, Case(ROWS, VOCAB, dtype)), chip)
    print(table({f"{name}, {dtype}, {chip}": found}))
    settled, every = (len(launches(found.thunks, settled=way)) for way in (True, False))
    temporaries, largest = found.temporaries, found.largest
    assert settled <= bounds.settled
    assert every <= bounds.all
    assert temporaries <= bounds.temporaries * 1e6
    if name != PENALTIES:
        most = 1 / 64 if name in UNSEARCHED else 32 / ROWS  # block maxima, or searched rows
        assert elements(largest) <= most * ROWS * VOCAB, largest


@needs_plugin
def test_chips_that_share_a_batch_write_no_array_of_the_size_of_their_rows():
    """Sharded rows are searched together, without copying them."""
    found = compiled(program(JOINT, Case(2 * ROWS, VOCAB, "float32")), "H200", number=2)
    print(table({f"{JOINT}, on two chips": found}))
    largest, temporaries = found.largest, found.temporaries
    assert elements(largest) <= ROWS * VOCAB / 16, largest
    assert temporaries < 6e6


@needs_plugin
def test_a_copy_is_detected():
    one = compiled(Work(lambda x: x > 0, (jnp.zeros((8, 1024)),)), "H200")
    assert one.largest == "pred[8,1024]"


@needs_plugin
def test_a_sort_of_a_library_is_detected():
    with pytest.raises(RuntimeError, match="CUB"):
        compiled(Work(jnp.sort, (jnp.zeros((ROWS, 2**15)),)), "H200")


@needs_plugin
def test_spilled_registers_are_detected():
    def sums(x):  # more numbers than a thread has registers
        xs = tuple(x * i for i in range(130))

        def combine(a, b):
            return tuple(p * q + r for p, q, r in zip(a, b, (*b[1:], b[0]), strict=True))

        return lax.reduce(xs, (jnp.float32(0),) * len(xs), combine, (1,))

    with pytest.raises(RuntimeError, match="spilling"):
        compiled(Work(sums, (jnp.zeros((8, 1024)),)), "H200")


SEQUENCE = """001: kCustomKernel [source       | next=004 (1)] loop_fusion grid: [1, 1, 1]
004: kConditional  [prev=001 (1) | next=005 (1)]
  branch_0:
    No thunks.  branch_1:
    002: kCustomKernel [source       | next=003 (1)] wrapped_sine grid: [8, 1, 1]
    003: kCopy         [prev=002 (1) | sink        ] kCopy
005: kWhile        [prev=004 (1) | next=014 (1)]
condition:
    006: kCustomKernel [source | sink] wrapped_compare grid: [1, 1, 1]
  body:
    007: kAsyncStart   [source       | next=013 (1)] stream=computation_stream[0], async_id=53
        009: kDynamicSliceFusion [source | sink] params=1, results=1
            008: kCopy [source | sink] kCopy
    012: kConditional  [prev=007 (1) | next=013 (1)]
      false_branch:
        010: kCopy [source | sink] kCopy
      true_branch:
        011: kCopy [source | sink] kCopy
    013: kAsyncDone    [prev=012 (1) | sink        ] async_id=53
014: kCustomKernel [prev=005 (1) | sink        ] loop_add_fusion grid: [1, 1, 1]
"""


def test_launches_are_counted():
    thunks = parse(SEQUENCE)
    settled = [launch.kind for launch in launches(thunks, settled=True)]
    assert settled == ["CustomKernel", "Conditional", "While", "CustomKernel", "CustomKernel"]
    assert len(launches(thunks, settled=False)) == 11
