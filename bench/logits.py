"""The logits that are measured on: rows like those of a language model, and the two ends.

The ids of each row are in an order of its own, so that no two rows keep the same tokens.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

SEED = 0


def peaked(batch: int, vocab: int, dtype: DTypeLike) -> Array:
    """Rows `[batch, vocab]` of a model that is sure: 12 tokens hold .95 of the mass.

    The probability of a token is as 1 / rank**2, down to 1e-10 at rank 128,000.
    """
    ranks = np.arange(1, vocab + 1, dtype=np.float32)
    return _shuffled(-2 * np.log(ranks), batch, dtype)


def flat(batch: int, vocab: int, dtype: DTypeLike) -> Array:
    """Rows `[batch, vocab]` of a model that knows nothing: .95 of the mass takes .74 of the tokens.

    The logits are standard normal.
    """
    normal = np.random.default_rng(SEED).standard_normal(vocab, np.float32)
    return _shuffled(normal, batch, dtype)


def text(batch: int, vocab: int, dtype: DTypeLike) -> Array:
    """Rows `[batch, vocab]` whose nuclei of .95 have the sizes of those of a language model.

    A tenth of the rows keep more than 64 tokens and one in a hundred more than 1,000; the median is
    10. The probability of a token is as a power of its rank, another one in each row.
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
    """Rows `[batch, vocab]` that are peaked, but the first is flat."""
    first = jnp.arange(batch)[:, None] == 0
    return jnp.where(first, flat(batch, vocab, dtype), peaked(batch, vocab, dtype))


def mixed(batch: int, vocab: int, dtype: DTypeLike) -> Array:
    """Rows `[batch, vocab]` of which every other one is flat, the first too."""
    even = jnp.arange(batch)[:, None] % 2 == 0
    return jnp.where(even, flat(batch, vocab, dtype), peaked(batch, vocab, dtype))


def _nucleus(weights: np.ndarray) -> int:
    """The number of tokens whose probabilities, which fall, first add up to .95."""
    mass = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(mass, 0.95 * mass[-1])) + 1


def _shuffled(row: np.ndarray, batch: int, dtype: DTypeLike) -> Array:
    rows = np.random.default_rng(SEED).permuted(np.tile(row, (batch, 1)), axis=1)
    return jnp.asarray(rows, dtype)
