"""Distances of tokens from the edge of a rule's kept set, in float64; near 0, rounding decides.

Rows `x [rows, vocab]` are sorted by rank, with one parameter per row. A margin is positive if the
rule keeps a token and infinite if it must.
"""

import numpy as np

SCORE_SLACK = 5e-5
"""Typical tokens whose scores differ by less may be in any order."""


def probabilities(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x[:, :1])
    return weights / weights.sum(axis=-1, keepdims=True)


def entropy_terms(p: np.ndarray) -> np.ndarray:
    return -p * np.log(np.where(p > 0, p, 1))


def top_k(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    return _best_stays(k[:, None] - 0.5 - np.arange(x.shape[-1]))


def top_p(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    mass = probabilities(x)
    return _best_stays(p[:, None] - (np.cumsum(mass, axis=-1) - mass))


def min_p(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        floor = x[:, :1] + np.log(p)[:, None]
    return _best_stays((x - floor) / np.maximum(1, abs(x[:, :1])))


def epsilon(x: np.ndarray, e: np.ndarray) -> np.ndarray:
    return _best_stays(probabilities(x) / e[:, None] - 1)


def eta(x: np.ndarray, e: np.ndarray) -> np.ndarray:
    p = probabilities(x)
    entropy = entropy_terms(p).sum(axis=-1)
    return _best_stays(p / np.minimum(e, np.sqrt(e) * np.exp(-entropy))[:, None] - 1)


def typical_p(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    return np.stack([_typical(row, share) for row, share in zip(x, p, strict=True)])


def _typical(x: np.ndarray, share: float) -> np.ndarray:
    """Returns the share minus the mass of the tokens before, for all orders within the slack."""
    p = probabilities(x[None])[0]
    information = -np.log(np.where(p > 0, p, 1e-300))
    score = abs(information - p @ information)
    order = np.argsort(score)
    ahead = np.concatenate([[0], np.cumsum(p[order])])
    least = ahead[np.searchsorted(score[order], score - SCORE_SLACK)]
    most = ahead[np.searchsorted(score[order], score + SCORE_SLACK)]
    # Equal logits have equal scores and are ordered by id.
    _, start, group = np.unique(-x, return_index=True, return_inverse=True)
    place = np.arange(x.size) - start[group]
    most -= p * (np.bincount(group)[group] - place)
    least += p * place
    margin = np.where(most < share, share - most, np.minimum(share - least, 0))
    return np.where(most <= 1e-12, np.inf, margin)


def top_n_sigma(x: np.ndarray, n: np.ndarray) -> np.ndarray:
    finite = np.where(x > -np.inf, x, np.nan)
    floor = x[:, 0] - n * np.nanstd(finite, axis=-1)
    margin = (x - floor[:, None]) / np.maximum(1, abs(x[:, :1]))
    return np.where(x == x[:, :1], np.inf, margin)


def top_h(x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Returns margins as shares of the entropy, but at small entropy in units of 0.03 nats."""
    terms = entropy_terms(probabilities(x))
    entropy = terms.sum(axis=-1, keepdims=True)
    return _best_stays((h[:, None] * entropy - np.cumsum(terms, axis=-1)) / (entropy + 0.03))


def xtc(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Returns 1 or -1, or 0 if the top choices depend on tokens near the threshold."""
    p, place = probabilities(x), np.arange(x.shape[-1])
    dropped = [
        place < (p >= t[:, None] * (1 + slack)).sum(axis=-1, keepdims=True) - 1
        for slack in (-1e-5, 1e-5)
    ]
    return 1.0 - dropped[0] - dropped[1]


def _best_stays(margin: np.ndarray) -> np.ndarray:
    margin[:, 0] = np.inf
    return margin
