"""Beam search against its definition in NumPy, and what must not matter to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_beams as reference
from rows import slow, traces

import jaxsample as js

BATCH, VOCAB, LENGTH, BEAMS = 5, 7, 6, 4
STOPS = np.array([[2, -1], [2, 5], [-1, -1], [0, 2], [2, 2]], np.int32)
PENALTIES = np.array([-1.0, 0.0, 0.5, 1.0, 2.0], np.float32)
DIVERSITIES = np.array([0.0, 0.3, 1.0, 0.3, 5.0], np.float32)


def tables(seed, vocab=VOCAB, batch=BATCH, length=LENGTH):
    """Logits `[batch, length, vocab + 1, vocab]` behind a position and a token, or none."""
    x = np.random.default_rng(seed).normal(size=(batch, length, vocab + 1, vocab)) * 2
    return x.astype(np.float32)


@functools.partial(
    jax.jit, static_argnames=("num_beams", "num_groups", "early_stopping", "normalize")
)
def searched(
    table, stops, length_penalty, diversity_penalty=0.0, *, num_beams=BEAMS, num_groups=1, **options
):
    """A whole search in one program, and its last state; tables `[..., length, tokens, vocab]`."""
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

    none = jnp.full(state.scores.shape, -1, jnp.int32)  # the last row of a table
    state, _ = jax.lax.while_loop(lambda carry: ~jnp.all(carry[0].done), step, (state, none))
    return js.finalize_beams(state, num_return=num_beams), state


def defined(table, **settings):
    return reference.search(
        lambda text: table[len(text), text[-1] if text else -1], max_length=len(table), **settings
    )


def assert_defined(out, tables, num_beams=BEAMS, stops=STOPS, diversities=None, **settings):
    """Every search is the definition's, of all of its hypotheses."""
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
def test_a_search_is_the_one_defined(early_stopping):
    lengths = set()
    for seed in range(8):
        x = tables(seed)
        if seed % 2:
            x[np.random.default_rng(seed).random(x.shape) < 0.4] = -np.inf
        out, state = searched(x, STOPS, PENALTIES, early_stopping=early_stopping)
        assert_defined(out, x, early_stopping=early_stopping)
        assert (state.lengths[2] == LENGTH) or seed % 2
        lengths |= set(np.asarray(state.lengths).tolist())
    assert len(lengths) > 2  # the searches of a batch end at different times


@pytest.mark.slow
@pytest.mark.parametrize(("num_beams", "early_stopping"), [(1, False), (2, True), (8, "never")])
def test_numbers_of_beams(num_beams, early_stopping):
    """Also more beams than tokens."""
    for seed in range(4):
        x = tables(seed)
        out, _ = searched(x, STOPS, PENALTIES, num_beams=num_beams, early_stopping=early_stopping)
        assert_defined(out, x, num_beams=num_beams, early_stopping=early_stopping)


@pytest.mark.parametrize(
    ("num_groups", "early_stopping"), [slow(2, False), (4, "never"), slow(2, True)]
)
def test_groups_are_those_defined(num_groups, early_stopping):
    options = {"num_groups": num_groups, "early_stopping": early_stopping}
    for seed in range(4):
        x = tables(seed)
        out, _ = searched(x, STOPS, PENALTIES, DIVERSITIES, **options)
        assert_defined(out, x, diversities=DIVERSITIES, **options)
    first = np.asarray(out.tokens)[4, :, 0]
    assert len(set(first.tolist())) == num_groups  # at a penalty of 5


def test_beams_that_cover_the_tree_give_the_optimum():
    """By enumeration of all 46 texts: none is pruned, so any penalty gives all in order."""
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


def test_ties_go_by_beam_and_then_by_token():
    """Sums of eighths are exact, and many are equal; rows that are not normalized."""
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
