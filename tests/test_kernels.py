"""The TPU kernels, interpreted on a CPU, return the same results as XLA, bit for bit."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rows
from catalogue import NAMES, VARIED, calls
from jax.sharding import AxisType, PartitionSpec
from rows import SHORT_TURN, exhaustive, several_devices
from searches import varied
from unoptimised import compiled

import jaxsample as js
from jaxsample import SamplingParams
from jaxsample._core import _bits, _chunks, _ranking, _rows, _scan, _search, _source
from jaxsample._core._search import Rules
from jaxsample._tpu import masses, merging
from jaxsample._tpu import rows as kernels

pytestmark = pytest.mark.slow

VOCAB = SHORT_TURN * kernels.LANES + 3617  # two steps, the second short and odd


def semantic(dtype, vocab=VOCAB):
    """Returns rows of every kind and bad ones, 13 in total, which is not a multiple of eight."""
    normal = rows.make("normal", 4, vocab, dtype)
    normal[0, 7], normal[1, vocab - 1], normal[2] = np.nan, np.inf, -np.inf
    normal[3, : vocab - 3] = -np.inf
    return jnp.asarray(np.concatenate([rows.every_kind(1, vocab, dtype), normal]))


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def in_both_ways(function, *arguments):
    """Asserts that a function returns the same results with and without kernels."""
    a, b = (
        compiled(functools.partial(function, implementation=implementation))(*arguments)
        for implementation in ("pallas", "xla")
    )
    same(a, b)
    return a


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize(
    ("dtype", "scaled"), [("float32", False), ("float32", True), ("bfloat16", True)]
)
def test_maxima_sums_and_counts_match_the_definition(dtype, scaled):
    x = semantic(dtype)
    # From far below 1 to so large that all but the largest logits become -inf.
    rate = jnp.geomspace(1e-3, 3e35, len(x)) if scaled else None

    @compiled
    def defined(x, rate):
        given = _source.opened(x)
        found = _rows.scanned(given, _chunks.sortable_maxima(given), rate)
        kept = _search.weigh_to(found, _chunks.probability(found), None)
        return (
            _chunks.chunk_max(_scan.scan(_source.opened(x, implementation="xla"))),
            *kept,
            found.bad,
        )

    kernel = functools.partial(kernels.chunk_maxima_and_sums, counted=True, interpret=True)
    found = [np.asarray(of) for of in compiled(kernel)(x, rate, None)]
    *expected, bad = (np.asarray(of) for of in defined(x, rate))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one[~bad], other[~bad])
    if not scaled:
        assert not np.isfinite(np.max(found[0], axis=1))[bad].any()


def test_bins_contain_the_first_tokens_of_each():
    """In steps as long as on a TPU."""
    assert_bins_hold_the_first(kernels.TURN + 3617)


@pytest.mark.usefixtures("short_turns")
def test_bins_of_few_tokens():
    assert_bins_hold_the_first(5)


def assert_bins_hold_the_first(vocab):
    x = rows.every_kind(1, vocab)
    kernel = functools.partial(kernels.block_maxima_and_bins, interpret=True)
    _, bins = compiled(kernel)(jnp.asarray(x), None)
    bins = jax.tree.map(np.asarray, bins)
    number = bins.left.shape[1]
    for row, logits in enumerate(x):
        for bin_ in range(number):
            ids = np.arange(bin_, vocab, number)
            ids = ids[logits[ids] > -np.inf]
            ids = ids[np.argsort(-logits[ids], kind="stable")]
            held = bins.logits[row, bin_::number]
            count = (held > -np.inf).sum()
            np.testing.assert_array_equal(bins.ids[row, bin_::number][:count], ids[: len(held)])
            np.testing.assert_array_equal(held[:count], logits[ids[: len(held)]])
            assert bins.left[row, bin_] == (logits[ids[len(held)]] if count < len(ids) else -np.inf)
            assert bins.last[row, bin_] == held[-1]


@pytest.mark.parametrize("rows", [3, 150])
def test_the_first_of_many_keys(rows):
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**31), 2**31, (rows, 512)).astype(np.int32)
    keys[1], keys[2] = keys[1] % 9, 7  # equal keys
    ids = rng.permuted(np.tile(np.arange(512, dtype=np.int32), (rows, 1)), axis=1)
    kernel = functools.partial(merging.first, k=32, interpret=True)
    found = compiled(kernel)(jnp.asarray(keys), jnp.asarray(ids))
    order = np.stack([np.lexsort((i, ~k))[:32] for k, i in zip(keys, ids, strict=True)])
    for x, first in zip((keys, ids), found, strict=True):
        np.testing.assert_array_equal(first, np.take_along_axis(x, order, axis=1))


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy(dtype):
    greedy = in_both_ways(js.greedy_sample, semantic(dtype))
    assert (np.asarray(greedy) == -1).sum() == 3


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_categorical(dtype):
    x = semantic(dtype)
    in_both_ways(js.categorical_sample, jax.vmap(jax.random.key)(jnp.arange(len(x))), x)


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize(
    ("dtype", "masked"), [("float32", False), ("float32", True), ("bfloat16", True)]
)
def test_temperature_alone(dtype, masked):
    x = semantic(dtype)
    keys = jax.vmap(jax.random.key)(jnp.arange(len(x)))
    params = SamplingParams(
        temperature=jnp.asarray([0.7, 1.3, 0.0, 2.0, -1.0] * 3)[: len(x)],
        bitmask=some_words(x) if masked else None,
    )
    call = functools.partial(js.sample, num_logprobs=3, return_kept=True)
    in_both_ways(call, keys, x, params)


def some_words(x):
    """Returns a mask of half the tokens, of no token in row 5, and without the NaN of row 9."""
    allowed = np.random.default_rng(0).random(x.shape) < 0.5
    allowed[5], allowed[9, 7] = False, False
    return js.packed_bitmask(allowed)


def test_bits_go_to_the_lanes_of_their_tokens():
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 260)).astype(np.int32)
    by_lane = np.asarray(_bits.by_lane(jnp.asarray(words)))
    for token in range(0, 260 * 32, 7):
        group, vector, lane = token // 4096, token // 128 % 32, token % 128
        found = by_lane[:, group * 128 + lane] >> vector & 1
        np.testing.assert_array_equal(found, words[:, token // 32] >> token % 32 & 1)


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize(
    ("dtype", "masked"), [("float32", True), ("bfloat16", False), ("bfloat16", True)]
)
def test_sample(dtype, masked):
    x = semantic(dtype)
    keys = jax.vmap(jax.random.key)(jnp.arange(len(x)))
    params = SamplingParams(
        temperature=jnp.asarray([0.7, 1.3, 0.0, 2.0] * 4)[: len(x)],
        top_k=jnp.asarray([0, 1, 40, 64, 1000] * 3)[: len(x)],
        top_p=jnp.asarray([0.95, 1.0, 0.3] * 5)[: len(x)],
        min_p=jnp.asarray([0.0, 0.05] * 7)[: len(x)],
        bitmask=some_words(x) if masked else None,
    )
    in_both_ways(functools.partial(js.sample, return_kept=True), keys, x, params)


def to_search(dtype, vocab):
    """Returns rows of every kind in the first and third block; the second needs no search."""
    x = np.asarray(semantic(dtype, vocab))
    others = rows.make("normal", 8, vocab, dtype)
    # The coarse word of each weight omits as much as it contributes, which adds up to an error.
    close = np.linspace(-14, -14.01, vocab, dtype=x.dtype)
    close[5] = 0
    return jnp.asarray(np.concatenate([x[:8], others, x[8:], close[None]]))


WHOLE = VOCAB // kernels.LANES * kernels.LANES
"""A multiple of the vector length, so that single float32 rows can be fetched."""

SEARCHES = [
    ("float32", VOCAB, False, False, (("top_p",),)),
    ("bfloat16", WHOLE, True, True, (("top_k",), ("top_p",))),
    ("float32", WHOLE, True, True, (("min_p",), ("top_p",), ("top_k",))),
    ("bfloat16", VOCAB, False, False, (("top_k", "min_p", "top_p"),)),
]


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize(("dtype", "vocab", "scaled", "masked", "order"), SEARCHES)
def test_search(dtype, vocab, scaled, masked, order):
    """Compares kept sets of top-k, top-p and min-p, their mass, and the mass of all tokens."""
    x = to_search(dtype, vocab)
    mask = some_words(x) if masked else None
    rates = jnp.asarray(np.resize([0.7, 1.3, 2, 1e-3], len(x)), "float32") if scaled else None
    number = jnp.arange(len(x))
    some = (number // kernels.ROWS != 1) & (number % 5 != 2)

    assert_searched(x, some, order, rates, mask)


def test_search_in_steps_of_a_tpu():
    """A row of the shortest length for which kernels are the default, plus an odd number."""
    x = jnp.asarray(rows.make("flat", 1, kernels.MIN_VOCAB + 3617))
    assert_searched(x, jnp.asarray([True]), (("top_p",),))


def assert_searched(x, needed, order, rates=None, mask=None):
    """Asserts that the kernel and XLA keep the same tokens in the good rows that need a search."""

    @compiled
    def found(rates):
        source = _source.opened(x, mask=mask)
        masked = dataclasses.replace(source, logits=source.masked(), mask=None)
        scanned = _rows.scanned(source, _chunks.sortable_maxima(masked), rates)
        good, scale = needed & ~scanned.bad, _chunks.probability(scanned)
        values = varied(x)
        rules = Rules({name: values[name] for group in order for name in group}, order)
        cut, kept = _search._on_tpu(good, scanned, rules, True, True)
        mass = masses.row_masses(_search._inputs(scanned, {}, good), interpret=True)
        expected = _search._in_xla(good, scanned, rules, grouped=True)

        def kept_by(cut):
            logits = scanned.read_to_cut(source.masked())
            return _ranking.is_kept(logits, scanned.ids, cut) & (logits > -jnp.inf)

        expected_kept = _search.weigh_to(scanned, scale, expected)
        one = kept_by(cut), kept, mass
        return good, one, (kept_by(expected), expected_kept, _chunks.mass(scanned, scale))

    good, *results = found(rates)
    assert np.asarray(good).any()
    same(*(jax.tree.map(lambda a: a[np.asarray(good)], of) for of in results))


FUNCTIONS = {name: call[0] for name, call in calls(jnp.zeros((1, 64))).items()}


def has_kernels(name):
    return "implementation" in inspect.signature(FUNCTIONS[name]).parameters


TESTED = ("greedy_sample", "categorical_sample", *(n for n in NAMES if n.startswith("sample")))
OTHERS = [name for name in NAMES if name not in TESTED and has_kernels(name)]
OTHERS.append("sample, outputs")


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize("name", [n if n in VARIED else exhaustive(n) for n in OTHERS])
def test_every_other_function(name):
    function, arguments = calls(semantic("float32"))[name]
    in_both_ways(function, *arguments)


def drawn(keys, x, implementation):
    return js.sample(keys, x, SamplingParams(top_k=3, top_p=0.9), implementation=implementation)


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize(
    ("vocab", "function"),
    [(1, js.categorical_sample), (300, js.categorical_sample), (1, drawn), (63, drawn)],
)
def test_few_tokens(vocab, function):
    x = jnp.asarray(rows.every_kind(1, vocab)[:5])
    keys = jax.vmap(jax.random.key)(jnp.arange(len(x)))
    in_both_ways(function, keys, x)


@pytest.mark.usefixtures("short_turns")
def test_more_of_the_best_tokens_than_a_bin_contains():
    """Rows with a candidate that bins omit are searched, and so are ties that may hide others.

    Greedy rows need no search; their first tokens are found in the blocks.
    """
    x = np.array(rows.make("normal", 8, 3 * VOCAB))
    x[0, 5 :: kernels.LANES * 4][:30] += 100  # all of them in one bin
    x[1] = x[1, 0]
    x[2:5] = np.round(x[2:5])
    keys = jax.vmap(jax.random.key)(jnp.arange(8))
    temperature = jnp.full(8, 0.9).at[4].set(0)
    params = SamplingParams(temperature=temperature, top_k=jnp.full(8, 40))
    sample = functools.partial(js.sample, num_logprobs=30)
    out = in_both_ways(sample, keys, jnp.asarray(x), params)
    np.testing.assert_array_equal(out.num_kept, np.where(temperature == 0, 1, 40))
    kept = functools.partial(js.sample, return_kept=True)
    in_both_ways(kept, keys, jnp.asarray(x), SamplingParams(top_k=40))


def kernels_in(function, *arguments):
    """Returns the number of kernels in a program for TPU."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",))
    return lowered.as_text().count("tpu_custom_call")


def shape(*sizes, dtype="float32", sharding=None):
    return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=sharding)


def test_functions_that_use_kernels():
    greedy, whole = js.greedy_sample, shape(16, kernels.MIN_VOCAB)
    assert kernels_in(greedy, whole) == 1
    assert kernels_in(greedy, shape(2, 8, kernels.MIN_VOCAB + 1, dtype="bfloat16")) == 1
    assert kernels_in(jax.vmap(greedy), whole) == 1
    assert kernels_in(greedy, shape(12, kernels.MIN_VOCAB)) == 0
    assert kernels_in(greedy, shape(16, kernels.MIN_VOCAB - 1)) == 0
    assert kernels_in(greedy, shape(16, kernels.MAX_VOCAB + 1)) == 0
    assert kernels_in(greedy, shape(16, kernels.MIN_VOCAB, dtype="float16")) == 0
    assert kernels_in(functools.partial(greedy, implementation="xla"), whole) == 0
    forced = functools.partial(greedy, implementation="pallas")
    assert kernels_in(forced, shape(16, kernels.MIN_VOCAB - 1)) == 1


@pytest.mark.parametrize(("implementation", "number"), [("xla", 0), (None, 4)])
def test_every_stage_of_sample_has_kernels_or_none(implementation, number):
    """For p-less, XTC, the temperature between them, and the draw."""
    params = SamplingParams(p_less=True, temperature=0.9, xtc_probability=0.5, xtc_threshold=0.1)

    def draw(x):
        key, order = jax.random.key(0), ("p_less", "temperature", "xtc")
        return js.sample(key, x, params, order=order, implementation=implementation).tokens

    assert kernels_in(draw, shape(16, kernels.MIN_VOCAB)) == number


@several_devices
def test_sharded_programs_use_kernels_only_inside_shard_map():
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("rows")
    x = shape(16, kernels.MIN_VOCAB, sharding=jax.NamedSharding(mesh, spec))
    assert kernels_in(js.greedy_sample, x) == 0
    assert kernels_in(jax.shard_map(js.greedy_sample, mesh=mesh, in_specs=spec, out_specs=spec), x)

    def cut(x):  # by the kernels of the candidates (two), of masses and of the search
        return js.top_p_logits(x, 0.9)

    assert kernels_in(cut, x) == 0
    assert kernels_in(jax.shard_map(cut, mesh=mesh, in_specs=spec, out_specs=spec), x) == 4


def test_gradients_and_vmap_use_no_kernels():
    x = jnp.asarray(rows.make("normal", 8, kernels.MIN_VOCAB))
    keys = jax.vmap(jax.random.key)(jnp.arange(8))
    params = SamplingParams(temperature=jnp.full(8, 0.9), top_k=jnp.full(8, 40))

    def loss(x, implementation):
        return jnp.sum(js.sample(keys, x, params, implementation=implementation).logprobs)

    # Includes the default, whose program on a CPU also contains the branch for TPU.
    gradient = jax.grad(loss)
    same(gradient(x, None), gradient(x, "xla"))

    def sampled(keys, x):
        return js.sample(keys, x, SamplingParams(top_k=40)).tokens

    split = jax.vmap(sampled)(keys.reshape(2, 4), x.reshape(2, 4, -1)).reshape(-1)
    same(split, sampled(keys, x))


def test_export_contains_the_tpu_kernels():
    def sampled(data, x):
        return js.sample(jax.random.wrap_key_data(data), x, SamplingParams(top_k=40)).tokens

    x = jnp.asarray(rows.make("normal", 8, kernels.MIN_VOCAB))
    data = jax.random.key_data(jax.vmap(jax.random.key)(jnp.arange(8)))
    exported = jax.export.export(jax.jit(sampled), platforms=("cpu", "tpu"))(data, x)
    assert "tpu_custom_call" in exported.mlir_module()
    loaded = jax.export.deserialize(exported.serialize())
    same(loaded.call(data, x), sampled(data, x))


@pytest.mark.parametrize(
    ("logits", "implementation", "message"),
    [
        (jnp.zeros((8, 300)), "cuda", "implementation must be None, 'xla' or 'pallas', got 'cuda'"),
        (jnp.zeros((8, 300), "float16"), "pallas", r"implementation='pallas' needs .*float16"),
        (jnp.zeros((1, kernels.MAX_VOCAB + 1)), "pallas", "at most 262144 tokens"),
    ],
)
def test_errors_name_the_implementation(logits, implementation, message):
    with pytest.raises(ValueError, match=message):
        js.greedy_sample(logits, implementation=implementation)


@pytest.mark.usefixtures("short_turns")
def test_positions_of_drafts():
    """Eight texts of three positions, which are the outermost axis on a TPU."""
    x = rows.make("normal", 24, VOCAB).reshape(8, 3, VOCAB)
    keys = jax.random.split(jax.random.key(0), (8, 3))
    in_both_ways(js.sample, keys, x, SamplingParams(top_p=jnp.linspace(0.1, 1, 24).reshape(8, 3)))
