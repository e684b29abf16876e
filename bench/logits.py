"""The logits that are measured on, of the two kinds that a decoding loop meets.

Every row of a kind holds the same logits in an order of its own, so that all are alike in what a
rule keeps of them and no two are alike in where it lies.
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


def mixed(batch: int, vocab: int, dtype: DTypeLike) -> Array:
    """Rows `[batch, vocab]` of which every other one is flat, the first too."""
    even = jnp.arange(batch)[:, None] % 2 == 0
    return jnp.where(even, flat(batch, vocab, dtype), peaked(batch, vocab, dtype))


def _shuffled(row: np.ndarray, batch: int, dtype: DTypeLike) -> Array:
    rows = np.random.default_rng(SEED).permuted(np.tile(row, (batch, 1)), axis=1)
    return jnp.asarray(rows, dtype)
