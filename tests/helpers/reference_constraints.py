"""The constraints in NumPy float64, one row at a time, which the library must match."""

import numpy as np


def biased(row: np.ndarray, ids: list[int], bias: list[float]) -> np.ndarray:
    row = row.astype(np.float64)
    for token, value in zip(ids, bias, strict=True):
        if token >= 0:
            row[token] += value
    return row


def unpacked(words: np.ndarray, vocab: int) -> np.ndarray:
    """Returns the tokens that a packed bitmask allows."""
    return np.array([int(words[t // 32]) >> (t % 32) & 1 == 1 for t in range(vocab)])


def bad_words(vocab: int, text: list[int], words: list[list[int]]) -> np.ndarray:
    """Returns the tokens that do not complete a bad word."""
    kept = np.full(vocab, True)
    for word in words:
        if word and word[:-1] == text[len(text) - len(word) + 1 :]:
            kept[word[-1]] = False
    return kept


def sequence_biased(
    row: np.ndarray, text: list[int], sequences: list[list[int]], bias: list[float]
) -> np.ndarray:
    row = row.astype(np.float64)
    for sequence, value in zip(sequences, bias, strict=True):
        if sequence and sequence[:-1] == text[max(len(text) - len(sequence) + 1, 0) :]:
            row[sequence[-1]] += value
    return row


def forced(row: np.ndarray, token: int) -> np.ndarray:
    """Returns the row with only the forced token unmasked, at logit 0 if it was masked."""
    row = row.astype(np.float64)
    if token < 0:
        return row
    alone = np.full(row.size, -np.inf)
    alone[token] = 0 if row[token] == -np.inf else row[token]
    return alone


def guided(conditional: np.ndarray, unconditional: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return conditional.astype(np.float64)
    masked = (conditional == -np.inf) | (unconditional == -np.inf)
    c, u = (np.where(masked, 0, _log_softmax(x)) for x in (conditional, unconditional))
    return np.where(masked, -np.inf, u + scale * (c - u))


def _log_softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())
