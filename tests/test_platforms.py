"""The branches for TPU return the same results as the others.

The tests take the branches for TPU on any platform.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import calls
from jax import lax
from rows import every_kind, exhaustive
from unoptimised import compiled

from jaxsample import SamplingParams, sample
from jaxsample._core import _bits, _lookup, _selection

pytestmark = pytest.mark.slow

SOME = (
    "categorical_sample",
    *("top_p_logits", "greedy_sample", "top_logprobs", "token_ranks", "sample, full call"),
    *("sample, masks", "sample, temperature"),
    *("top_n_sigma_logits", "packed_bitmask", "xtc_logits", "typical_p_logits"),
    *("mirostat_v2_sample", "gumbel_watermark_sample", "tail_free_logits"),
    *("dry_penalized_logits", "no_repeat_ngram_logits", "bad_words_logits", "bitmask_logits"),
)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    jax.clear_caches()
    yield
    jax.clear_caches()


def on_tpu(monkeypatch, function, *arguments):
    """Returns the results of the branches for TPU, and the number of such branches."""
    ways = []

    def way_on_tpu(*arguments, default, **branches):
        way = branches.get("tpu", default)
        ways.append(way)
        return way(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(lax, "platform_dependent", way_on_tpu)
        jax.clear_caches()
        found = compiled(function)(*arguments)
    jax.clear_caches()
    return found, len(ways)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def logits(rows, vocab, dtype="float32"):
    x = every_kind(3, vocab, dtype)[:rows]
    x[1:2, 3] = np.nan
    return jnp.asarray(x)


@functools.cache
def catalogue():
    """Computed once, since each test would compile the arguments again."""
    return calls(logits(24, 8192))


@pytest.mark.parametrize("name", [*SOME, exhaustive("without_replacement_sample")])
def test_functions(monkeypatch, name):
    function, arguments = catalogue()[name]
    found, ways = on_tpu(monkeypatch, function, *arguments)
    assert ways
    assert_same(found, compiled(function)(*arguments))


# Tiles of 8, 2 and 1 rows, blocks that do not fit into tiles, remainders, and fewer tokens than
# candidates.
SHAPES = [(16, 128 * 65, "bfloat16"), (6, 8192, "float32"), (1, 16384, "float32")]
SHAPES += [(8, 5003, "float32"), (8, 4096 + 192, "bfloat16"), (8, 65, "float32")]


@pytest.mark.parametrize(
    ("rows", "vocab", "dtype"),
    [s if i % 3 == 0 else exhaustive(*s) for i, s in enumerate(SHAPES)],
)
def test_shapes(monkeypatch, rows, vocab, dtype):
    x = logits(rows, vocab, dtype)
    keys = jax.random.split(jax.random.key(0), rows)
    each = np.arange(1, rows + 1)
    params = SamplingParams(
        temperature=each / rows, top_k=each * 9, top_p=1 - each / rows / 2, min_p=each * 0.001
    )

    def call(keys, x, params):
        out = sample(keys, x, params, num_logprobs=5, return_kept=True)
        return out, jax.vmap(lambda key, x: sample(key, x, SamplingParams(top_p=0.8)))(keys, x)

    found, ways = on_tpu(monkeypatch, call, keys, x, params)
    assert ways
    assert_same(found, compiled(call)(keys, x, params))


@pytest.mark.parametrize(("length", "k"), [(2004, 64), (65, 64), (1000, 100), (130, 1)])
def test_selection(monkeypatch, length, k):
    distinct = np.random.default_rng(0).normal(size=(2, 3, length)).astype(np.float32)
    few = np.where(np.arange(length) < k // 2, distinct, -np.inf)
    x = np.concatenate([distinct, np.round(distinct), np.ones_like(distinct), few])

    def both(raw):
        halves = _selection.top_k(raw, k, lambda raw: raw.astype(jnp.float32) * 0.5)
        return halves, _selection.places_of_top_k(raw.astype(jnp.float32), k)

    for dtype, wide in [("float32", False), ("bfloat16", False), ("float32", True)]:
        with jax.enable_x64(wide):
            raw = jnp.asarray(x, dtype)
            found, ways = on_tpu(monkeypatch, both, raw)
            assert ways == 2
            assert_same(found, both(raw))
        values, positions = lax.top_k(raw.astype(jnp.float32), k)
        (halves, places, there), (ascending, least) = found
        np.testing.assert_array_equal(halves, values * 0.5)
        np.testing.assert_array_equal(places, positions)
        np.testing.assert_array_equal(there, jnp.take_along_axis(raw, positions, axis=-1))
        np.testing.assert_array_equal(ascending, jnp.sort(positions, axis=-1))
        np.testing.assert_array_equal(least, values[..., -1])


# One tile, part of a group of 32, more or fewer rows than a tile, and several axes.
@pytest.mark.parametrize(
    ("lead", "vocab"), [((8,), 4096), ((3,), 1280), ((16,), 4096 + 128), ((2, 5), 6400)]
)
def test_masks(monkeypatch, lead, vocab):
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (*lead, vocab // 32)).astype("int32")
    found, ways = on_tpu(monkeypatch, functools.partial(_bits.unpacked, n=vocab), words)
    assert ways
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    np.testing.assert_array_equal(found, bits == 1)


def test_lookup(monkeypatch):
    x = jnp.array([[1.5, -0.0, jnp.nan], [jnp.inf, -jnp.inf, 1e-40]])
    index = jnp.array([[2, 0, 1, 7], [1, 0, 1, 2]])
    found, _ = on_tpu(monkeypatch, _lookup.take, x, index)
    bits = lax.bitcast_convert_type(found, jnp.uint32)
    assert_same(bits, lax.bitcast_convert_type(_lookup.take(x, index), jnp.uint32))
    assert_same(found[0, 3], x[0, 2])
