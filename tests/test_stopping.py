"""The reasons why texts end: each compared with a definition in Python, on random texts."""

import chex
import jax
import numpy as np
import pytest

from jaxsample import SamplerState, StopReason, init_state, stop_reason, update_state

ROOM = 24


def defined(row, prompt, token, stops, sequences, limit, max_period, repeats):
    """Computes the definition; `row` is the text up to its length."""
    output = row[prompt:]
    if token < 0 or limit < 0:
        return StopReason.BAD_ROW
    if token in stops:
        return StopReason.STOP_TOKEN
    if any(s and output[-len(s) :] == s for s in sequences):
        return StopReason.STOP_SEQUENCE
    for p in range(1, max_period + 1):
        tail = output[-p * repeats :]
        if len(tail) == p * repeats and tail == tail[-p:] * repeats:
            return StopReason.LOOP
    return StopReason.LENGTH if len(output) >= limit or len(row) >= ROOM else StopReason.NONE


def padded(lists, width):
    return np.array([[*items, *[-1] * (width - len(items))] for items in lists])


@pytest.mark.parametrize(("max_period", "repeats"), [(3, 2), (4, 3)])
def test_reasons_match_the_definition(max_period, repeats):
    rng = np.random.default_rng(repeats)
    batch = 400
    lengths = rng.integers(1, ROOM + 1, batch)
    prompts = np.minimum(rng.integers(0, 6, batch), lengths - 1)
    texts = rng.integers(0, 3, (batch, ROOM))  # few ids: many sequences, many loops
    tokens = texts[np.arange(batch), lengths - 1]
    tokens = np.where(rng.random(batch) < 0.05, -1, tokens)
    limits = rng.choice([-1, 3, 10, 99], batch, p=[0.05, 0.15, 0.4, 0.4])
    stops = [[[], [2], [7]][i] for i in rng.choice(3, batch, p=[0.6, 0.1, 0.3])]
    sequences = [
        [rng.integers(0, 3, n).tolist() for n in rng.choice([0, 3, 4], 2, p=[0.4, 0.3, 0.3])]
        for _ in range(batch)
    ]
    want = [
        defined(texts[i, : lengths[i]].tolist(), prompts[i], tokens[i], stops[i], sequences[i],
                limits[i], max_period, repeats)
        for i in range(batch)
    ]  # fmt: skip
    assert {*want} == {*StopReason}
    got = stop_reason(
        SamplerState.from_tokens(texts, prompts, lengths, 8),
        tokens,
        stop_token_ids=padded(stops, 2),
        stop_sequences=np.array([padded(each, 4) for each in sequences]),
        max_tokens=limits,
        max_period=max_period,
        repeats=repeats,
    )
    np.testing.assert_array_equal(got, want)


def test_a_stop_sequence_in_the_prompt_does_not_end_a_text():
    state = init_state([[1, 2, 1, 2]], 4, 5, 9)
    options = {"stop_sequences": [[2, 3]], "max_period": 2, "repeats": 2}
    state = update_state(state, [3])
    assert stop_reason(state, [3], **options) == StopReason.NONE
    state = update_state(state, [[2, 3]])
    assert stop_reason(state, [3], **options) == StopReason.STOP_SEQUENCE


def test_a_row_without_a_length_is_bad():
    state = init_state(np.zeros((3, 4), int), np.array([4, 5, 2]), 5, 4)
    state = update_state(state, np.array([1, 1, 1]))
    got = stop_reason(state, np.array([1, 1, 1]))
    np.testing.assert_array_equal(got, [StopReason.BAD_ROW, StopReason.BAD_ROW, StopReason.NONE])


def test_one_program_for_all_values_and_under_vmap():
    step = jax.jit(chex.assert_max_traces(n=1)(stop_reason))
    state = SamplerState.from_tokens(np.ones((3, 6), int), 1, np.array([3, 6, 2]), 5)
    options = {"stop_token_ids": np.array([4]), "max_tokens": np.array([2, 9, 9])}
    want = step(state, np.array([1, 1, 4]), **options)
    np.testing.assert_array_equal(
        want, [StopReason.LENGTH, StopReason.LENGTH, StopReason.STOP_TOKEN]
    )
    step(state, np.array([1, 1, 1]), stop_token_ids=np.array([1]), max_tokens=np.array([1, 1, 1]))
    each = jax.vmap(lambda s, t, m: stop_reason(s, t, stop_token_ids=np.array([4]), max_tokens=m))
    np.testing.assert_array_equal(each(state, np.array([1, 1, 4]), options["max_tokens"]), want)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"state": 3}, TypeError, "state must be of type SamplerState"),
        ({"tokens": [1]}, ValueError, "tokens must hold one token id a row"),
        ({"stop_token_ids": [1.5]}, TypeError, "stop_token_ids must hold integers"),
        ({"stop_sequences": [1, 2]}, ValueError, r"stop_sequences must have shape \[\.\.\., "),
        ({"max_tokens": [1, 2, 3]}, ValueError, "max_tokens must be a scalar or"),
        ({"max_period": -1}, ValueError, r"max_period must be in \[0, "),
        ({"repeats": 1}, ValueError, r"repeats must be in \[2, "),
    ],
)
def test_errors_name_invalid_arguments(options, error, match):
    given = {"state": init_state([[1], [2]], 1, 5, 4), "tokens": [1, 2]}
    with pytest.raises(error, match=match):
        stop_reason(**given | options)
