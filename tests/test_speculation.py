"""Speculative decoding returns the tokens of plain decoding bit for bit, for any drafts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import plain
import pytest
from composed import LENGTH, VOCAB, a_state, every_param, only
from jax import export
from rows import every_kind, exhaustive, several_devices, traces

import jaxsample as js
from jaxsample import (
    DEFAULT_ORDER,
    VLLM_ORDER,
    Rule,
    SamplingParams,
    accept_drafts,
    sample,
    speculative_sample,
    update_state,
)
from jaxsample.speculation import positioned_params

LOOK_BACK = (
    *("bad_words", "min_tokens", "no_repeat_ngram", "repetition_penalty", "frequency_penalty"),
    *("presence_penalty", "dry", "sequence_bias", "temperature"),
)
BATCH, DRAFTS = 6, 4


def keys_of(batch, positions, seed=0):
    return js.request_keys(np.arange(batch)[:, None] + 100 * seed, np.arange(positions)[None])


def logits_of(batch, positions, vocab=VOCAB, dtype="float32", seed=0):
    """Returns rows of all kinds with a few likely tokens, so that texts repeat themselves."""
    x = every_kind(-(-batch * positions // 9), vocab, dtype, seed)[: batch * positions]
    x = np.random.default_rng(seed).permutation(x)
    x[:, :4] += np.asarray(3, x.dtype)
    return x.reshape(batch, positions, vocab)


def padded(rng, drafts):
    """Pads the last drafts of some rows, and those of one row from the middle on."""
    ends = rng.integers(1, drafts.shape[1] + 1, len(drafts))
    ends[: len(ends) // 2] = drafts.shape[1]
    drafts = np.where(np.arange(drafts.shape[1]) < ends[:, None], drafts, -1)
    drafts[0, drafts.shape[1] // 2 :] = -1
    return drafts


def assert_plain(x, params, state, parents=None, depth=None, seed=0, rate=0.8, **options):
    """Asserts that the output and the state after it are those of plain decoding."""
    batch, positions = x.shape[:2]
    rng = np.random.default_rng(seed)
    keys = keys_of(batch, (depth or positions - 1) + 1, seed)
    drafts = padded(rng, rng.integers(0, 4, (batch, positions - 1)))
    tree = plain.chain(batch, positions - 1) if parents is None else parents
    drafts, want, after = plain.decode(keys, x, drafts, params, state, tree, rng, rate, **options)
    got = speculative_sample(keys, x, drafts, params, state, parents=parents, **options)
    plain.assert_equal(got, want)
    if state is not None:
        jax.tree.map(np.testing.assert_array_equal, update_state(state, got.tokens), after)
    return got, drafts


def looking_back(batch, seed=1):
    return only(every_param(batch, seed), LOOK_BACK), a_state(batch)


@pytest.mark.slow
def test_a_chain_equals_plain_decoding():
    """Includes all rules that depend on the text, padding, bad rows and texts that exceed their
    room.
    """
    x = logits_of(BATCH, DRAFTS + 1)
    x[1, 2, 7] = np.nan
    params, state = looking_back(BATCH)
    assert int(state.lengths.max()) + DRAFTS >= LENGTH
    got, _ = assert_plain(x, params, state)
    assert len(set(got.num_accepted.tolist())) > 2
    traced = traces(speculative_sample)
    again, _ = assert_plain(x, params, state, seed=1, rate=1.0)
    assert again.num_accepted.max() == DRAFTS
    assert traces(speculative_sample) == traced


@pytest.mark.slow
def test_a_tree_equals_plain_decoding():
    """Includes a chain, equal siblings, and branches deeper than the accepted path."""
    number = 7
    x, rng = logits_of(BATCH, number + 1), np.random.default_rng(0)
    params, state = looking_back(BATCH)
    depths, traced = set(), None
    for seed in range(3):
        parents = plain.random_tree(rng, BATCH, number)
        parents[0] = np.arange(number) - 1
        got, _ = assert_plain(x, params, state, parents, depth=4, seed=seed, rate=0.95)
        depths |= set(got.num_accepted.tolist())
        traced = traced or traces(speculative_sample)
    assert traces(speculative_sample) == traced
    assert depths >= {0, 1, 2, 3}


@pytest.mark.slow
def test_nothing_is_read_after_the_stop():
    """Neither NaN, empty and garbage rows after it nor other drafts or padding change anything."""
    x = logits_of(BATCH, DRAFTS + 1)
    params, state = looking_back(BATCH)
    want, drafts = assert_plain(x, params, state, rate=0.7)
    keys = keys_of(BATCH, DRAFTS + 1)
    behind = np.arange(DRAFTS + 1) > np.asarray(want.num_accepted)[:, None]
    assert behind.sum() > 5
    for nothing in (np.nan, -np.inf, np.inf, 1e30):
        garbage = np.where(behind[..., None], np.float32(nothing), x)
        after = np.where(behind[:, :-1], 2**30, drafts)
        got = speculative_sample(keys, garbage, after, params, state)
        plain.assert_equal(got, want)


def test_bad_rows_keep_drafts_accepted_before_them():
    x = np.tile(np.float32([0, 1, 2, 3]), (3, 3, 1))
    x[0, 0, 1] = x[1, 1, 1] = x[2, 2, 1] = np.nan
    drafts = np.array([[3, 3], [3, 3], [3, -1]])
    out = speculative_sample(keys_of(3, 3), x, drafts, SamplingParams(temperature=0))
    np.testing.assert_array_equal(out.tokens, [[-1, -1, -1], [3, -1, -1], [3, 3, -1]])
    np.testing.assert_array_equal(out.num_accepted, [0, 1, 1])
    np.testing.assert_array_equal(out.nodes, [[0, -1, -1], [0, 1, -1], [0, 1, -1]])
    np.testing.assert_array_equal(np.isfinite(out.logprobs), out.tokens >= 0)


def accepted(sampled, drafts, parents, depth):
    """Computes the definition of `accept_drafts` for one row."""
    tokens, nodes = [sampled[0]], [0]
    while len(nodes) <= depth:
        behind = [i for i, parent in enumerate(parents) if parent == nodes[-1] - 1]
        equal = [i for i in behind if drafts[i] == tokens[-1] >= 0]
        if not equal:
            break
        nodes.append(equal[0] + 1)
        tokens.append(sampled[equal[0] + 1])
    rest = [-1] * (depth + 1 - len(nodes))
    return tokens + rest, len(nodes) - 1, nodes + rest


def test_accept_drafts_follows_its_definition():
    rng = np.random.default_rng(0)
    batch, number = 400, 6
    sampled = rng.integers(-1, 2, (batch, number + 1))
    drafts = rng.integers(-1, 2, (batch, number))
    trees = [(None, plain.chain(batch, number))]
    trees += [(tree := plain.random_tree(rng, batch, number), tree)]
    for parents, tree in trees:
        for depth in (0, 3, number):
            got = accept_drafts(sampled, drafts, parents, depth=depth)
            want = [accepted(*row, depth) for row in zip(sampled, drafts, tree, strict=True)]
            for a, b in zip(got, zip(*want, strict=True), strict=True):
                np.testing.assert_array_equal(a, b)
    each = jax.vmap(accept_drafts)(sampled, drafts, tree)
    for a, b in zip(each, accept_drafts(sampled, drafts, tree), strict=True):
        np.testing.assert_array_equal(a, b)


def test_columns_of_parameters_are_of_rows_or_of_positions():
    """`[batch, 1]` means one value per row, even if there are as many rows as positions."""
    rows, each = np.float32([0.5, 0.7, 0.9]), np.linspace(0.4, 1, 9, dtype=np.float32).reshape(3, 3)
    positioned = functools.partial(positioned_params, "params", logits=jnp.zeros((3, 3, 10)))
    for given, wanted in ((rows[:, None], rows), (each[..., None], each)):
        got, want = (positioned(SamplingParams(temperature=t)).temperature for t in (given, wanted))
        np.testing.assert_array_equal(*(np.broadcast_to(x, (3, 3)) for x in (got, want)))


@pytest.mark.slow
def test_without_drafts_it_equals_sample():
    x, keys = logits_of(3, 1), keys_of(3, 1)
    params, state = SamplingParams(temperature=0.9, frequency_penalty=0.5), a_state(3)
    out = speculative_sample(keys, x, np.zeros((3, 0), int), params, state)
    want = sample(keys[:, 0], x[:, 0], params, state)
    for name in ("tokens", "logprobs", "num_kept"):
        np.testing.assert_array_equal(getattr(out, name)[:, 0], getattr(want, name))
    assert not out.num_accepted.any()
    assert not out.nodes.any()


@pytest.mark.slow
def test_min_tokens_counts_each_draft():
    """Each draft counts, but only if it is written."""
    x = np.tile(np.float32([0, 1, 2]), (1, 4, 1))
    params = SamplingParams(temperature=0, min_tokens=3, stop_token_ids=[[2]])
    state = update_state(js.init_state(np.zeros((1, 2), int), 2, 3, 9), np.array([1]))
    out = speculative_sample(keys_of(1, 4), x, np.array([[1, 1, 2]]), params, state)
    np.testing.assert_array_equal(out.tokens, [[1, 1, 2, 2]])


@pytest.mark.slow
def test_masks_after_a_draft_that_is_not_reached_are_not_read():
    """A grammar has no mask after a draft that it rejects."""
    x = np.tile(np.float32([0, 1, 2, 3]), (2, 4, 1))
    masks = np.int32([[[0b0100], [0b0010], [0], [0]], [[0b1000], [0b0001], [0], [0b1111]]])
    params = SamplingParams(temperature=0, bitmask=masks)
    drafts = np.array([[2, -1, 3], [3, 3, 3]])
    out = speculative_sample(keys_of(2, 4), x, drafts, params)
    np.testing.assert_array_equal(out.tokens, [[2, 1, -1, -1], [3, 0, -1, -1]])
    np.testing.assert_array_equal(out.logprobs[:, :2], 0)


X = np.zeros((2, 4, 10), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"keys": 0}, TypeError, "keys must be a jax.random.key .* request_keys make keys of int"),
        ({"params": SamplingParams(top_k=[[1], [2, 3]])}, ValueError, "top_k must be an array, or"),
        ({"keys": jax.random.key(0)}, ValueError, r"keys must be keys of shape \(2, 'n'\)"),
        ({"keys": keys_of(2, 5)}, ValueError, r"keys must .* n in \[1, 4\], got shape \(2, 5\)"),
        ({"logits": X[0, 0]}, ValueError, "logits must have shape"),
        ({"draft_tokens": np.zeros((2, 4), int)}, ValueError, r"draft_tokens .* \(2, 3\), one"),
        ({"draft_tokens": np.zeros((2, 3))}, TypeError, "draft_tokens must hold integers"),
        ({"parents": np.zeros((2, 4), int)}, ValueError, "parents must be None or have"),
        ({"params": SamplingParams(top_p=[0.1] * 3)}, ValueError, "top_p must be a scalar or"),
        ({"state": a_state(2, 0, 9)}, ValueError, r"state must be of logits of shape \(2, 9\)"),
        ({"params": None}, TypeError, "params must be a SamplingParams"),
    ],
)
def test_errors_name_invalid_arguments(change, error, match):
    given = {
        "keys": keys_of(2, 4),
        "logits": X,
        "draft_tokens": np.zeros((2, 3), int),
        "params": SamplingParams(),
    }
    with pytest.raises(error, match=match):
        speculative_sample(**given | change)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "dtype", "shape", "mode"),
    [
        exhaustive(DEFAULT_ORDER, "bfloat16", "chain", "processed_logprobs"),
        (VLLM_ORDER, "float32", "chain", ("raw_logprobs", "scaled_logprobs")),
        exhaustive(VLLM_ORDER, "float32", "tree", ("raw_logprobs", "scaled_logprobs")),
    ],
)
def test_every_rule_in_its_order(order, dtype, shape, mode):
    """Includes every output; some parameters are per position."""
    batch, positions = 12, 5
    x = logits_of(batch, positions, dtype=dtype)
    params, each = (only(every_param(n, n), order) for n in (batch, batch * positions))
    for field in ("bitmask", "temperature", "logit_bias", "suppressed_token_ids"):
        if (value := getattr(each, field)) is not None:
            split = value.reshape(batch, positions, *value.shape[1:])
            params = dataclasses.replace(params, **{field: split})
    options = {
        "order": order,
        "num_logprobs": 5,
        "logprobs_mode": mode,
        "logprob_token_ids": (3, -1, VOCAB - 1),
        "return_kept": True,
        "num_kept_ids": 2,
        "return_kept_mass": True,
        "return_entropy": True,
        "return_logits": True,
    }
    parents = None
    if shape == "tree":
        parents = plain.random_tree(np.random.default_rng(0), batch, positions - 1)
    got, _ = assert_plain(x, params, a_state(batch), parents, **options)
    assert got.num_accepted.max() >= (3 if shape == "chain" else 2)


def boosted(logits, params, state):
    """Uses every part of the state."""
    seen = js.bitmask_logits(jnp.zeros(logits.shape), state.prompt_mask) == 0
    last = jnp.take_along_axis(state.tokens, state.lengths[..., None] - 1, -1)
    written = (state.lengths - state.prompt_lengths)[..., None]
    logits = jnp.where(seen, logits, logits - params["less"])
    logits = jnp.where(state.counts * 2 > written, logits - 2, logits)
    return logits - (last % 3).astype(jnp.float32)


@pytest.mark.slow
def test_a_rule_of_the_caller_sees_the_drafts():
    x = logits_of(BATCH, DRAFTS + 1)
    params = SamplingParams(custom={"boosted": {"less": 0.5}})
    order = (Rule("boosted", boosted),)
    got, _ = assert_plain(x, params, a_state(BATCH), order=order)
    assert got.num_accepted.max() >= 3
    parents = plain.random_tree(np.random.default_rng(0), BATCH, DRAFTS)
    assert_plain(x, params, a_state(BATCH), parents, order=order)


@pytest.mark.slow
def test_rows_are_independent_and_may_be_mapped():
    x, keys = logits_of(BATCH, DRAFTS + 1), keys_of(BATCH, DRAFTS + 1)
    params, state = looking_back(BATCH)
    want, drafts = assert_plain(x, params, state)
    plain.assert_equal(jax.vmap(speculative_sample)(keys, x, drafts, params, state), want)
    row = jax.tree.map(lambda a: a[2], (keys, x, drafts, params, state))
    alone = jax.tree.map(lambda a: np.asarray(a)[None], speculative_sample(*row))
    plain.assert_equal(alone, jax.tree.map(lambda a: a[2:3], want))
    twice = jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), (keys, jnp.asarray(x), drafts))
    lead = jax.tree.map(lambda a: jnp.asarray(a).reshape(2, 3, *a.shape[1:]), (params, state))
    got = jax.tree.map(lambda a: a.reshape(6, *a.shape[2:]), speculative_sample(*twice, *lead))
    plain.assert_equal(got, want)


@pytest.mark.slow
def test_gradients_are_those_of_the_tokens_on_the_path():
    x, keys = jnp.asarray(logits_of(BATCH, DRAFTS + 1)), keys_of(BATCH, DRAFTS + 1)
    params = SamplingParams(temperature=0.7)
    drawn = sample(keys, x, params)
    drafts = np.array(drawn.tokens)[:, :-1]
    drafts[np.arange(3), np.arange(3)] += 1

    def total(x):
        out = speculative_sample(keys, x, drafts, params)
        return jnp.nansum(out.logprobs), out.nodes

    def wanted(x, nodes):
        return jnp.sum(jnp.where(nodes >= 0, sample(keys, x, params).logprobs, 0))

    gradient, nodes = jax.grad(total, has_aux=True)(x)
    np.testing.assert_allclose(gradient, jax.grad(wanted)(x, nodes), atol=1e-6)
    np.testing.assert_array_equal((nodes >= 0).sum(-1)[:4], [1, 2, 3, 5])


def every_way(keys, x, drafts, params, state, axis_name=None):
    """Returns a call of each function for drafts."""
    given = {"axis_name": axis_name}
    verified = speculative_sample(keys, x, drafts, params, state, **given)
    args = (keys[:, 0], x, drafts, x[:, :-1], SamplingParams())
    rejected = js.rejection_sample(*args, method="block", **given)
    return verified, rejected, js.nearest_draws(keys[:, 0], x[:, 0], num=3, **given)


def wide_arguments():
    batch, positions, vocab = 4, 3, meshes.VOCAB
    x, keys = jnp.asarray(logits_of(batch, positions, vocab)), keys_of(batch, positions)
    params = only(every_param(batch, vocab=vocab), ("frequency_penalty", "temperature"))
    drafts = js.categorical_sample(keys, x)[:, :-1]
    return jax.tree.map(jnp.asarray, (keys, x, drafts, params, a_state(batch, vocab=vocab)))


@pytest.mark.slow
@several_devices
def test_devices_that_share_a_row_get_the_result_of_one():
    arguments = wide_arguments()
    want = jax.jit(every_way)(*arguments)
    mesh = meshes.mesh_of(*meshes.MESHES["both"])
    inside = jax.jit(meshes.sharded_map(every_way, arguments[1], arguments, mesh))
    jax.tree.map(np.testing.assert_array_equal, inside(*arguments), want)

    def place(leaf):
        spec = meshes.spec_of(arguments[1], leaf)
        return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

    outside = jax.jit(every_way)(*jax.tree.map(place, arguments))
    jax.tree.map(np.testing.assert_array_equal, outside, want)


@pytest.mark.slow
def test_an_exported_program_and_64_bits_give_the_same():
    keys, x, drafts, params, _ = wide_arguments()

    def draw(words, x, drafts, temperature):
        params = SamplingParams(temperature=temperature, top_k=20)
        out = speculative_sample(jax.random.wrap_key_data(words), x, drafts, params)
        return out[:5]

    given = (jax.random.key_data(keys), x, drafts, params.temperature)
    want = draw(*given)
    (batch,) = export.symbolic_shape("batch")
    like = [jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype) for a in given]
    program = export.export(jax.jit(draw), platforms=["cpu", "cuda", "tpu"])(*like)
    got = export.deserialize(program.serialize()).call(*given)
    jax.tree.map(np.testing.assert_array_equal, tuple(got), tuple(want))
    with jax.enable_x64(True):
        wide = (*given[:2], np.asarray(drafts, np.int64), np.asarray(given[3], np.float64))
        got = draw(*wide)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_no_logits_are_written_without_penalties_and_one_array_with_them():
    batch, positions, vocab = 8, 5, 128256
    x = jax.ShapeDtypeStruct((batch, positions, vocab), jnp.float32)
    size = 4 * batch * positions * vocab
    keys, drafts = keys_of(batch, positions), np.zeros((batch, positions - 1), int)
    state = jax.eval_shape(lambda: js.init_state(np.zeros((batch, 8), int), 8, vocab, 64))
    plain_params = SamplingParams(temperature=0.8, top_k=40, top_p=0.9)
    penalised = dataclasses.replace(plain_params, frequency_penalty=0.5, repetition_penalty=1.1)
    for params, most in ((plain_params, 0.3), (penalised, 1.3)):
        compiled = jax.jit(speculative_sample).lower(keys, x, drafts, params, state).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < most * size


@pytest.mark.slow
def test_the_text_of_a_chain_is_written_once():
    """It is not written for each position."""
    batch, positions, vocab, length = 2, 5, 40, 2**16
    state = jax.eval_shape(lambda: js.init_state(np.zeros((batch, 8), int), 8, vocab, length))
    params = SamplingParams(bad_words=np.ones((1, 2), int), bad_word_lengths=np.array([2]))
    x, drafts = np.zeros((batch, positions, vocab)), np.zeros((batch, positions - 1), int)
    program = jax.jit(speculative_sample).lower(keys_of(batch, positions), x, drafts, params, state)
    texts = 4 * batch * length
    assert program.compile().memory_analysis().temp_size_in_bytes < 2 * texts
