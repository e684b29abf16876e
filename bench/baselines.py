"""JAX's own operations, and the sort that code bases use today for the joint rules.

The stack is an optimised version of that sort: one sort serves both top-k and top-p, where many
code bases sort for each; it sorts values without their indices, and compares logits with a
threshold instead of scattering them back into the order of the vocabulary. All tokens equal to a
threshold are kept.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax


def argmax(x: Array) -> Array:
    """Returns the most likely token of each row."""
    return jnp.argmax(x, axis=-1)


def top_k_64(x: Array) -> tuple[Array, Array]:
    """Returns the 64 largest logits of each row and their tokens."""
    return lax.top_k(x, 64)


def sort_stack(
    key: Array, logits: Array, temperature: Array, k: Array, p: Array, min_p: Array
) -> Array:
    """Draws a token of each row of `logits [batch, vocab]`, int32 `[batch]`.

    Args:
      key: a single key for all rows.
      logits: any float dtype; converted to float32.
      temperature: float32 `[batch]`, above 0.
      k: int32 `[batch]`, in [1, vocab].
      p: float32 `[batch]`.
      min_p: float32 `[batch]`.
    """
    return jax.random.categorical(key, sort_stack_logits(logits, temperature, k, p, min_p))


def sort_stack_logits(logits: Array, temperature: Array, k: Array, p: Array, min_p: Array) -> Array:
    """Returns the logits that `sort_stack` draws from, float32, -inf for dropped tokens."""
    logits = logits.astype(jnp.float32) / temperature[:, None]
    ranked = jnp.sort(logits, axis=-1, descending=True)

    least_of_k = jnp.take_along_axis(ranked, k[:, None] - 1, axis=-1)
    ranked = jnp.where(ranked >= least_of_k, ranked, -jnp.inf)

    probabilities = jax.nn.softmax(ranked, axis=-1)
    mass_above = jnp.cumsum(probabilities, axis=-1) - probabilities
    nucleus = jnp.where(mass_above < p[:, None], ranked, jnp.inf)
    least_of_p = jnp.min(nucleus, axis=-1, keepdims=True)

    least_of_min_p = ranked[:, :1] + jnp.log(min_p)[:, None]
    least = jnp.maximum(jnp.maximum(least_of_k, least_of_p), least_of_min_p)
    return jnp.where(logits >= least, logits, -jnp.inf)
