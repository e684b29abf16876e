"""Histories `[..., L]` and the contexts of their tokens."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _checks, _lookup


def context(name: str, value: ArrayLike, rows: Array) -> Array:
    """Returns the last tokens `[..., width]` of each row, int32."""
    array = _checks.per_item(name, value, rows, "iu")
    if array.shape[-1] == 0:
        raise ValueError(f"{name} must hold at least one token a row, got shape {array.shape}")
    return array


def width(name: str, value: Any, _: Array) -> int:
    """Returns the static number of tokens of a context."""
    return _checks.static_integer(name, value, 1, _checks.MAX_VOCAB)


def history(tokens: ArrayLike, length: ArrayLike) -> tuple[Array, Array]:
    """Returns tokens `[..., L]` and their number, int32 `[...]`; -1 if it is outside [0, L]."""
    array = jnp.asarray(tokens)
    count = jnp.broadcast_to(length, array.shape[:-1])
    return array, jnp.where((count >= 0) & (count <= array.shape[-1]), count, -1)


def known(tokens: Array) -> Array:
    """Whether none of the tokens `[..., n]` is missing."""
    return jnp.all(tokens >= 0, axis=-1)


def grams(tokens: Array, length: Array, width: int) -> tuple[Array, Array, Array]:
    """Returns the tokens of histories `[..., L]` that have a full context, and their contexts.

    Returns:
      The contexts, `[..., n, width]`, the tokens `[..., n]`, and bool `[..., n]`, whether they are
      within the length and none of them is missing.
    """
    number = max(tokens.shape[-1] - width, 0)
    gram = jnp.stack([tokens[..., i : i + number] for i in range(width + 1)], axis=-1)
    place = width + _lookup.positions(gram[..., 0])
    return gram[..., :-1], gram[..., -1], known(gram) & (place < length[..., None])
