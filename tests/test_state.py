"""The state of a batch: its contents, the cost of a step, and the replacement of rows."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import ON_GPU

from jaxsample import (
    SamplerState,
    SamplingParams,
    bitmask_logits,
    init_state,
    packed_bitmask,
    reset_rows,
    sample,
    update_state,
)

PROMPTS = np.array([[3, 1, 3, 9], [0, 0, 0, 0], [5, 40, -2, 1]])
LENGTHS = np.array([4, 0, 3])


def mask_of(bitmask, vocab):
    return np.asarray(bitmask_logits(jnp.zeros((*bitmask.shape[:-1], vocab)), bitmask)) == 0


def test_a_new_state_contains_the_prompts():
    state = init_state(PROMPTS, LENGTHS, vocab_size=10, max_length=6)
    np.testing.assert_array_equal(state.lengths, LENGTHS)
    np.testing.assert_array_equal(state.prompt_lengths, LENGTHS)
    np.testing.assert_array_equal(state.tokens[0], [3, 1, 3, 9, 0, 0])
    np.testing.assert_array_equal(state.tokens[1], np.zeros(6))
    seen = [set(np.flatnonzero(row)) for row in mask_of(state.prompt_mask, 10)]
    assert seen == [{1, 3, 9}, set(), {5}]  # 40 and -2 are not in the vocabulary
    assert not np.asarray(state.counts).any()


def test_steps_append_and_count_active_rows_only():
    state = init_state(PROMPTS, LENGTHS, 10, 6)
    state = update_state(state, np.array([7, 7, 2]), np.array([True, False, True]))
    state = update_state(state, np.array([7, 8, -1]))  # -1 is the token of a bad row
    np.testing.assert_array_equal(state.lengths, [6, 1, 4])
    np.testing.assert_array_equal(state.tokens[:2], [[3, 1, 3, 9, 7, 7], [8, 0, 0, 0, 0, 0]])
    want = np.zeros((3, 10))
    want[0, 7], want[1, 8], want[2, 2] = 2, 1, 1
    np.testing.assert_array_equal(state.counts, want)


@pytest.mark.slow
def test_a_row_that_outgrows_its_room_is_bad():
    state = init_state(PROMPTS, LENGTHS, 10, 4)
    params = SamplingParams(frequency_penalty=0.5)
    x = jnp.zeros((3, 10))
    assert (sample(jax.random.key(0), x, params, state).tokens >= 0).all()
    state = update_state(state, np.array([1, 1, 1]))
    np.testing.assert_array_equal(state.lengths, [5, 1, 4])
    np.testing.assert_array_equal(state.counts[:, 1], [1, 1, 1])
    out = sample(jax.random.key(0), x, params, state)
    np.testing.assert_array_equal(np.asarray(out.tokens) >= 0, [False, True, True])


def test_a_prompt_longer_than_its_room_is_bad():
    state = init_state(PROMPTS, np.array([4, 5, -1]), 10, 6)
    np.testing.assert_array_equal(state.lengths, [4, -1, -1])
    state = update_state(state, np.array([1, 1, 1]))
    np.testing.assert_array_equal(state.lengths, [5, -1, -1])
    out = sample(jax.random.key(0), jnp.zeros((3, 10)), SamplingParams(), state)
    np.testing.assert_array_equal(np.asarray(out.tokens) >= 0, [True, False, False])


def test_reset_rows_are_new_and_the_others_do_not_change():
    state = init_state(PROMPTS, LENGTHS, 10, 6)
    state = update_state(state, np.array([7, 7, 2]))
    fresh = np.array([[8, 8], [1, 2], [4, 4]])
    got = reset_rows(state, np.array([2, -1, 0]), fresh, np.array([1, 2, 2]))
    new = init_state(np.array([[4, 4], [0, 0], [8, 8]]), np.array([2, 0, 1]), 10, 6)
    for a, b, c in zip(*map(jax.tree.leaves, (got, new, state)), strict=True):
        np.testing.assert_array_equal(a[::2], b[::2])
        np.testing.assert_array_equal(a[1], c[1])


def test_states_of_one_row_and_under_vmap():
    state = init_state(PROMPTS, LENGTHS, 10, 6)
    want = update_state(state, np.array([7, 7, 2]))
    one = jax.tree.map(lambda a: a[0], state)
    got = [update_state(one, 7), jax.tree.map(lambda a: a[0], want)]
    chex.assert_trees_all_equal(*got)
    chex.assert_trees_all_equal(jax.vmap(update_state)(state, np.array([7, 7, 2])), want)
    empty = init_state(np.zeros((0, 3), int), 0, 10, 6)
    assert update_state(empty, np.zeros(0, int)).counts.shape == (0, 10)


@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 500])
def test_packed_bitmasks_round_trip(lead, vocab):
    mask = np.random.default_rng(0).random((*lead, vocab)) < 0.5
    np.testing.assert_array_equal(mask_of(packed_bitmask(mask), vocab), mask)


def big_state():
    return init_state(np.zeros((32, 8), int), 8, 128256, 64)


@pytest.mark.parametrize("step", ["update", "reset"])
def test_a_donated_state_is_changed_in_place(step):
    state = big_state()
    if step == "update":
        function, arguments = update_state, (np.zeros(32, np.int32),)
    else:
        function, arguments = reset_rows, (np.array([3, 4]), np.zeros((2, 8), int), 8)
    jitted = jax.jit(function, donate_argnums=0)
    compiled = jitted.lower(state, *arguments).compile()
    size = state.counts.size * 4
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 8
    copies = re.findall(r"= \w+\[32,128256\]\S* copy\(", compiled.as_text())
    assert not copies


@pytest.mark.slow
def test_penalties_on_a_donated_state_copy_nothing():
    if jax.__version_info__ < (0, 10):
        pytest.skip("the CPU compiler before 0.10 does not fuse the passes")
    state, some = big_state(), np.full(32, 0.5, np.float32)
    params = SamplingParams(repetition_penalty=some, presence_penalty=some, frequency_penalty=some)

    def step(keys, logits, params, state):
        tokens = sample(keys, logits, params, state).tokens
        return tokens, update_state(state, tokens)

    keys, logits = jax.random.split(jax.random.key(0), 32), jnp.zeros(state.counts.shape)
    compiled = jax.jit(step, donate_argnums=3).lower(keys, logits, params, state).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= logits.nbytes
    # XLA for GPUs materialises the penalised logits.
    assert memory.temp_size_in_bytes < logits.nbytes * (ON_GPU + 1 / 8)


@chex.assert_max_traces(n=1)
def loop_step(key, logits, params, state):
    out = sample(key, logits, params, state)
    return out.tokens, update_state(state, out.tokens)


@pytest.mark.slow
def test_one_program_replaces_rows():
    """The tokens of a request do not depend on its start or on the other rows of the batch."""
    step = jax.jit(loop_step)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32))
    admit = jax.jit(chex.assert_max_traces(n=1)(reset_rows))

    def texts(schedule):
        """Runs requests 0, 1, ... in the slots and from the steps of a schedule."""
        state = init_state(np.zeros((3, 2), int), 0, 50, 20)
        seeds, started, out = [0, 0, 0], [0, 0, 0], {}
        for now in range(16):
            for request, (slot, start) in enumerate(schedule):
                if start == now:
                    prompt = np.array([[request, request + 1]])
                    state = admit(state, np.array([slot]), prompt, np.array([2]))
                    seeds[slot], started[slot] = request, now
                    out[request] = []
            keys = jax.vmap(lambda s, t: jax.random.fold_in(jax.random.key(s), t))(
                jnp.array(seeds), jnp.array([now - s for s in started])
            )
            params = SamplingParams(
                repetition_penalty=np.full(3, 1.3), no_repeat_ngram_size=np.full(3, 2), top_p=0.9
            )
            tokens, state = step(keys, jnp.stack([x[0]] * 3), params, state)
            for request, (slot, start) in enumerate(schedule):
                if start <= now < start + 6:
                    out[request].append(int(tokens[slot]))
        return out

    assert texts([(0, 0), (1, 0), (2, 4), (0, 7)]) == texts([(2, 9), (2, 1), (0, 0), (1, 3)])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: init_state(np.zeros((2, 9), int), 1, 10, 8), ValueError, "prompt_tokens must"),
        (lambda: init_state(np.zeros((2, 9)), 1, 10, 9), TypeError, "prompt_tokens must hold int"),
        (lambda: init_state(np.zeros((2, 9), int), [1, 2, 3], 10, 9), ValueError, "prompt_lengths"),
        (lambda: init_state(np.zeros((2, 9), int), 1, 0, 9), ValueError, "vocab_size must be in"),
        (lambda: init_state(np.zeros((2, 9), int), 1, 10, 0), ValueError, "max_length must be in"),
        (lambda: SamplerState.from_tokens(np.zeros((2, 9)), 1, 2, 10), TypeError, "tokens must ho"),
        (lambda: SamplerState.from_tokens([[1, 2]], [1, 2], 2, 10), ValueError, "prompt_lengths"),
        (
            lambda: SamplerState.from_tokens([[1, 2]], 1, 1.5, 10),
            TypeError,
            "lengths must be an in",
        ),
        (lambda: update_state(big_state(), np.zeros(3, int)), ValueError, "tokens must"),
        (lambda: update_state(big_state(), np.zeros(32, int), 1), TypeError, "active must be a b"),
        (lambda: reset_rows(big_state(), np.array([0]), np.zeros((2, 8), int), 1), ValueError, "r"),
    ],
)
def test_errors_name_wrong_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_states_are_pytrees_with_keyword_fields():
    with pytest.raises(TypeError):
        SamplerState(1, 2, 3, 4, 5)


@pytest.mark.parametrize("lead", [(), (4,), (2, 2)])
def test_several_tokens_at_once_equal_single_updates(lead):
    """Includes repeated and skipped tokens, invalid ids, full rows and inactive rows."""
    prompts = np.array([[3, 1], [0, 0], [5, 4], [5, 4]])
    tokens = np.array([[7, 7, -1, 2], [40, 0, 0, 9], [1, -1, -1, 1], [-1, 3, 4, 9]])
    active = np.array([True, True, True, False])
    number = math.prod(lead)
    prompts, tokens, active = (
        a[:number].reshape((*lead, *a.shape[1:])) for a in (prompts, tokens, active)
    )
    state = init_state(prompts, 2, 10, 5)
    want = state
    for each in np.moveaxis(tokens, -1, 0):
        want = update_state(want, each, active)
    chex.assert_trees_all_equal(update_state(state, tokens, active), want)
    none = update_state(state, tokens[..., :0], active)
    chex.assert_trees_all_equal(none, state)


def test_several_tokens_do_not_reach_a_row_without_a_length():
    state = init_state(PROMPTS, np.array([5, -1, 0]), 10, 6)
    tokens = np.array([[1, 2]] * 3)
    want = update_state(update_state(state, tokens[:, 0]), tokens[:, 1])
    got = update_state(state, tokens)
    chex.assert_trees_all_equal(got, want)
    np.testing.assert_array_equal(got.lengths, [-1, -1, 2])


def test_a_state_of_texts_equals_one_of_their_tokens_one_by_one():
    """With and without left padding, for rows of any lengths, invalid ids and a skipped token."""
    rng = np.random.default_rng(0)
    texts = rng.integers(0, 12, (6, 9))  # some outside the vocabulary of 10
    texts[1, 5] = -1
    prompts, lengths = np.array([0, 4, 9, 3, 0, 2]), np.array([9, 9, 9, 5, 0, 3])
    want = one_by_one(texts, prompts, lengths)
    got = SamplerState.from_tokens(texts, prompts, lengths, 10)
    chex.assert_trees_all_equal(got, want)
    padding = np.array([0, 0, 0, 4, 7, 1])
    shifted = np.stack([np.roll(row, start) for row, start in zip(texts, padding, strict=True)])
    got = SamplerState.from_tokens(shifted, prompts, lengths, 10, left_padding=padding)
    chex.assert_trees_all_equal(got, want)
    one = SamplerState.from_tokens(texts[1], 4, 9, 10)
    chex.assert_trees_all_equal(one, jax.tree.map(lambda a: a[1], want))


def one_by_one(texts, prompts, lengths):
    state = init_state(texts, prompts, 10, texts.shape[-1])
    for place in range(texts.shape[-1]):
        state = update_state(state, texts[:, place], (prompts <= place) & (place < lengths))
    return state


def test_impossible_lengths_make_bad_rows():
    prompts, lengths = np.array([2, 3, 2, -1, 2, 0]), np.array([4, 2, 5, 2, 4, 3])
    padding = np.array([0, 0, 0, 0, 1, -1])
    texts = np.ones((6, 4), int)
    state = SamplerState.from_tokens(texts, prompts, lengths, 10, left_padding=padding)
    np.testing.assert_array_equal(state.lengths, [4, -1, -1, -1, -1, -1])
