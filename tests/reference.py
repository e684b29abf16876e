"""The definitions in NumPy float64, a row at a time: what the library must equal."""

import numpy as np


def ranking(row: np.ndarray) -> np.ndarray:
    """Token ids by logit, equal logits by lower id."""
    return np.lexsort((np.arange(row.size), -row.astype(np.float64)))


def softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def first(row: np.ndarray, length: int) -> np.ndarray:
    """Which tokens are among the first `length` of the ranking and not masked."""
    kept = np.zeros(row.size, bool)
    kept[ranking(row)[:length]] = True
    return kept & (row > -np.inf)


def top_k(row: np.ndarray, k: int) -> np.ndarray:
    return first(row, k if 0 < k < row.size else row.size)


def top_p(row: np.ndarray, p: float) -> np.ndarray:
    if p == 1:
        return first(row, row.size)
    mass = np.cumsum(softmax(row)[ranking(row)])
    return first(row, 1 + int(np.sum(mass < p * mass[-1])))


def min_p(row: np.ndarray, p: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return (row >= row.max() + np.log(p)) & (row > -np.inf)


def logprobs(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())
