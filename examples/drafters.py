"""Drafts for `speculative.py`, by lookup or by a draft model, as chains or as a tree."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from model import Cache, Weights, extend

from jaxsample import (
    SamplerState,
    SamplingParams,
    categorical_sample,
    greedy_sample,
    nearest_draws,
    process_logits,
    request_keys,
    sample,
    update_state,
)

SIBLINGS = 2
"""Drafts at each depth of a tree: the draw and the token that came closest to being drawn."""


class Drafts(NamedTuple):
    """Drafts of each row.

    Attributes:
      tokens: int32 [rows, n], -1 for none.
      cache: the cache of the draft model after the drafts.
      parents: int32 [n], for a tree: the draft before each draft, or -1 for the text.
      logits: float32 [rows, n, vocab] that the drafts were drawn from; None if they were not drawn.
    """

    tokens: Array
    cache: Cache
    parents: np.ndarray | None = None
    logits: Array | None = None


def from_place(place: Array, number: int) -> Array:
    """Returns consecutive positions that start at `place` [rows], [rows, number]."""
    return place[:, None] + jnp.arange(number, dtype=jnp.int32)[None]


def last_tokens(state: SamplerState, number: int) -> tuple[Array, Array]:
    """Returns the last tokens of each text, [rows, number], and their positions."""
    places = from_place(state.lengths - number, number)
    return jnp.take_along_axis(state.tokens, places, axis=1), places


def look_up(state: SamplerState, number: int) -> Array:
    """Returns the tokens that followed the most recent occurrence of the last two tokens."""
    first, second = jnp.unstack(last_tokens(state, 2)[0], axis=1)
    text = state.tokens
    here = (text == first[:, None]) & (jnp.roll(text, -1, axis=1) == second[:, None])
    place = jnp.arange(text.shape[1], dtype=jnp.int32)[None]
    found = jnp.max(jnp.where(here & (place < state.lengths[:, None] - 2), place, -1), axis=1)
    places = from_place(found + 2, number)
    known = (found >= 0)[:, None] & (places < state.lengths[:, None])
    return jnp.where(known, jnp.take_along_axis(text, places, axis=1, mode="clip"), -1)


def draft(
    weights: Weights,
    cache: Cache,
    state: SamplerState,
    params: SamplingParams,
    seeds: Array,
    number: int,
    method: str,
) -> Drafts:
    """Returns drafts of a draft model, generated one after the other.

    Args:
      weights: the draft model.
      cache: its cache of the texts, which need not include their last two tokens.
      state: the texts.
      params: the params of the requests.
      seeds: those of the target for "coupled" and "tree", otherwise those of the drafter.
      number: the depth of the drafts.
      method: "coupled", "tree", "argmax", or "own" for draws with the drafter's keys.
    """
    begin = state.lengths
    logits, cache = extend(weights, cache, *last_tokens(state, 2))

    def one(carry: Any, i: Array) -> tuple[Any, tuple[Array, Array]]:
        logits, cache, state = carry
        keys = request_keys(seeds, state.lengths)
        if method == "coupled":
            tokens = sample(keys, logits, params, state).tokens[:, None]
        elif method == "tree":
            tokens = nearest_draws(keys, logits, params, state, num=SIBLINGS)
        else:
            logits = process_logits(logits, params, state)
            # One key per step and draft: a position is drafted again after a rejected draft.
            keys = jax.vmap(jax.random.fold_in, (0, None))(request_keys(seeds, begin), i)
            draw = functools.partial(categorical_sample, keys)
            tokens = (draw if method == "own" else greedy_sample)(logits)[:, None]
        state = update_state(state, tokens[:, 0])
        after, cache = extend(weights, cache, tokens[:, :1], state.lengths[:, None] - 1)
        return (after[:, 0], cache, state), (tokens, logits)

    carry = logits[:, -1], cache, state
    (_, cache, _), (tokens, given) = lax.scan(one, carry, jnp.arange(number, dtype=jnp.int32))
    tokens = tokens.swapaxes(0, 1).reshape(len(begin), -1)
    if method == "tree":  # the parent of a token and its siblings is the previous draw
        depth = np.arange(number * SIBLINGS) // SIBLINGS
        return Drafts(tokens, cache, np.where(depth > 0, (depth - 1) * SIBLINGS, -1))
    return Drafts(tokens, cache, logits=given.swapaxes(0, 1) if method == "own" else None)


def look_at(parents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the depths of a text and its tree of drafts, and the attention mask.

    Args:
      parents: int [n], the draft before each draft, -1 for the text.

    Returns:
      Int [n + 1], 0 for the text and the number of drafts up to each draft; and bool
      [n + 1, n + 1], whether the token of a row attends to that of a column: itself and its
      ancestors.
    """
    seen = np.eye(len(parents) + 1, dtype=bool)
    for draft, parent in enumerate(parents, start=1):
        seen[draft] |= seen[parent + 1]
    return seen.sum(1) - 1, seen
