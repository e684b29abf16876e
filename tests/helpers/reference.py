"""The definitions in NumPy float64, one row at a time, which the library must match."""

import numpy as np


def ranking(row: np.ndarray) -> np.ndarray:
    """Returns token ids by descending logit, equal logits by lower id."""
    return np.lexsort((np.arange(row.size), -row.astype(np.float64)))


def softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def first(row: np.ndarray, length: int) -> np.ndarray:
    """Returns the unmasked tokens among the first `length` of the ranking."""
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


def surprise(row: np.ndarray) -> np.ndarray:
    return -logprobs(row)


def entropy(row: np.ndarray) -> float:
    p = softmax(row)
    return float(np.sum(p[p > 0] * surprise(row)[p > 0]))


def log_kept_mass(row: np.ndarray, kept: np.ndarray) -> float:
    """Returns the log of the kept mass, computed from the dropped mass if that is small."""
    p = softmax(row)
    dropped = p[~kept].sum()
    return float(np.log1p(-dropped) if dropped < 0.5 else np.log(p[kept].sum()))


def typical_p(row: np.ndarray, p: float) -> tuple[np.ndarray, float]:
    """Returns each token's distance from the typical surprise, and that of the last kept one."""
    away = np.abs(surprise(row) - entropy(row))
    order = np.lexsort((np.arange(row.size), away))
    mass = np.cumsum(softmax(row)[order])
    last = min(int(np.sum(mass < p * mass[-1])), int(np.sum(row > -np.inf)) - 1)
    return away, away[order[last]]


def epsilon(row: np.ndarray, epsilon: float) -> float:
    """Returns the least log-probability of kept tokens, as do the next two functions."""
    return np.log(epsilon) if epsilon else -np.inf


def eta(row: np.ndarray, epsilon: float) -> float:
    least = np.log(epsilon) if epsilon else -np.inf
    return min(least, least / 2 - entropy(row))


def top_a(row: np.ndarray, a: float) -> float:
    return (np.log(a) if a else -np.inf) + 2 * logprobs(row).max()


def top_n_sigma(row: np.ndarray, n: float) -> float:
    finite = row[row > -np.inf].astype(np.float64)
    return logprobs(row).max() - n * finite.std() if n > 0 else -np.inf


def p_less(row: np.ndarray) -> float:
    return np.log(np.sum(softmax(row) ** 2))


def tail_free(row: np.ndarray, z: float) -> int:
    """Returns the number of kept tokens, among those that are not masked."""
    row = row[row > -np.inf]
    if z == 1:
        return row.size
    p = softmax(row)[ranking(row)]
    bends = np.abs(np.diff(p, 2))
    beyond = np.cumsum(bends) > z * bends.sum()
    return max(int(np.argmax(beyond)), 1) if beyond.any() else row.size


def top_h(row: np.ndarray, h: float) -> int:
    """Returns the number of kept tokens."""
    if h == 1:
        return row.size
    p = softmax(row)[ranking(row)]
    terms = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1)), 0)
    return max(int(np.sum(np.cumsum(terms) <= h * terms.sum())), 1)


def xtc(row: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the kept tokens if the top choices are excluded."""
    likely = (logprobs(row) >= np.log(max(threshold, 1e-300))) & (row > -np.inf)
    last = [t for t in ranking(row) if likely[t]][-1:]
    kept = (row > -np.inf) & ~likely
    kept[last] = True
    return kept
