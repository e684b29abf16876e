"""Programs of the TPU compiler for every function, for chips of three generations."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from catalogue import NAMES, shapes
from hlo import bytes_moved
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from meshes import sharded_map, spec_of
from rows import exhaustive
from topologies import compiled, devices, settled

from bench.tpu import hlo
from jaxsample._core._source import CHUNK
from jaxsample._tpu import blocks, search
from jaxsample._tpu import rows as kernels

pytestmark = pytest.mark.tpu_aot

GENERATIONS = ("v5e:2x2", "v6e:2x2", "tpu7x:2x2x1")
VOCABS = (32000, 128256, 151936, 262144)
DTYPES = ("float32", "bfloat16")
ROWS = 32
MANY_ROWS = 128
FEW_ROWS = 8  # to count bytes per row: 16 and 32 rows differ by less than 1%
CHEAP = ("greedy_sample", "categorical_sample")
# Bounds of the temporaries as multiples of the logits, for functions that write such arrays.
MOST = {
    "sample": 2,
    "sample, masks": 6,
    "sample, outputs": 2,
    "sample, full call": 9,
    "synthid_logits": 5,
    "mirostat_v1_sample": 5,
}
MOST |= dict.fromkeys(["typical_p_logits", "top_h_logits", "tail_free_logits"], 5)
MOST |= dict.fromkeys(["top_k_logits", "top_p_logits", "process_logits", "beam_step"], 1)
LISTS = ("dry_penalized_logits", "no_repeat_ngram_logits", "suppressed_logits")
LISTS += ("min_tokens_logits", "bad_words_logits")


def most(name, topology, x):
    """Returns the bound of a function for a chip."""
    if name in MOST:
        return MOST[name]
    if topology.startswith("tpu7x") or (topology.startswith("v6e") and x.nbytes >= 2**25):
        return 6  # in another layout, for which vector memory is too small
    if topology.startswith("v6e") and name == "dry_penalized_logits":
        return 1.2  # TPU v6e scatters on other cores, which copies the logits
    # Lists of tokens become bits, whose matrices are transposed.
    return 0.3 if name in LISTS else 0.1


# Bounds of the operations in the path of a settled batch, for every chip.
OPERATIONS = {
    "greedy_sample": 25,
    "categorical_sample": 50,
    "sample, temperature": 90,
    "sample": 130,
    "sample, masks": 200,
}
LONG = ("sample", "sample, masks")  # by compile time
USUAL = 128256


def once():
    """Yields short programs for all chips and dtypes, and long ones for each chip or dtype."""
    for place, name in enumerate(OPERATIONS):
        for number, case in enumerate(itertools.product(GENERATIONS, DTYPES)):
            if name not in LONG or number % 3 == place % 3:
                yield name, *case


ONCE = [*once()]


def covering():
    """Yields each function in one case, a few in all, and before a release all for every
    generation.

    Each then has both dtypes, and both parameters per row and shared ones.
    """
    for i, name in enumerate(NAMES):
        if name in CHEAP:
            for turn, place in enumerate(itertools.product(GENERATIONS, VOCABS, DTYPES)):
                yield exhaustive if turn % 3 else pytest.param, name, *place, False
            continue
        for turn, marked in enumerate((pytest.param, exhaustive, exhaustive)):
            place = GENERATIONS[(i + turn) % 3], VOCABS[(i + turn) % 4], DTYPES[(i // 2 + turn) % 2]
            yield marked, name, *place, (i % 5 == 0) != (turn == 1)


def cases():
    """Yields the cases that the test below does not compile."""
    for marked, name, topology, vocab, dtype, scalars in covering():
        if scalars or vocab != USUAL or (name, topology, dtype) not in ONCE:
            yield marked(name, topology, vocab, dtype, scalars)


def program_of(name, topology, x, scalars=False):
    place = SingleDeviceSharding(devices(topology)[0])
    return compiled(*shapes(name, x, scalars), lambda _: place)


@pytest.mark.parametrize(("name", "topology", "vocab", "dtype", "scalars"), [*cases()])
def test_every_function_compiles_in_bounded_memory(name, topology, vocab, dtype, scalars):
    x = jnp.zeros((ROWS, vocab), dtype)
    assert_bounded(program_of(name, topology, x, scalars), name, topology, x)


def assert_bounded(program, name, topology, x):
    temporaries = program.memory_analysis().temp_size_in_bytes
    print(f"{name}: temporaries of {temporaries / x.nbytes:.2f} times the logits")
    assert temporaries <= most(name, topology, x) * x.nbytes
    if name != "tail_free_logits":  # rows whose tails are not among the candidates
        assert not sorts(program, x.shape[-1])


@pytest.mark.parametrize(("name", "topology", "dtype"), ONCE)
def test_the_logits_are_read_once_and_never_written(name, topology, dtype):
    """They are not copied or converted either, but the compiler may prefetch them for a branch."""
    x = jnp.zeros((ROWS, USUAL), dtype)
    program = program_of(name, topology, x)
    assert_bounded(program, name, topology, x)
    costs = settled(program, topology)
    computed = [cost for cost in costs if not re.search("start|done|custom-call", cost.name)]
    assert not [cost for cost in computed if holds(cost.result, 0.5 * x.size)]
    assert x.nbytes <= sum(cost.read for cost in costs) < (2.2 if name in LONG else 1.1) * x.nbytes
    assert sum(cost.written for cost in costs) < 0.25 * x.nbytes
    assert len(costs) <= OPERATIONS[name]
    assert not loops_over(program, kernels.ROWS * USUAL)


def loops_over(program, size):
    """Returns the loops over an array of at least this size: searches without a kernel."""
    computations = hlo.parse(program.as_text()).computations.values()
    loops = [one for of in computations for one in of.values() if one.opcode == "while"]
    return [loop for loop in loops if holds(loop.result, size)]


def test_a_search_without_its_kernel_is_detected():
    x = jnp.zeros((FEW_ROWS, USUAL))
    function, arguments = shapes("top_p_logits", x)
    place = SingleDeviceSharding(devices("v5e:2x2")[0])
    without = functools.partial(function, implementation="xla")
    assert loops_over(compiled(without, arguments, lambda _: place), kernels.ROWS * USUAL)


@pytest.mark.parametrize("topology", GENERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_search_compiles_for_the_longest_rows(topology, dtype):
    rows, vocab = MANY_ROWS, kernels.MAX_VOCAB
    order = (("top_k",), ("top_p",), ("min_p",))

    def searched(inputs):
        return search.search(inputs, order, weighed=True, interpret=False)

    x, row = jnp.zeros((rows, vocab), dtype), jnp.zeros(rows)
    given = blocks.Given(*[row] * len(blocks.Given._fields))
    mask, shifts = (jnp.zeros((rows, vocab // of), jnp.int32) for of in (32, CHUNK))
    place = SingleDeviceSharding(devices(topology)[0])
    inputs = blocks.Inputs(x, mask, shifts, given, row > 0)
    temporaries = compiled(searched, (inputs,), lambda _: place).memory_analysis()
    assert temporaries.temp_size_in_bytes < 0.3 * x.nbytes  # the mask, transposed


# The reads of the rows, which exceed vector memory, and the writes of results, in HBM.
PASSES = {
    **dict.fromkeys(["token_logprobs", "replay_logprobs"], (1, 0)),
    **dict.fromkeys(["bitmask_logits", "suppressed_logits", "min_tokens_logits"], (1, 1)),
    **dict.fromkeys(["bad_words_logits", "no_repeat_ngram_logits"], (1, 1)),
    **dict.fromkeys(["scaled_logits", "smoothed_logits", "top_k_logits"], (2, 1)),
    **dict.fromkeys(["top_p_logits", "min_p_logits", "epsilon_logits"], (2, 1)),
    **dict.fromkeys(["top_a_logits", "top_h_logits"], (2, 1)),
}


@pytest.mark.parametrize("name", PASSES)
def test_logits_are_read_and_written_no_more_often_than_necessary(name):
    dtype = DTYPES[[*PASSES].index(name) % 2]
    x = jnp.zeros((MANY_ROWS, USUAL), dtype)
    function, arguments = shapes(name, x)
    result = jax.eval_shape(function, *arguments)  # float32 if logits are computed
    costs = settled(program_of(name, "v5e:2x2", x), "v5e:2x2")
    read, written = PASSES[name]
    assert sum(cost.read for cost in costs) < (read + 0.1) * x.nbytes
    logits_written = written * x.size * result.dtype.itemsize
    assert sum(cost.written for cost in costs) < logits_written + 0.1 * x.nbytes


def sorts(program, vocab):
    """Returns the sorts and top-k of at least a quarter of the vocabulary."""
    found = []
    for line in program.as_text().splitlines():
        if " sort(" in line or "TopK" in line:
            sizes = [int(n) for dims in re.findall(r"\[([\d,]+)\]", line) for n in dims.split(",")]
            found += [line] if max(sizes, default=0) >= vocab // 4 else []
    return found


def holds(result, size):
    """Returns whether the text of a shape contains an array of at least this size."""
    shapes = re.findall(r"\[([\d,]+)\]", result)
    return any(math.prod(int(n) for n in dims.split(",")) >= size for dims in shapes)


def test_a_copy_is_detected():
    x = jnp.zeros((ROWS, 128256))
    place = SingleDeviceSharding(devices("v5e:2x2")[0])
    costs = settled(compiled(jnp.transpose, (x,), lambda _: place), "v5e")
    assert [cost for cost in costs if holds(cost.result, 0.5 * x.size)]
    assert sum(cost.written for cost in costs) >= x.nbytes


def test_a_sort_is_detected():
    place = SingleDeviceSharding(devices("v5e:2x2")[0])
    assert sorts(compiled(jnp.sort, (jnp.zeros((8, 4096)),), lambda _: place), 4096)


@pytest.mark.parametrize(
    ("topology", "shape"), [("v5e:2x2", (1, 4)), ("v5e:4x4", (2, 8)), ("v6e:4x4", (1, 16))]
)
@pytest.mark.parametrize(
    "name",
    ["greedy_sample", "categorical_sample", "top_p_logits", "sample, masks", "sample, full call"],
)
def test_no_chip_requests_the_rows_of_another(name, topology, shape):
    x = jnp.zeros((FEW_ROWS, 131072))
    types = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh(shape, ("batch", "vocab"), types, devices=devices(topology))

    def place(leaf):
        axes = [None] * leaf.ndim
        axes[0] = "batch" if leaf.shape[:1] == x.shape[:1] else None
        if leaf.shape[-1] in (x.shape[-1], x.shape[-1] // 32):
            axes[-1] = "vocab"
        return NamedSharding(mesh, P(*axes))

    program = compiled(*shapes(name, x), place)
    settled, searched = (bytes_moved(program, of) * shape[0] / FEW_ROWS for of in (min, max))
    print(f"{name}, {topology}: {settled:.0f} bytes a row, {searched:.0f} where it is searched")
    assert max(settled, searched) <= 64 * 1024


@pytest.mark.parametrize("name", ["greedy_sample", "categorical_sample", "top_p_logits"])
def test_no_chip_requests_the_rows_of_another_inside_shard_map(name):
    x = jnp.zeros((FEW_ROWS, 131072), "bfloat16")
    mesh = jax.make_mesh((2, 8), ("batch", "vocab"), devices=devices("v5e:4x4"))
    function, arguments = shapes(name, x)
    mapped = sharded_map(function, x, arguments, mesh)
    program = compiled(mapped, arguments, lambda leaf: NamedSharding(mesh, spec_of(x, leaf)))
    assert 0 < bytes_moved(program, max) / (FEW_ROWS / 2) <= 64 * 1024
