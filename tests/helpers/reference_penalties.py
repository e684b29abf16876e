"""The penalties in NumPy float64, one row at a time, which the library must match."""

import numpy as np


def repetition(row: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    row = row.astype(np.float64)
    return np.where(seen, np.where(row < 0, row * penalty, row / penalty), row)


def presence(row: np.ndarray, counts: np.ndarray, penalty: float) -> np.ndarray:
    return row.astype(np.float64) - penalty * (counts > 0)


def frequency(row: np.ndarray, counts: np.ndarray, penalty: float) -> np.ndarray:
    return row.astype(np.float64) - penalty * np.maximum(counts, 0)


def counted(
    text: list[int], prompt: int, window: int, exempt: tuple[int, ...], vocab: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens seen in the last `window` of a text (0 for all), and output counts."""
    start = max(len(text) - window, 0) if window else 0
    seen, counts = np.full(vocab, False), np.zeros(vocab, int)
    for place, token in enumerate(text):
        if place >= start and 0 <= token < vocab and token not in exempt:
            seen[token] = True
            counts[token] += place >= prompt
    return seen, counts


def match(text: list[int], end: int) -> int:
    """Returns how many tokens before `end` match the end of the text."""
    n = 0
    while n < end and text[end - 1 - n] == text[-1 - n]:
        n += 1
    return n


def dry(
    row: np.ndarray,
    text: list[int],
    multiplier: float,
    base: float = 1.75,
    allowed: int = 2,
    breakers: tuple[int, ...] = (),
    exempt: tuple[int, ...] = (),
) -> np.ndarray:
    row = row.astype(np.float64)
    reach = 0  # the number of tokens after the last breaker
    while reach < len(text) and text[-1 - reach] not in breakers:
        reach += 1
    longest: dict[int, int] = {}
    for i, token in enumerate(text):
        n = min(match(text, i), reach)
        if n >= allowed and token not in (*breakers, *exempt):
            longest[token] = max(n, longest.get(token, 0))
    for token, n in longest.items():
        if 0 <= token < row.size:
            row[token] -= multiplier * base ** (n - allowed)
    return row


def no_repeat_ngram(row: np.ndarray, text: list[int], n: int) -> np.ndarray:
    """Returns the tokens that do not complete a repeated n-gram."""
    kept = np.full(row.size, True)
    if n > 0 and len(text) >= n:
        tail = text[len(text) - (n - 1) :]
        for i in range(len(text) - n + 1):
            if text[i : i + n - 1] == tail and 0 <= text[i + n - 1] < row.size:
                kept[text[i + n - 1]] = False
    return kept
