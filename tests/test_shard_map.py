"""Inside `shard_map` each device passes a part of the vocabulary and gets the whole result."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import calls, every
from composed import a_state, every_param, only
from hlo import bytes_moved
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import MESHES, MOST_BYTES_A_ROW, VOCAB, mesh_of, rows_of, sharded_map
from rows import exhaustive, several_devices
from unoptimised import to_read

import jaxsample as js
from jaxsample import SamplingParams

pytestmark = [several_devices, pytest.mark.slow]

SEARCHED = ("top_p_logits", "sample", "mirostat_v2_sample")
RESCALED = ("top_k", "xtc", "temperature")
OPTIONS = {
    "num_logprobs": 5,
    "logprobs_mode": ("raw_logprobs", "scaled_logprobs"),
    "logprob_token_ids": (3, 5000, -1),
    "num_kept_ids": 3,
    "return_kept_mass": True,
    "return_entropy": True,
    "return_logits": True,
}


def inside(function, x, arguments, shape, **spec):
    """Returns the function compiled for simulated devices."""
    return jax.jit(sharded_map(function, x, arguments, mesh_of(*MESHES[shape]), **spec))


def called(name, x, **options):
    function, arguments = calls(x, **options)[name]
    return function, jax.tree.map(jnp.asarray, arguments)


def assert_same(one, several):
    """Asserts equality bit for bit: -0 is not 0, but all NaNs are equal."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(a, b)
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_array_equal(*(jnp.signbit(jnp.nan_to_num(v)) for v in (a, b)))


@pytest.mark.parametrize("shape", ["both", exhaustive("vocab")])
@pytest.mark.parametrize("name", every())
def test_devices_that_share_a_row_get_the_result_of_one(name, shape):
    x = rows_of(VOCAB)
    function, arguments = called(name, x)
    one = jax.jit(function)(*arguments)
    assert_same(one, inside(function, x, arguments, shape)(*arguments))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("greedy_sample", "bfloat16"),
        ("categorical_sample", "float16"),
        ("sample", "bfloat16"),
    ],
)
def test_results_are_equal_in_every_dtype(name, dtype):
    x = rows_of(VOCAB).astype(dtype)
    function, arguments = called(name, x)
    one = jax.jit(function)(*arguments)
    assert_same(one, inside(function, x, arguments, "both")(*arguments))


@pytest.mark.parametrize(
    ("order", "options"),
    [
        exhaustive(js.DEFAULT_ORDER, {}),
        (RESCALED, OPTIONS),
    ],
)
def test_every_stage_of_sample(order, options):
    x = rows_of(VOCAB)
    params, state = every_param(len(x), vocab=VOCAB), a_state(len(x), vocab=VOCAB)
    keys = jax.random.split(jax.random.key(0), len(x))
    arguments = jax.tree.map(jnp.asarray, (keys, x, only(params, order), state))
    function = functools.partial(js.sample, order=order, **options)
    one = jax.jit(function)(*arguments)
    assert jnp.sum(one.tokens >= 0) > len(x) // 2
    assert_same(one, inside(function, x, arguments, "both")(*arguments))


@pytest.mark.parametrize("name", ["sample", "no_repeat_ngram_logits"])
def test_shared_parameters_need_no_axis(name):
    x = rows_of(VOCAB)
    function, arguments = called(name, x, scalars=True)
    one = jax.jit(function)(*arguments)
    assert_same(one, inside(function, x, arguments, "both")(*arguments))


@pytest.mark.parametrize("name", ["greedy_sample", *(exhaustive(n) for n in SEARCHED)])
def test_the_vocabulary_may_be_sharded_over_several_axes(name):
    x = rows_of(VOCAB)
    function, arguments = called(name, x)
    over = inside(function, x, arguments, "both", batch=None, vocab=("batch", "vocab"))
    assert_same(jax.jit(function)(*arguments), over(*arguments))


@pytest.mark.parametrize("name", ["categorical_sample", *(exhaustive(n) for n in SEARCHED)])
def test_vmap_inside(name):
    x = rows_of(VOCAB)
    function, arguments = called(name, x)
    each = jax.tree.map(lambda leaf: 0 if leaf.shape[:1] == x.shape[:1] else None, arguments)

    def mapped(*arguments, **options):
        return jax.vmap(functools.partial(function, **options), in_axes=each)(*arguments)

    one = jax.jit(function)(*arguments)
    assert_same(one, inside(mapped, x, arguments, "both")(*arguments))


def test_vmap_outside():
    x = rows_of(VOCAB)
    mesh, own = mesh_of(*MESHES["vocab"]), P("vocab")
    top_k = functools.partial(js.top_k_logits, k=100, axis_name="vocab")
    mapped = jax.vmap(jax.shard_map(top_k, mesh=mesh, in_specs=own, out_specs=own))
    assert_same(jax.jit(js.top_k_logits)(x, 100), jax.jit(mapped)(x))


def test_parts_of_one_size_on_more_and_fewer_devices():
    for shape, vocab in (("vocab", 8192), ("four", 4096), ("two", 2048)):
        x = rows_of(vocab)
        assert_same(js.greedy_sample(x), inside(js.greedy_sample, x, (x,), shape)(x))


def test_the_example_runs_as_written():
    text = (Path(__file__).parents[1] / "docs/sharding.md").read_text()
    scope = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], scope)
    x = rows_of(VOCAB)
    keys = jax.random.split(jax.random.key(0), len(x))
    want = jax.jit(js.sample)(keys, x, scope["params"]).tokens
    placed = [NamedSharding(scope["mesh"], P("batch", *axes)) for axes in ((), ("vocab",))]
    got = scope["draw"](*jax.device_put((keys, x), tuple(placed)))
    np.testing.assert_array_equal(got, want)


def masked(keys, x, axis_name=None):
    words = jnp.full((len(x), x.shape[-1] // 32), 0x0F0F0F0F)
    params = SamplingParams(temperature=0.7, bitmask=words)
    return js.sample(keys, x, params, axis_name=axis_name)


def test_a_mask_may_be_replicated():
    x = rows_of(VOCAB)
    keys = jax.random.split(jax.random.key(0), len(x))
    one = jax.jit(masked)(keys, x)
    assert_same(one, inside(masked, x, (keys, x), "both")(keys, x))


@pytest.mark.parametrize("device", [0, 5])
def test_a_bad_value_on_one_device_is_bad_on_all(device):
    x = jnp.zeros((2, VOCAB)).at[0, device * VOCAB // 8 + 7].set(jnp.nan)
    tokens = inside(js.greedy_sample, x, (x,), "vocab")(x)
    assert [shard.data.tolist() for shard in tokens.addressable_shards] == [[-1, 0]] * 8


@pytest.mark.parametrize("name", ["greedy_sample", "categorical_sample", "sample", "top_p_logits"])
def test_devices_exchange_few_bytes(name):
    x = rows_of(131072)
    function, arguments = called(name, x)
    compiled = to_read(inside(function, x, arguments, "vocab"), arguments)
    settled, searched = (bytes_moved(compiled, most) / len(x) for most in (min, max))
    print(f"{name}: {settled:.0f} bytes a row, {searched:.0f} where it is searched")
    assert 0 < settled <= MOST_BYTES_A_ROW
    assert searched <= MOST_BYTES_A_ROW


def replayed(x, **options):
    mask = jnp.full((*x.shape[:-1], x.shape[-1] // 32), 0x0F0F0F0F)
    return js.replay_logprobs(x, jnp.full(x.shape[:-1], 2049), mask, **options)


def top(x, **options):
    return js.top_logprobs(x, num=3, **options).logprobs


def drawn(x, **options):
    params = SamplingParams(temperature=0.7, top_k=20)
    return js.sample(jax.random.split(jax.random.key(0), len(x)), x, params, **options).logprobs


def tournament(x, **options):
    logits = js.synthid_logits(jax.random.key(0), x, jnp.array([3, 1]), depth=3, **options)
    return js.token_logprobs(logits, jnp.full(x.shape[:-1], 2049), **options)


@pytest.mark.parametrize("function", [replayed, top, drawn, tournament])
def test_gradients_are_those_of_the_whole_row(function):
    x = rows_of(VOCAB)[:1]
    want = jax.jit(jax.grad(lambda x: jnp.sum(function(x))))(x)

    def here(x):
        return jax.grad(lambda x: jnp.sum(function(x, axis_name="vocab")))(x)

    def through(x):
        return jax.grad(lambda x: jnp.sum(inside(function, x, (x,), "vocab", batch=None)(x)))(x)

    own = {"in_specs": P(None, "vocab"), "out_specs": P(None, "vocab")}
    got = jax.jit(jax.shard_map(here, mesh=mesh_of(*MESHES["vocab"]), **own))(x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(jax.jit(through)(x), want, rtol=1e-5, atol=1e-9)


def test_a_decoding_loop_keeps_its_state_sharded():
    x = rows_of(2048)[::2]
    params = SamplingParams(temperature=0.9, presence_penalty=1.0, repetition_penalty=1.2)
    prompts = jnp.tile(jnp.array([3, 1500, 9]), (len(x), 1))

    def decode(x, prompts, axis_name=None):
        def step(state, key):
            keys = jax.random.split(key, len(prompts))
            tokens = js.sample(keys, x, params, state, axis_name=axis_name).tokens
            return js.update_state(state, tokens, axis_name=axis_name), tokens

        lengths = jnp.full_like(prompts[:, 0], 3)
        state = js.init_state(prompts, lengths, x.shape[-1], 16, axis_name=axis_name)
        state = js.reset_rows(state, jnp.array([0]), prompts[:1, 1:], 2, axis_name=axis_name)
        state, tokens = jax.lax.scan(step, state, jax.random.split(jax.random.key(0), 6))
        again = js.SamplerState.from_tokens(
            state.tokens, state.prompt_lengths, state.lengths, x.shape[-1], axis_name=axis_name
        )
        return state, again, tokens

    one = jax.jit(decode)(x, prompts)
    assert_same(one[0], one[1])
    assert_same(one, inside(decode, x, (x, prompts), "vocab", batch=None)(x, prompts))


def test_shards_must_be_whole_chunks():
    x = jnp.zeros((2, 8 * 128))
    sharded = jax.shard_map(
        functools.partial(js.greedy_sample, axis_name="vocab"),
        mesh=mesh_of(*MESHES["vocab"]),
        in_specs=P(None, "vocab"),
        out_specs=P(),
    )
    with pytest.raises(ValueError, match=r"logits .*multiple of 256 .*\(2, 128\).*-inf"):
        sharded(x)


@pytest.mark.parametrize(
    ("axis_name", "error", "message"),
    [
        ("vocab", ValueError, r"axis_name .*shard_map.*'vocab'"),
        (0, TypeError, r"axis_name .* name of a mesh axis.*0"),
        ((), TypeError, r"axis_name .* name of a mesh axis.*\(\)"),
    ],
)
def test_a_wrong_axis_is_named(axis_name, error, message):
    with pytest.raises(error, match=message):
        js.greedy_sample(jnp.zeros(256), axis_name=axis_name)
