"""Penalties of a window of the text, and tokens exempt from penalties, DRY and XTC."""

import dataclasses

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import plain
import pytest
import reference
import reference_penalties
from composed import a_state
from rows import every_kind, exhaustive, make, several_devices, slow, traces

import jaxsample as js
from jaxsample import SamplerState, SamplingParams, process_logits, sample

VOCAB, ROOM, BATCH = 40, 24, 18
PENALTIES = {
    "repetition_penalty": np.resize(np.float32([1.3, 0.7, 1]), BATCH),
    "frequency_penalty": np.resize(np.float32([0.4, -0.3, 0, 0.5]), BATCH),
    "presence_penalty": np.resize(np.float32([0.7, 0, -0.2, 0.1, 0.3]), BATCH),
}
WINDOWS = np.resize(np.int32([1, 0, 3, 7, 2, ROOM - 1, 9, 2**31 - 1]), BATCH)
EXEMPT = np.resize(np.int32([[-1, 2], [3, 3], [-1, -1], [0, VOCAB - 1]]), (BATCH, 2))


def texts(batch=BATCH, vocab=VOCAB):
    """Returns states of every length over few ids, some outside the vocabulary."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(-1, 5, (batch, ROOM)).astype(np.int32)
    tokens[::3, ::5] = vocab + 1
    lengths = rng.integers(0, ROOM + 1, batch)
    lengths[:3] = [ROOM, 0, 1]
    prompts = rng.integers(0, lengths + 1)
    return SamplerState.from_tokens(np.where(tokens < 0, 0, tokens), prompts, lengths, vocab)


def definition(x, state, window, exempt):
    """Returns the penalties in float64, each row with the counts of its window."""
    rows = []
    for i, row in enumerate(x):
        text = np.asarray(state.tokens[i, : state.lengths[i]]).tolist()
        listed = tuple(token for token in exempt[i] if token >= 0)
        prompt = int(state.prompt_lengths[i])
        seen, counts = reference_penalties.counted(text, prompt, window[i], listed, row.size)
        row = reference_penalties.repetition(row, seen, PENALTIES["repetition_penalty"][i])
        row = reference_penalties.frequency(row, counts, PENALTIES["frequency_penalty"][i])
        rows.append(reference_penalties.presence(row, counts, PENALTIES["presence_penalty"][i]))
    return np.stack(rows)


@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16"), exhaustive("float16")])
def test_penalties_of_a_window_match_their_definition(dtype):
    """Includes exempt tokens and rows without a window; one program serves all values."""
    x, state = every_kind(2, VOCAB, dtype), texts()
    traced = None
    for windows, exempt in ((WINDOWS, EXEMPT), (WINDOWS[::-1], np.full_like(EXEMPT, -1))):
        for window in (windows, None):
            params = SamplingParams(**PENALTIES, penalty_window=window, exempt_token_ids=exempt)
            got = np.asarray(process_logits(x, params, state))
            want = definition(x, state, np.zeros(BATCH, int) if window is None else window, exempt)
            assert got.dtype == np.float32
            np.testing.assert_allclose(got.astype(np.float64), want, rtol=1e-6, atol=2e-6)
            same = want == x.astype(np.float64)
            np.testing.assert_array_equal(got[same], x.astype(np.float32)[same])
            assert (~same).any(axis=-1).sum() > BATCH / 2
        traced = traced or traces(process_logits)
    assert traces(process_logits) == traced


def test_a_window_of_the_whole_text_changes_no_bit():
    x, state = every_kind(2, VOCAB), texts()
    want = np.asarray(process_logits(x, SamplingParams(**PENALTIES), state))
    nothing = {"exempt_token_ids": np.full((BATCH, 2), -1)}
    for window in (0, ROOM, np.asarray(state.lengths)):
        params = SamplingParams(
            **PENALTIES, **nothing, penalty_window=np.broadcast_to(np.int32(window), BATCH)
        )
        got = np.asarray(process_logits(x, params, state))
        np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32))
    got = np.asarray(process_logits(x, SamplingParams(**PENALTIES, **nothing), state))
    np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32))


def test_bad_windows_and_ids_make_their_row_bad_and_no_other():
    x, state = every_kind(2, VOCAB), texts()
    given = {"penalty_window": WINDOWS, "exempt_token_ids": EXEMPT}
    want = np.asarray(process_logits(x, SamplingParams(**PENALTIES, **given), state))
    assert not np.isnan(want).any()
    for name, value in (
        ("penalty_window", -1),
        ("penalty_window", -(2**31)),
        ("exempt_token_ids", VOCAB),
        ("repetition_penalty", 0),
        ("presence_penalty", np.nan),
    ):
        changed = {field: array.copy() for field, array in (PENALTIES | given).items()}
        changed[name][4] = value
        got = np.asarray(process_logits(x, SamplingParams(**changed), state))
        assert np.isnan(got[4]).all(), name
        np.testing.assert_array_equal(np.delete(got, 4, 0), np.delete(want, 4, 0))
    with pytest.raises(ValueError, match=r"penalty_window\[1\] must be at least 0, got -1"):
        SamplingParams(penalty_window=np.array([0, -1])).validate()


def test_bad_and_masked_logits_do_not_change():
    x, state = np.zeros((BATCH, VOCAB), np.float32), texts()
    x[0, 3], x[1, 3], x[2, 3], x[3] = np.nan, np.inf, -np.inf, -np.inf
    given = {"penalty_window": WINDOWS, "exempt_token_ids": EXEMPT}
    got = np.asarray(process_logits(x, SamplingParams(**PENALTIES, **given), state))
    assert np.isnan(got[0, 3])
    assert got[1, 3] == np.inf
    assert got[2, 3] == -np.inf
    assert (got[3] == -np.inf).all()


@pytest.mark.slow
def test_a_window_without_penalties_adds_no_stage():
    x = every_kind(2, VOCAB)
    params = SamplingParams(penalty_window=3, exempt_token_ids=np.array([1]))
    np.testing.assert_array_equal(process_logits(x, params), x)


@pytest.mark.slow
def test_exempt_tokens_of_dry():
    x, state = every_kind(2, VOCAB), texts()
    multiplier, base, allowed = np.float32(0.8), np.float32(1.2), np.int32(1)
    params = SamplingParams(
        dry_multiplier=multiplier,
        dry_base=base,
        dry_allowed_length=allowed,
        exempt_token_ids=EXEMPT,
    )
    got = np.asarray(process_logits(x, params, state))
    want = []
    for row, text, n, listed in zip(x, state.tokens, state.lengths, EXEMPT, strict=True):
        exempt = tuple(token for token in listed if token >= 0)
        text = np.asarray(text)[:n].tolist()
        want.append(reference_penalties.dry(row, text, multiplier, base, allowed, (), exempt))
    np.testing.assert_allclose(got, np.stack(want), rtol=1e-6, atol=1e-6)
    none = dataclasses.replace(params, exempt_token_ids=np.full_like(EXEMPT, -1))
    plainly = np.asarray(process_logits(x, none, state))
    assert (got != plainly).any(axis=-1).sum() >= 4


@pytest.mark.parametrize("dtype", [slow("float32"), exhaustive("bfloat16")])
def test_exempt_tokens_of_xtc(dtype):
    """They are never dropped, and count as likely tokens."""
    x = np.concatenate([make(kind, 6, VOCAB, dtype) for kind in ("normal", "peaked", "masked")])
    ids, keys = EXEMPT.copy(), jax.random.split(jax.random.key(0), BATCH)
    ids[:, 0] = x.argmax(axis=-1)
    got = np.asarray(js.xtc_logits(keys, x, 1.0, 0.03, ids))
    without = np.asarray(js.xtc_logits(keys, x, 1.0, 0.03))
    listed = (np.arange(VOCAB) == ids[..., None]).any(axis=1)
    kept = np.stack([reference.xtc(row.astype(np.float64), 0.03) for row in x]) | listed
    np.testing.assert_array_equal(got, np.where(kept, x, np.asarray(-np.inf, x.dtype)))
    assert (got != without).any(axis=-1).sum() > BATCH / 2
    ids[2, 1] = VOCAB
    bad = np.isnan(np.asarray(js.xtc_logits(keys, x, 1.0, 0.03, ids), np.float32)).all(axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(bad), [2])


def looking_back(batch, vocab, window=True):
    rng = np.random.default_rng(1)
    return SamplingParams(
        **{name: value[:batch] for name, value in PENALTIES.items()},
        penalty_window=rng.integers(0, 6, batch) if window else None,
        exempt_token_ids=rng.integers(-1, 4, (batch, 2)),
        dry_multiplier=0.8,
        dry_allowed_length=1,
        temperature=rng.choice(np.float32([0, 0.7, 1]), batch),
    ), a_state(batch, vocab=vocab)


@pytest.mark.parametrize(
    ("shape", "window"),
    [slow("chain", True), *(exhaustive(*of) for of in (("chain", False), ("tree", True)))],
)
def test_drafts_are_in_the_window(shape, window):
    """Tokens, log-probs and states equal those of plain decoding bit for bit."""
    batch, drafts, vocab = 6, 4, 50
    rng = np.random.default_rng(0)
    x = every_kind(4, vocab)[: batch * (drafts + 1)].reshape(batch, drafts + 1, vocab).copy()
    x[..., :4] += 3
    params, state = looking_back(batch, vocab, window)
    tree = plain.chain(batch, drafts)
    if shape == "tree":
        tree = plain.random_tree(rng, batch, drafts)
    keys = js.request_keys(np.arange(batch)[:, None], np.arange(drafts + 1)[None])
    some = rng.integers(0, 4, (batch, drafts))
    some, want, _ = plain.decode(keys, x, some, params, state, tree, rng)
    parents = tree if shape == "tree" else None
    got = js.speculative_sample(keys, x, some, params, state, parents=parents)
    plain.assert_equal(got, want)
    assert got.num_accepted.max() >= 2


@pytest.mark.exhaustive
@several_devices
def test_devices_that_share_a_row_get_the_result_of_one():
    batch, vocab = 8, meshes.VOCAB
    x = jnp.asarray(make("normal", batch, vocab))
    x = x.at[:, :4].add(3)
    params, state = looking_back(batch, vocab)
    more = SamplingParams(
        sequence_bias_tokens=np.tile(np.int32([[1, 2], [3, vocab - 1]]), (batch, 1, 1)),
        sequence_bias_lengths=np.tile(np.int32([2, 1]), (batch, 1)),
        sequence_bias=np.full((batch, 2), 3, np.float32),
        forced_token_id=np.where(np.arange(batch) % 3, -1, vocab - 5),
        xtc_probability=np.full(batch, 0.7, np.float32),
        xtc_threshold=np.full(batch, 0.01, np.float32),
    )
    added = {name: value for name, value in vars(more).items() if value is not None}
    params = dataclasses.replace(params, **added)
    keys = jax.random.split(jax.random.key(0), batch)
    arguments = jax.tree.map(jnp.asarray, (keys, x, params, state))
    want = jax.jit(sample)(*arguments)
    mesh = meshes.mesh_of(*meshes.MESHES["both"])
    inside = jax.jit(meshes.sharded_map(sample, x, arguments, mesh))
    jax.tree.map(np.testing.assert_array_equal, inside(*arguments), want)
    assert (want.tokens[::3] == vocab - 5).all()


@pytest.mark.slow
def test_a_window_writes_no_counts_of_the_size_of_the_logits():
    """The logits are written once, as without a window, and texts are sorted."""
    batch, vocab = 8, 128256
    x = jax.ShapeDtypeStruct((batch, vocab), jnp.float32)
    state = jax.eval_shape(lambda: js.init_state(np.zeros((batch, 8), int), 8, vocab, 64))
    params = SamplingParams(frequency_penalty=0.5, repetition_penalty=1.1)
    sizes = []
    for given in ({}, {"penalty_window": 9}):
        program = jax.jit(process_logits).lower(x, dataclasses.replace(params, **given), state)
        sizes.append(program.compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] + 0.1 * 4 * batch * vocab
