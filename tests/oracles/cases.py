"""The rows and parameters of the comparisons: ties, peaked, flat, masked, bfloat16, large."""

from collections.abc import Callable, Iterator

import numpy as np
from rows import KINDS, every_kind

SIZES = ((257, "float32", 24, 12), (1000, "bfloat16", 8, 8), (32003, "float32", 1, 4))
"""Vocabulary, dtype, rows per kind, parameters."""

Draw = Callable[[np.random.Generator, int], np.ndarray]


def groups(draw: Draw, sizes=SIZES) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields logits `[parameters, rows, vocab]` and their parameters by dtype and vocabulary."""
    for seed, (vocab, dtype, batch, number) in enumerate(sizes):
        values = draw(np.random.default_rng(seed), number)
        yield np.stack([every_kind(batch, vocab, dtype, i) for i in range(number)]), values


def uniform(low: float, high: float) -> Draw:
    return lambda rng, n: rng.uniform(low, high, n).astype(np.float32)


def log_uniform(low: float, high: float) -> Draw:
    return lambda rng, n: np.exp(rng.uniform(np.log(low), np.log(high), n)).astype(np.float32)


def integers(low: int, high: int) -> Draw:
    return lambda rng, n: rng.integers(low, high, n, endpoint=True)


def on_a_grid(x: np.ndarray) -> np.ndarray:
    """Returns logits spaced so widely that unequal ones have unequal log-probabilities."""
    return np.round(x.astype(np.float32) * 2**14).astype(np.float32) / 2**14


def with_texts(
    batch: int, vocab: int, alphabet: int, size: int = 40, dtype: str = "float32"
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
    """Returns logits, and for each row a repetitive text: as lists, and as tokens and lengths."""
    x, rng = every_kind(batch, vocab, dtype), np.random.default_rng([batch, alphabet])
    tokens = rng.integers(alphabet, size=(len(x), size)).astype(np.int32)
    lengths = rng.integers(size // 2, size, len(x), endpoint=True)
    for row, length in zip(tokens, lengths, strict=True):
        repeat, start = rng.integers(1, size // 4), rng.integers(size // 4)
        row[length - repeat : length] = row[start : start + repeat]
    texts = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
    return x, texts, tokens, lengths


def counts(texts: list[np.ndarray], vocab: int) -> np.ndarray:
    return np.stack([np.bincount(text, minlength=vocab) for text in texts])


__all__ = [
    "KINDS",
    "SIZES",
    "counts",
    "groups",
    "integers",
    "log_uniform",
    "on_a_grid",
    "uniform",
    "with_texts",
]
