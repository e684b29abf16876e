"""The logits of the benchmarks: rows like those of a language model, and the two extremes.

The order of the ids is random in each row, so that rows keep different tokens.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

SEED = 0


def peaked(batch: int, vocab: int, dtype: DTypeLike) -> Array:
    """Returns rows `[batch, vocab]` of a confident model: 12 tokens have .95 of the mass.

    The probability of a token is proportional to 1 / rank**2, down to 1e-10 at rank 128,000.
    """
    ranks = np.arange(1, vocab + 1, dtype=np.float32)
    return _shuffled(-2 * np.log(ranks), batch, dtype)


def flat(batch: int, vocab: int, dtype: DTypeLike) -> Array:
    """Returns rows `[batch, vocab]` of an ignorant model: .95 of the mass is on .74 of the tokens.

    The logits are standard normal.
    """
    normal = np.random.default_rng(SEED).standard_normal(vocab, np.float32)
    return _shuffled(normal, batch, dtype)


def text(batch: int, vocab: int, dtype: DTypeLike) -> Array:
    """Returns rows `[batch, vocab]` whose .95 nuclei have the sizes of those of a language model.

    A tenth of the rows keep more than 64 tokens and one in a hundred more than 1,000; the median is
    10. The probability of a token is a power of its rank, with another exponent in each row.
    """
    quantiles = (np.arange(batch) + 0.5) / batch
    sizes = np.interp(quantiles, [0, 0.5, 0.9, 0.99, 1], np.log([1, 10, 64, 1000, 5000]))
    powers = np.linspace(8, 0.5, 100)
    log_ranks = np.log(np.arange(1, vocab + 1, dtype=np.float32))
    nuclei = [_nucleus(np.exp(-power * log_ranks)) for power in powers]
    power = np.interp(sizes, np.log(nuclei), powers).astype(np.float32)
    random = np.random.default_rng(SEED)
    rows = random.permuted(-random.permutation(power)[:, None] * log_ranks, axis=1)
    return jnp.asarray(rows, dtype)


def one_flat(batch: int, vocab: int, dtype: DTypeLike) -> Array:
    """Returns rows `[batch, vocab]` of which the first is flat and the others are peaked."""
    first = jnp.arange(batch)[:, None] == 0
    return jnp.where(first, flat(batch, vocab, dtype), peaked(batch, vocab, dtype))


def mixed(batch: int, vocab: int, dtype: DTypeLike) -> Array:
    """Returns rows `[batch, vocab]` of which every other one is flat, starting with the first."""
    even = jnp.arange(batch)[:, None] % 2 == 0
    return jnp.where(even, flat(batch, vocab, dtype), peaked(batch, vocab, dtype))


def _nucleus(weights: np.ndarray) -> int:
    """Returns the smallest number of leading tokens whose decreasing probabilities sum to .95."""
    mass = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(mass, 0.95 * mass[-1])) + 1


def _shuffled(row: np.ndarray, batch: int, dtype: DTypeLike) -> Array:
    rows = np.random.default_rng(SEED).permuted(np.tile(row, (batch, 1)), axis=1)
    return jnp.asarray(rows, dtype)
