"""The best of several texts: scores, order, and texts without a score."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import exhaustive, slow, traces

from jaxsample import best_of

GROUPS, GROUP, LENGTH = 40, 6, 9


def texts():
    """Returns log-probs and lengths of groups, with ties, empty texts and bad ones."""
    rng = np.random.default_rng(0)
    logprobs = -rng.exponential(size=(GROUPS, GROUP, LENGTH)).astype(np.float32)
    logprobs[::4] = np.round(logprobs[::4])
    lengths = rng.integers(1, LENGTH + 1, (GROUPS, GROUP))
    lengths[3, :4], lengths[4, 2], lengths[5, 1] = 0, -1, LENGTH + 1
    logprobs[6, 2, 0], logprobs[7, 1, 0], logprobs[8, 3, 0] = np.nan, np.inf, -np.inf
    logprobs[9, :, 0], lengths[10] = np.nan, 0
    logprobs[11, 0, :2], lengths[11, 0] = (np.inf, -np.inf), 2
    logprobs[12, 0, :2], lengths[12, 0] = (3e38, 3e38), 2
    behind = np.arange(LENGTH) >= lengths[..., None]
    return np.where(behind, np.nan, logprobs), lengths


def definition(logprobs, lengths, num, by):
    """Computes the definition in float64, one group at a time."""
    of_all = []
    for group, sizes in zip(logprobs.astype(np.float64), lengths, strict=True):
        scores = {}
        for place, (text, size) in enumerate(zip(group, sizes, strict=True)):
            if 1 <= size <= LENGTH and (text[:size] < np.inf).all() and text[:size].sum() < 3.4e38:
                scores[place] = text[:size].sum() / (size if by == "mean" else 1)
        best = sorted(scores, key=lambda place: (-scores[place], place))[:num]
        missing = num - len(best)
        of_all.append((best + [-1] * missing, [scores[i] for i in best] + [np.nan] * missing))
    return tuple(map(np.array, zip(*of_all, strict=True)))


@pytest.mark.parametrize("by", ["mean", slow("sum")])
def test_the_best_match_the_definition(by):
    logprobs, lengths = texts()
    indices, scores = best_of(logprobs, lengths, num=4, by=by)
    wanted, wanted_scores = definition(logprobs, lengths, 4, by)
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-6)
    assert (wanted == -1).any(-1).sum() == 3


def test_equal_scores_go_by_index_and_both_zeros_are_equal():
    logprobs = jnp.array([[-0.0], [0.0], [-1.0], [0.0]])
    indices, scores = best_of(logprobs, 1, num=4)
    assert indices.tolist() == [0, 1, 3, 2]
    assert scores.tolist() == [0, 0, 0, -1]


@pytest.mark.slow
def test_batch_and_padding_do_not_matter():
    logprobs, lengths = texts()
    want = best_of(logprobs, lengths, num=4)
    wide = np.pad(logprobs, [(0, 0), (0, 0), (0, 7)], constant_values=-1)
    best = functools.partial(best_of, num=4)
    ways = best(wide, lengths), jax.vmap(best)(logprobs, lengths)
    ways += (jax.tree.map(lambda a: a[::-1], best(logprobs[::-1], lengths[::-1])),)
    for way in ways:
        # A length of LENGTH + 1 is in range if the texts are longer.
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[6:], b[6:]), way, want)
    alone = best(logprobs[0], lengths[0])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), alone, want)
    fewer = best_of(logprobs, lengths, num=1)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, :1]), fewer, want)


@pytest.mark.parametrize("dtype", ["float64", exhaustive("bfloat16")])
def test_dtypes_and_values_share_programs(dtype):
    logprobs, lengths = texts()
    narrow = logprobs.astype(jnp.dtype(dtype))
    wanted = best_of(narrow.astype(np.float32), lengths, num=4)
    before = traces(best_of)
    got = best_of(narrow, lengths.astype(np.int32), num=4)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    assert traces(best_of) == before


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.zeros(3), 1), {}, ValueError, r"logprobs must have shape \[..., group, length\]"),
        ((np.zeros((3, 0)), 1), {}, ValueError, r"logprobs must have shape .* got \(3, 0\)"),
        ((np.zeros((3, 2), int), 1), {}, TypeError, "logprobs must hold real numbers, got int64"),
        ((np.zeros((3, 2)), 1.5), {}, TypeError, "lengths must be an integer"),
        ((np.zeros((3, 2)), np.ones(2, int)), {}, ValueError, "lengths must be a scalar"),
        ((np.zeros((3, 2)), 1), {"num": 4}, ValueError, r"num must be in \[1, 3\], got 4"),
        ((np.zeros((3, 2)), 1), {"by": "median"}, ValueError, "by must be 'mean' or 'sum'"),
    ],
)
def test_errors_name_wrong_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        best_of(*arguments, **({"num": 1} | options))
