"""Law 4: sharded logits give the same tokens, and no device requests the rows of another."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import NAMES, VARIED, calls, every
from hlo import bytes_moved
from jax.sharding import AxisType, NamedSharding, auto_axes
from jax.sharding import PartitionSpec as P
from meshes import MESHES, MOST_BYTES_A_ROW, mesh_of, rows_of
from rows import exhaustive, several_devices, slow

import jaxsample as js

pytestmark = several_devices

LONG = 131072
FIRST = ("categorical_sample",)
SOME = (*FIRST, "greedy_sample", "top_p_logits", "sample", "sample, full call")
SORTS = ("tail_free_logits",)  # rows whose tails are not among the candidates


def sharded(mesh, x, arguments):
    """Returns arguments whose rows and tokens are sharded like those of the logits."""

    def place(leaf):
        axes = [None] * leaf.ndim
        if leaf.shape[:1] == x.shape[:1]:
            axes[0] = "batch"
        if leaf.shape[-1:] in (x.shape[-1:], (x.shape[-1] // 32,)):
            axes[-1] = "vocab"
        return jax.device_put(leaf, NamedSharding(mesh, P(*axes)))

    return jax.tree.map(lambda leaf: place(jnp.asarray(leaf)), arguments)


def both_ways(name, shape, vocab=LONG):
    """Returns the results of a function on one device and on several, and the sharded program."""
    x = rows_of(vocab)
    function, arguments = calls(x)[name]
    one = function(*arguments)  # without an outer `jit`, it compiles once for all meshes
    arguments = sharded(mesh_of(*MESHES[shape]), x, arguments)
    compiled = jax.jit(function).lower(*arguments).compile()
    return one, compiled(*arguments), compiled


def assert_same(one, several):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", every())
def test_no_device_requests_the_rows_of_another(name):
    one, several, compiled = both_ways(name, "vocab")
    assert_same(one, several)
    settled, searched = bytes_moved(compiled, min) / 18, bytes_moved(compiled, max) / 18
    print(f"{name}: {settled:.0f} bytes a row, {searched:.0f} where it is searched")
    if name not in SORTS:
        assert max(settled, searched) <= MOST_BYTES_A_ROW


def marked(name):
    return slow if name in VARIED else exhaustive


CASES = [
    *((name, "both") if name in FIRST else marked(name)(name, "both") for name in NAMES),
    slow("sample", "batch"),
    *(exhaustive(name, shape) for name in SOME for shape in ("two", "four")),
]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_sharding_changes_nothing(name, shape):
    one, several, _ = both_ways(name, shape)
    assert_same(one, several)


def test_moved_rows_are_detected():
    mesh = mesh_of(1, 8)
    x = jax.device_put(jnp.zeros((2, LONG)), NamedSharding(mesh, P(None, "vocab")))
    assert bytes_moved(jax.jit(jnp.sort).lower(x).compile()) > 2 * MOST_BYTES_A_ROW


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [4096 + 64, 128256])
def test_shards_of_no_whole_chunks_give_the_same_tokens(vocab):
    one, several, _ = both_ways("categorical_sample", "both", vocab)
    assert_same(one, several)


def test_transforms_keep_the_sharding_of_their_logits():
    _, several, _ = both_ways("min_p_logits", "both")
    assert several.sharding.spec == P("batch", "vocab")


@pytest.mark.slow
def test_errors_name_explicit_mesh_axes_and_the_call_that_works():
    """Runs the code of the documentation, and a bare spec inside `set_mesh`."""
    x, mesh = rows_of(4096), mesh_of(2, 4, AxisType.Explicit)
    keys, params = jax.random.split(jax.random.key(0), len(x)), js.SamplingParams(top_k=20)
    want = js.sample(keys, x, params, num_logprobs=5)
    x = jax.device_put(x, NamedSharding(mesh, P("batch", "vocab")))
    keys = jax.device_put(keys, NamedSharding(mesh, P("batch")))
    bare = auto_axes(functools.partial(js.sample, num_logprobs=5), out_sharding=P("batch"))
    message = r"logits .* axes \('batch', 'vocab'\).*NamedSharding\(mesh, \w+\('batch',?\)\)"
    for call, words in ((js.sample, message), (bare, f"{message}|jax.set_mesh")):
        with pytest.raises(ValueError, match=words):  # JAX 0.9 raises its own error
            call(keys, x, params)
    text = (Path(__file__).parents[1] / "docs/sharding.md").read_text()
    code = re.search(r"## Explicit mesh axes.*?```python\n(.*?)```", text, re.DOTALL)[1]
    scope = {"mesh": mesh, "P": P, "sample": js.sample}
    exec(code, scope | (given := {"keys": keys, "logits": x, "params": params}), given)
    assert_same(want, given["out"])
    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match=message):
            js.sample(keys, x, params)
        assert_same(want, bare(keys, x, params))


def test_explicit_mesh_axes_of_parameters_are_named():
    mesh = mesh_of(2, 4, AxisType.Explicit)
    p = jax.device_put(jnp.full(4, 0.9), NamedSharding(mesh, P("batch")))
    allowed = jax.device_put(jnp.ones((4, 8), bool), NamedSharding(mesh, P("batch", "vocab")))
    message = r"must not be sharded over explicit mesh axes.*mesh, \w+\('batch',?\)\)"
    for call in (
        lambda: js.top_p_logits(jnp.zeros((4, 8)), p),
        lambda: js.sample(jax.random.key(0), jnp.zeros((4, 8)), js.SamplingParams(top_p=p)),
        lambda: js.allowed_logits(jnp.zeros((4, 8)), allowed),
        lambda: js.sample(jax.random.key(0), jnp.zeros((4, 8)), js.SamplingParams(allowed=allowed)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
