"""Token-by-token comparison of kept sets, except for rounding and for ties at a cut."""

from typing import NamedTuple

import numpy as np


class Compared(NamedTuple):
    """The number of compared rows, and the number of rows that differ by rounding."""

    rows: int
    unlike: int


def assert_same_kept(
    x: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    margins: np.ndarray,
    *,
    keeps_ties: bool,
    tolerance: float,
    least_decided: float,
) -> Compared:
    """Compares the tokens that both systems keep, bool `[rows, vocab]`.

    Only our rules define which of equal logits are kept. A system that `keeps_ties` keeps all
    tokens equal to a kept one, and ours are extended likewise; for other systems the numbers of
    kept ties are compared. `margins` is in ranking order; within `tolerance` of 0 both results are
    right.
    """
    ranked = -np.sort(-x, axis=-1)
    order = np.argsort(-x, axis=-1, kind="stable")
    ours, theirs = (np.take_along_axis(kept, order, axis=-1) for kept in (ours, theirs))
    if keeps_ties:
        ours, margins = (_widest(ranked, a) for a in (ours, margins))
    ours, theirs, margins = (_largest_first(ranked, a) for a in (ours, theirs, margins))
    decided = abs(margins) > tolerance
    masked = ranked == -np.inf
    decided |= masked
    for name, kept in (("jaxsample", ours), ("the system", theirs)):
        wrong = decided & (kept != (margins > 0) & ~masked)
        assert not wrong.any(), (
            f"{name} differs from the definition at (row, rank) {np.argwhere(wrong)[:5].tolist()} "
            f"of {np.unique(np.nonzero(wrong)[0]).size} rows, margins {margins[wrong][:5]}"
        )
    unlike = (ours != theirs).any(axis=-1)
    assert decided.mean() > least_decided, f"rounding decides {1 - decided.mean():.1%}"
    return Compared(len(x), int(unlike.sum()))


def _largest_first(ranked: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sorts the values of equal logits."""
    order = np.lexsort((-values.astype(np.float64), -ranked), axis=-1)
    return np.take_along_axis(values, order, axis=-1)


def _widest(ranked: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Gives equal logits the largest of their values."""
    starts = np.ones(ranked.shape, bool)
    starts[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    group = np.cumsum(starts.ravel()) - 1
    largest = np.maximum.reduceat(values.ravel(), np.flatnonzero(starts.ravel()))
    return largest[group].reshape(values.shape)


def assert_same_values(ours: np.ndarray, theirs: np.ndarray, tolerance: float = 2e-6) -> None:
    """Compares logits: equal masks, and other logits up to a relative (near 0 absolute) error.

    Rounding must not mask or unmask a token.
    """
    np.testing.assert_array_equal(ours == -np.inf, theirs == -np.inf)
    finite = np.isfinite(theirs)
    np.testing.assert_allclose(ours[finite], theirs[finite], rtol=tolerance, atol=tolerance)
