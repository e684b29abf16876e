"""Mirostat and adaptive-p in NumPy float64, one row at a time."""

import numpy as np
import reference


def zipf_k(row: np.ndarray, mu: float) -> float:
    """Returns the k of mirostat v1 before it is rounded down and clipped."""
    number = int(np.sum(row > -np.inf))
    x = np.sort(row.astype(np.float64))[::-1][: min(100, number)]
    if number == 1:
        return 1.0
    i = np.arange(1, x.size)
    t, b = np.log((i + 1) / i), x[:-1] - x[1:]
    s = (t @ b) / (t @ t)
    if s == 0:
        return np.inf if 2.0**mu > number - 1 else 0.0
    e = s - 1
    share = 1 / np.log(number) if abs(e) < 1e-12 else e / -np.expm1(-e * np.log(number))
    with np.errstate(over="ignore"):
        return float(np.exp2((mu + np.log2(share)) / s))


def mirostat_v1(row: np.ndarray, mu: float, slack: float = 0.0) -> np.ndarray:
    """Returns the kept tokens; the slack shifts k by the possible rounding error."""
    k = zipf_k(row, mu + slack) * (1 + slack)
    return reference.first(row, int(np.clip(k, 1, row.size)))


def mirostat_v2(row: np.ndarray, mu: float, slack: float = 0.0) -> np.ndarray:
    surprise = -reference.logprobs(row) / np.log(2)
    return ((surprise <= mu + slack) & (row > -np.inf)) | reference.first(row, 1)


def next_mu(row: np.ndarray, kept: np.ndarray, token: int, tau: float, eta: float, mu: float):
    surprise = -reference.logprobs(np.where(kept, row, -np.inf))[token] / np.log(2)
    return mu - eta * (surprise - tau)


def adaptive_p(
    row: np.ndarray, target: float, weighted_sum: float, total_weight: float
) -> np.ndarray:
    """Returns the logits that adaptive-p draws from."""
    if target < 0:
        return row.astype(np.float64)
    goal = 2 * target - weighted_sum / total_weight if total_weight else target
    d = np.abs(reference.softmax(row) - np.clip(goal, 0, 1)) / 0.3
    return np.where(row > -np.inf, 5 - 10 * d**2 / (1 + d), -np.inf)


def next_memory(
    row: np.ndarray, token: int, decay: float, weighted_sum: float, total_weight: float
) -> tuple[float, float]:
    p = reference.softmax(row)[token]
    return p + decay * weighted_sum, 1 + decay * total_weight
