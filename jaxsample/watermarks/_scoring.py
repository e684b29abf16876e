"""Parts of the detectors: each distinct n-gram is scored once."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core._pytrees import pytree


@pytree
class ScoreDetection(NamedTuple):
    """The result of `detect_synthid` and `detect_gumbel`.

    Attributes:
      score: float32 `[...]`.
      p_value: float32 `[...]`, the probability of at least this score in text without the mark.
      scored: int32 `[...]`, the number of tokens scored.
    """

    score: Array
    p_value: Array
    scored: Array


def first_of_each(valid: Array, words: Array, values: Array) -> tuple[Array, Array]:
    """Marks the first occurrence of each word, so that repeated words are counted once.

    Args:
      valid: bool `[..., n]`, the positions to consider.
      words: uint32 `[..., n]`.
      values: `[..., n]`, a value of each position.

    Returns:
      The values sorted by word, and bool `[..., n]`, True for values of the first valid occurrence
      of a word.
    """
    operands = ((~valid).astype(jnp.int32), words, values)
    invalid, words, values = lax.sort(operands, num_keys=2, is_stable=True)
    again = jnp.zeros_like(valid).at[..., 1:].set(words[..., 1:] == words[..., :-1])
    return values, (invalid == 0) & ~again


def count(mask: Array) -> Array:
    """Returns the number of True elements of the last axis, int32."""
    return jnp.sum(mask, axis=-1, dtype=jnp.int32)


def unless(bad: Array, results: tuple[Array, ...]) -> list[Array]:
    """Returns the results, with NaN or -1 on bad rows."""
    missing = [-1 if jnp.issubdtype(a.dtype, jnp.integer) else jnp.nan for a in results]
    return [jnp.where(bad, m, a) for m, a in zip(missing, results, strict=True)]
