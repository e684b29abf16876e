"""The kernels for GPUs, interpreted on a CPU, return the same results as XLA, bit for bit."""

import functools
import inspect

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rows
from jax.sharding import AxisType, PartitionSpec
from rows import several_devices
from searches import varied
from unoptimised import compiled

import jaxsample as js
from jaxsample import SamplingParams
from jaxsample._core import _chunks, _kernels, _ranking, _rows, _scan, _search, _source
from jaxsample._core._search import Rules

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="kernels for GPUs need JAX 0.11"),
]

VOCAB = 18 * 256 + 77
"""Two overlapping tiles of the scan, three of the search, and a short chunk, with scalar
loads."""

WHOLE = 4096
"""The smallest vocabulary with kernels, without a short chunk."""


@pytest.fixture
def interpreted(monkeypatch):
    """Interprets the kernels if `implementation="pallas"`, and returns a list of their names.

    They are chosen when a function is traced, because the interpreter has effects, which cannot be
    added when it is lowered.
    """
    from jaxsample._gpu import masses, search
    from jaxsample._gpu import rows as scan

    def choose(otherwise, source, *rest, cuda=None, **_):
        if source.implementation == "pallas" and cuda is not None and _kernels.suits_gpu(source):
            return cuda(source, *rest, interpret=True)
        return otherwise(source, *rest)

    def noted(kernel):
        def run(*args, **kwargs):
            names.append(kernel.__name__)
            return kernel(*args, **kwargs)

        return run

    names = []
    for module in (_scan, _search):
        monkeypatch.setattr(module, "choose", choose)
    for kernel in (scan.chunk_maxima_and_sums, search.search, masses.row_masses):
        monkeypatch.setattr(inspect.getmodule(kernel), kernel.__name__, noted(kernel))
    jax.clear_caches()
    yield names
    jax.clear_caches()


def semantic(dtype="float32", vocab=VOCAB):
    """Returns rows of every kind, bad rows, and a row that is masked except for its last tokens."""
    normal = rows.make("normal", 4, vocab, dtype)
    normal[0, 7], normal[1, vocab - 1], normal[2] = np.nan, np.inf, -np.inf
    normal[3, : vocab - 3] = -np.inf
    return jnp.asarray(np.concatenate([rows.every_kind(1, vocab, dtype), normal]))


def keys_of(x):
    return jax.vmap(jax.random.key)(jnp.arange(len(x)))


def same(a, b, message=""):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=message)


def assert_same_as_xla(function, *arguments):
    """Asserts that a function returns the same with and without kernels."""
    a, b = (
        compiled(functools.partial(function, implementation=implementation))(*arguments)
        for implementation in ("pallas", "xla")
    )
    same(a, b)


@pytest.mark.parametrize(
    ("dtype", "vocab", "scaled"),
    [("float32", VOCAB, True), ("float32", WHOLE, False), ("bfloat16", VOCAB, True)],
)
def test_maxima_sums_and_counts_are_those_of_the_definition(dtype, vocab, scaled):
    from jaxsample._gpu.rows import chunk_maxima_and_sums

    x = semantic(dtype, vocab)
    # The largest rates map all but the largest logits to -inf.
    rate = jnp.geomspace(1e-3, 3e35, len(x)) if scaled else None

    @compiled
    def defined(x, rate):
        given = _source.opened(x)
        found = _rows.scanned(given, _chunks.sortable_maxima(given), rate)
        kept = _search.weigh_to(found, _chunks.probability(found), None)
        raw = _rows.scanned(given, _chunks.sortable_maxima(given))
        return _chunks.chunk_max(raw), found.raw_max, *kept, found.bad

    kernel = functools.partial(chunk_maxima_and_sums, counted=True, interpret=True)
    found = [np.asarray(of) for of in compiled(kernel)(x, rate)]
    *expected, bad = (np.asarray(of) for of in defined(x, rate))
    assert bad.sum() == 3
    assert not np.isfinite(found[1][bad]).any()
    same([one[~bad] for one in found], [one[~bad] for one in expected])


SEARCHES = [
    ("float32", VOCAB, False, (("top_p",),)),
    ("bfloat16", VOCAB + 1, True, (("top_k",), ("top_p",))),
    ("float32", WHOLE, True, (("min_p",), ("top_p",), ("top_k",))),
    ("bfloat16", WHOLE, False, (("top_k", "min_p", "top_p"),)),
]


@pytest.mark.parametrize(("dtype", "vocab", "scaled", "order"), SEARCHES)
def test_search(dtype, vocab, scaled, order):
    """The kept sets of top-k, top-p and min-p, their weights, and the mass of all tokens."""
    from jaxsample._gpu.masses import row_masses

    x = semantic(dtype, vocab)
    rates = jnp.asarray(np.resize([0.7, 1.3, 2, 1e-3], len(x)), "float32") if scaled else None
    needed = jnp.arange(len(x)) % 5 != 2

    @compiled
    def found(x, rates):
        source = _source.opened(x)
        scanned = _rows.scanned(source, _chunks.sortable_maxima(source), rates)
        good, scale = needed & ~scanned.bad, _chunks.probability(scanned)
        values = varied(x)
        rules = Rules({name: values[name] for group in order for name in group}, order)
        cut, kept = _search._on_gpu(good, scanned, rules, True, True)
        mass = row_masses(_search._inputs_of_gpu(scanned, None, good), interpret=True)
        expected = _search._in_xla(good, scanned, rules, grouped=True)

        def kept_by(cut):
            logits = scanned.read_to_cut(source.logits)
            return _ranking.is_kept(logits, scanned.ids, cut) & (logits > -jnp.inf)

        expected_kept = _search.weigh_to(scanned, scale, expected)
        one = kept_by(cut), kept, mass
        return good, one, (kept_by(expected), expected_kept, _chunks.mass(scanned, scale))

    good, *results = found(x, rates)
    assert np.asarray(good).sum() > 5
    same(*(jax.tree.map(lambda a: a[np.asarray(good)], of) for of in results))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_categorical(dtype, interpreted):
    x = semantic(dtype)
    assert_same_as_xla(js.categorical_sample, keys_of(x), x)
    assert interpreted == ["chunk_maxima_and_sums"]


def test_temperature_alone(interpreted):
    x = semantic()
    params = SamplingParams(temperature=jnp.asarray([0.7, 1.3, 0.0, 2.0, -1.0] * 3)[: len(x)])
    assert_same_as_xla(functools.partial(js.sample, return_kept=True), keys_of(x), x, params)
    assert interpreted == ["chunk_maxima_and_sums"]


def test_sample(interpreted):
    x = semantic()
    params = SamplingParams(
        temperature=jnp.asarray([0.7, 1.3, 0.0, 2.0] * 4)[: len(x)],
        top_k=jnp.asarray([0, 1, 40, 64, 1000] * 3)[: len(x)],
        top_p=jnp.asarray([0.95, 1.0, 0.3] * 5)[: len(x)],
        min_p=jnp.asarray([0.0, 0.05] * 7)[: len(x)],
    )
    assert_same_as_xla(functools.partial(js.sample, return_kept=True), keys_of(x), x, params)
    assert interpreted == ["row_masses", "search"]


def test_the_temperature_after_the_cut(interpreted):
    """The search returns only the cut, since kept tokens are weighed at another temperature."""
    x = semantic("bfloat16", WHOLE)
    params = SamplingParams(temperature=0.6, top_p=0.97, top_k=500)
    order = ("top_k", "top_p", "temperature")
    assert_same_as_xla(functools.partial(js.sample, order=order), keys_of(x), x, params)
    assert set(interpreted) == {"row_masses", "search"}


def test_positions_of_drafts_and_vmap(interpreted):
    x = rows.make("normal", 6, WHOLE).reshape(2, 3, WHOLE)
    keys = jax.random.split(jax.random.key(0), (2, 3))
    params = SamplingParams(top_p=jnp.linspace(0.1, 1, 6).reshape(2, 3))
    assert_same_as_xla(js.sample, keys, x, params)

    def mapped(keys, x, *, implementation):
        sampled = functools.partial(js.categorical_sample, implementation=implementation)
        return jax.vmap(sampled)(keys, x)

    assert_same_as_xla(mapped, keys, x)
    assert set(interpreted) == {"row_masses", "search", "chunk_maxima_and_sums"}


def test_a_golden_sample(monkeypatch, interpreted):
    """Compares only integers; the last bits of floats depend on the compiler."""
    monkeypatch.setattr(js, "sample", functools.partial(js.sample, implementation="pallas"))
    name = "sample, in order"
    got = golden_cases.results(golden_cases.samples()[name]())
    with np.load(golden_cases.FOLDER / "samples.npz") as golden:
        for place, array in got.items():
            if array.dtype != np.float32:
                same(array, golden[f"{name}/{place}"], place)
    assert "search" in interpreted


def kernels_in(function, *arguments):
    """Returns the number of kernels in a program for NVIDIA GPUs."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    return lowered.as_text().count("@mosaic_gpu")


def test_which_programs_have_kernels():
    def in_sample(vocab, dtype="float32", implementation="pallas", **fields):
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0)))
        x = jax.ShapeDtypeStruct((2, vocab), jnp.dtype(dtype))
        call = functools.partial(js.sample, implementation=implementation)
        return kernels_in(lambda *of: call(*of, SamplingParams(**fields)), keys, x)

    assert in_sample(WHOLE) == 1
    assert in_sample(WHOLE, top_k=40) == 1
    assert in_sample(WHOLE, top_p=0.9) == 2
    assert in_sample(WHOLE + 1, "bfloat16") == 1
    assert in_sample(WHOLE - 1) == 0
    assert in_sample(WHOLE, implementation=None) == 0
    assert in_sample(WHOLE, implementation="xla") == 0
    words = jnp.full((2, WHOLE // 32), -1, jnp.int32)
    assert in_sample(WHOLE, bitmask=words, top_k=40) == 0


def test_kernels_compute_in_32_bits():
    with jax.enable_x64(True):
        test_which_programs_have_kernels()


@several_devices
def test_sharded_programs_have_kernels_only_inside_shard_map():
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("rows")
    x = jax.ShapeDtypeStruct((2, WHOLE), jnp.float32, sharding=jax.NamedSharding(mesh, spec))

    def cut(x):
        return js.top_k_logits(x, 100, implementation="pallas")

    assert kernels_in(cut, x) == 0
    assert kernels_in(jax.shard_map(cut, mesh=mesh, in_specs=spec, out_specs=spec), x) == 1
