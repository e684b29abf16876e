"""Beam search compared with its definition in NumPy, and invariances."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_beams as reference
from rows import exhaustive, slow, traces
from unoptimised import to_read

import jaxsample as js

BATCH, VOCAB, LENGTH, BEAMS = 5, 7, 6, 4
STOPS = np.array([[2, -1], [2, 5], [-1, -1], [0, 2], [2, 2]], np.int32)
PENALTIES = np.array([-1.0, 0.0, 0.5, 1.0, 2.0], np.float32)
DIVERSITIES = np.array([0.0, 0.3, 1.0, 0.3, 5.0], np.float32)


def tables(seed, vocab=VOCAB, batch=BATCH, length=LENGTH):
    """Returns logits `[batch, length, vocab + 1, vocab]` by position and previous token or none."""
    x = np.random.default_rng(seed).normal(size=(batch, length, vocab + 1, vocab)) * 2
    return x.astype(np.float32)


@functools.partial(
    jax.jit, static_argnames=("num_beams", "num_groups", "early_stopping", "normalize")
)
def searched(
    table, stops, length_penalty, diversity_penalty=0.0, *, num_beams=BEAMS, num_groups=1, **options
):
    """Returns a search and its last state; tables are `[..., length, tokens, vocab]`."""
    batch = table.shape[:-3]
    state = js.init_beams(num_beams, table.shape[-3], batch, num_groups=num_groups)

    def behind(table, length, token):
        return table[jnp.minimum(length, table.shape[0] - 1), token]

    for _ in batch:
        behind = jax.vmap(behind)

    def step(carry):
        state, last = carry
        logits = behind(table, state.lengths, last)
        state, tokens, _ = js.beam_step(
            state,
            logits,
            stop_token_ids=stops,
            length_penalty=length_penalty,
            diversity_penalty=diversity_penalty,
            **options,
        )
        return state, tokens

    none = jnp.full(state.scores.shape, -1, jnp.int32)  # selects the last row of a table
    state, _ = jax.lax.while_loop(lambda carry: ~jnp.all(carry[0].done), step, (state, none))
    return js.finalize_beams(state, num_return=num_beams), state


def defined(table, **settings):
    return reference.search(
        lambda text: table[len(text), text[-1] if text else -1], max_length=len(table), **settings
    )


def assert_defined(out, tables, num_beams=BEAMS, stops=STOPS, diversities=None, **settings):
    """Asserts that all hypotheses of every search equal those of the definition."""
    out = jax.tree.map(np.asarray, out)
    for i, table in enumerate(tables):
        want = defined(
            table,
            num_beams=num_beams,
            stops=[t for t in stops[i] if t >= 0],
            length_penalty=float(PENALTIES[i]),
            diversity_penalty=0.0 if diversities is None else float(diversities[i]),
            **settings,
        )
        got = [
            tuple(int(t) for t in tokens[:length])
            for tokens, length in zip(out.tokens[i], out.lengths[i], strict=True)
        ]
        assert got[: len(want)] == [text for _, text in want]
        np.testing.assert_allclose(out.scores[i, : len(want)], [s for s, _ in want], rtol=1e-5)
        assert np.isnan(out.scores[i, len(want) :]).all()
        assert (out.lengths[i, len(want) :] == 0).all()
        for tokens, length in zip(out.tokens[i], out.lengths[i], strict=True):
            assert (tokens[length:] == -1).all()


@pytest.mark.parametrize("early_stopping", [False, slow(True), slow("never")])
def test_a_search_matches_the_definition(early_stopping):
    lengths = set()
    for seed in range(8):
        x = tables(seed)
        if seed % 2:
            x[np.random.default_rng(seed).random(x.shape) < 0.4] = -np.inf
        out, state = searched(x, STOPS, PENALTIES, early_stopping=early_stopping)
        assert_defined(out, x, early_stopping=early_stopping)
        assert (state.lengths[2] == LENGTH) or seed % 2
        lengths |= set(np.asarray(state.lengths).tolist())
    assert len(lengths) > 2  # the searches of a batch end at different steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_beams", "early_stopping"), [exhaustive(1, False), (2, True), (8, "never")]
)
def test_numbers_of_beams(num_beams, early_stopping):
    """Includes more beams than tokens."""
    for seed in range(4):
        x = tables(seed)
        out, _ = searched(x, STOPS, PENALTIES, num_beams=num_beams, early_stopping=early_stopping)
        assert_defined(out, x, num_beams=num_beams, early_stopping=early_stopping)


@pytest.mark.parametrize(
    ("num_groups", "early_stopping"), [slow(2, False), slow(4, "never"), exhaustive(2, True)]
)
def test_groups_match_the_definition(num_groups, early_stopping):
    options = {"num_groups": num_groups, "early_stopping": early_stopping}
    for seed in range(4):
        x = tables(seed)
        out, _ = searched(x, STOPS, PENALTIES, DIVERSITIES, **options)
        assert_defined(out, x, diversities=DIVERSITIES, **options)
    assert len(set(np.asarray(out.tokens)[4, :, 0].tolist())) >= num_groups  # at a penalty of 5


@pytest.mark.slow
def test_beams_that_cover_the_tree_give_the_optimum():
    """Enumerates all 31 texts: no beam is dropped, so all are found in order."""
    x = tables(0, vocab=3, length=4)
    stops = np.broadcast_to(np.array([[1, -1]], np.int32), (BATCH, 2))
    out, _ = searched(x, stops, PENALTIES, num_beams=50, early_stopping="never")
    for i, table in enumerate(x):
        every = reference.every_text(
            lambda text: table[len(text), text[-1] if text else -1], 3, 4, [1], float(PENALTIES[i])
        )
        assert int((out.lengths[i] > 0).sum()) == len(every) == 31
        np.testing.assert_allclose(out.scores[i, :31], [s for s, _ in every], rtol=1e-5)
        best = tuple(out.tokens[i, 0, : out.lengths[i, 0]].tolist())
        assert best == every[0][1]


@pytest.mark.slow
def test_ties_go_by_beam_and_then_by_token():
    """Sums of eighths are exact, and many are equal; rows are not normalized."""
    for seed in range(4):
        x = -np.random.default_rng(seed).integers(0, 3, tables(0).shape).astype(np.float32) / 8
        out, _ = searched(x, STOPS, PENALTIES * 0, early_stopping="never", normalize=False)
        for i, table in enumerate(x):
            want = defined(
                table,
                num_beams=BEAMS,
                stops=[t for t in STOPS[i] if t >= 0],
                length_penalty=0.0,
                early_stopping="never",
                normalize=False,
            )
            assert out.scores[i].tolist() == [score for score, _ in want]
            for tokens, length, (_, text) in zip(out.tokens[i], out.lengths[i], want, strict=True):
                assert tuple(tokens[:length].tolist()) == text


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.exhaustive
@pytest.mark.parametrize("num_groups", [1, 2])
def test_batch_slot_and_vmap_do_not_matter(num_groups):
    """A search that ends earlier than others of its batch does not change while they continue."""
    x = tables(3)
    want = searched(x, STOPS, PENALTIES, DIVERSITIES, num_groups=num_groups)
    assert len(set(np.asarray(want[1].lengths).tolist())) > 1
    order = np.array([3, 1, 4, 0, 2])
    given = (x, STOPS, PENALTIES, DIVERSITIES)
    moved = searched(*(a[order] for a in given), num_groups=num_groups)
    assert_equal(moved, jax.tree.map(lambda a: a[order], want))
    mapped = jax.vmap(functools.partial(searched, num_groups=num_groups))(*map(jnp.asarray, given))
    assert_equal(mapped, want)
    alone = searched(*(a[1] for a in given), num_groups=num_groups)
    assert_equal(alone, jax.tree.map(lambda a: a[1], want))


def stepped(state, x, **options):
    return js.beam_step(state, jnp.asarray(x), stop_token_ids=jnp.array([2]), **options)


def a_state(batch=(3,)):
    """Returns the state after a first step, in which all beams exist."""
    x = jnp.broadcast_to(jnp.asarray(tables(1)[0, 0, 0]), (*batch, BEAMS, VOCAB))
    return stepped(js.init_beams(BEAMS, LENGTH, batch), x)[0]


@pytest.mark.parametrize("bad", [np.nan, slow(np.inf), slow(-np.inf)])
def test_a_bad_beam_ends_and_touches_no_other(bad):
    state = a_state()
    x = np.random.default_rng(0).normal(size=(3, BEAMS, VOCAB)).astype(np.float32)
    want = stepped(state, x)
    hurt = x.copy()
    hurt[1, 2, slice(None) if bad == -np.inf else 3] = bad
    hurt[2] = np.nan
    after, tokens, parents = stepped(state, hurt)
    assert_equal(*(jax.tree.map(lambda a: a[0], r) for r in ((after, tokens, parents), want)))
    # The remaining beams are those of a search without the third.
    masked = state.scores.at[1, 2].set(-np.inf)
    without, kept, _ = stepped(dataclasses.replace(state, scores=masked), x)
    np.testing.assert_array_equal(after.scores[1], without.scores[1])
    np.testing.assert_array_equal(tokens[1], kept[1])
    assert (tokens[1] >= 0).all()
    assert not (parents[1] == 2).any()
    # A search without good beams has ended.
    assert after.done.tolist() == [False, False, True]
    assert (tokens[2] == -1).all()
    assert parents[2].tolist() == [*range(BEAMS)]
    out = js.finalize_beams(after, num_return=2)
    assert (out.tokens[2] == -1).all()
    assert np.isnan(out.scores[2]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [("length_penalty", np.nan), ("length_penalty", np.inf), ("diversity_penalty", -1.0)],
)
def test_a_search_with_a_bad_parameter_ends(name, value):
    state = a_state()
    x = np.random.default_rng(0).normal(size=(3, BEAMS, VOCAB)).astype(np.float32)
    want = stepped(state, x, **{name: jnp.full(3, 0.5)})
    got = stepped(state, x, **{name: jnp.array([0.5, value, 0.5])})
    good = np.array([0, 2])
    assert_equal(*(jax.tree.map(lambda a: a[good], r) for r in (got, want)))
    assert got[0].done.tolist() == [False, True, False]
    assert (got[1][1] == -1).all()


@pytest.mark.slow
def test_a_finished_search_does_not_change():
    x = tables(5)
    _, state = searched(x, STOPS, PENALTIES)
    after, tokens, parents = stepped(state, x[:, 0, :BEAMS], length_penalty=PENALTIES)
    assert_equal(after, state)
    assert (tokens == -1).all()
    np.testing.assert_array_equal(parents, np.broadcast_to(np.arange(BEAMS), tokens.shape))


@pytest.mark.slow
def test_one_token():
    """V = 1: only one text exists for any number of beams."""
    x = jnp.zeros((BEAMS, 1))
    state = js.init_beams(BEAMS, 2)
    for _ in range(2):
        assert not state.done
        state, *_ = js.beam_step(state, x)
    out = js.finalize_beams(state, num_return=2)
    assert state.done
    assert out.tokens.tolist() == [[0, 0], [-1, -1]]
    np.testing.assert_array_equal(out.scores, [0, np.nan])
    assert out.lengths.tolist() == [2, 0]
    ended, *_ = js.beam_step(js.init_beams(BEAMS, 2), x, stop_token_ids=[0])
    assert ended.done
    assert js.finalize_beams(ended).lengths.tolist() == [1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", exhaustive("float16")])
def test_narrow_logits_are_read_exactly(dtype):
    x = jnp.asarray(tables(2)[0, 0, :BEAMS], dtype)
    got, want = (js.beam_step(a_state(()), y) for y in (x, x.astype(jnp.float32)))
    assert_equal(got, want)


@pytest.mark.slow
def test_penalties_of_any_size_drop_no_hypothesis():
    x = tables(4)
    for penalty in (-300.0, 300.0):
        out, _ = searched(x, STOPS, np.full(BATCH, penalty, np.float32))
        assert np.isfinite(out.scores).all()


@pytest.mark.slow
def test_values_compile_once():
    state = a_state()
    x = tables(6)[:3, 0, :BEAMS]
    for i in range(4):
        js.beam_step(state, x, stop_token_ids=[i, -1], length_penalty=i, diversity_penalty=i / 2)
        js.beam_step(state, x, stop_token_ids=np.array([i, 1]), length_penalty=jnp.float32(i))
        if not i:
            before = traces(js.beam_step)
    assert traces(js.beam_step) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beam_step", "stochastic_beam_step"])
def test_nothing_of_the_size_of_the_logits_is_written(name):
    x = jax.ShapeDtypeStruct((8, 4, 128256), jnp.float32)
    stops = jnp.array([2])
    if name == "beam_step":
        program = jax.jit(functools.partial(js.beam_step, stop_token_ids=stops))
        given = js.init_beams(4, 8, (8,)), x
    else:
        program = jax.jit(functools.partial(js.stochastic_beam_step, stop_token_ids=stops))
        given = jax.random.key(0), js.init_stochastic_beams(4, 8, (8,)), x
    memory = to_read(program, given).memory_analysis()
    assert memory.temp_size_in_bytes < 4 * x.size / 8


@pytest.mark.slow
def test_a_batch_may_be_sharded():
    state, x = a_state((8,)), tables(6, batch=8)[:, 0, :BEAMS]
    want = stepped(state, x)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    assert_equal(stepped(*jax.device_put((state, x), over)), want)


def test_take_beams_of_any_tree():
    parents = np.array([[2, 0, 0], [1, 1, 2]])
    tree = {
        "cache": (jnp.arange(24, dtype=jnp.bfloat16).reshape(2, 3, 4), np.arange(6).reshape(2, 3)),
        "flags": jnp.array([[True, False, False]] * 2),
        "keys": jax.random.split(jax.random.key(0), (2, 3)),
        "none": None,
    }
    got = js.take_beams(tree, parents)
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(got), strict=True):
        assert x.dtype == y.dtype or x.dtype == np.int64
        for row, taken, index in zip(x, y, parents, strict=True):
            for place, parent in enumerate(index):
                assert (row[parent] == taken[place]).all()


def test_errors_name_the_argument():
    state = js.init_beams(BEAMS, LENGTH, (2,))
    x = jnp.zeros((2, BEAMS, VOCAB))
    for call, message in {
        lambda: js.init_beams(0, 3): "num_beams must be in",
        lambda: js.init_beams(4, 0): "max_length must be in",
        lambda: js.init_beams(4, 3, num_groups=3): "num_groups must divide num_beams = 4, got 3",
        lambda: js.beam_step(state, x[:, :2]): "logits must have shape",
        lambda: js.beam_step(state, x, early_stopping="always"): "early_stopping must be True, Fal",
        lambda: js.beam_step(state, x, length_penalty=jnp.zeros(3)): "length_penalty must be a",
        lambda: js.beam_step(state, x, stop_token_ids=3): "stop_token_ids must have shape",
        lambda: js.finalize_beams(state, num_return=5): r"num_return must be in \[1, 4\], got 5",
        lambda: js.take_beams({"k": x[:, 0]}, jnp.zeros((2, BEAMS), int)): r"tree\['k'\] must have",
        lambda: js.take_beams(x, 0): r"parents must have shape \[..., beams\]",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="state must be of type BeamState"):
        js.beam_step(x, x)
    with pytest.raises(TypeError, match="parents must hold integers"):
        js.take_beams(x, jnp.zeros((2, BEAMS)))
