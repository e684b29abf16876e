"""Drafts for `speculative.py`: by lookup, and by a draft model, as chains and as a tree."""

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
"""Of a tree, at each depth: the draft model's draw and the token that came nearest to it."""


class Drafts(NamedTuple):
    """Drafts of each row.

    Attributes:
      tokens: int32 [rows, n], -1 where there are none.
      cache: of the draft model, behind them.
      parents: int32 [n], of a tree: the draft in front of each draft, or -1 for the text.
      logits: float32 [rows, n, vocab], what they were drawn from; None if they were not drawn.
    """

    tokens: Array
    cache: Cache
    parents: np.ndarray | None = None
    logits: Array | None = None


def from_place(place: Array, number: int) -> Array:
    """Returns consecutive positions from one of each row on, [rows, number]."""
    return place[:, None] + jnp.arange(number, dtype=jnp.int32)[None]


def last_tokens(state: SamplerState, number: int) -> tuple[Array, Array]:
    """Returns the last tokens of each text, [rows, number], and their positions."""
    places = from_place(state.lengths - number, number)
    return jnp.take_along_axis(state.tokens, places, axis=1), places


def look_up(state: SamplerState, number: int) -> Array:
    """Returns the tokens that followed the last two where the text had them last."""
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
    """Returns drafts of a draft model, drawn one after the other.

    Args:
      weights: the draft model.
      cache: its cache of the texts, which need not hold their last two tokens.
      state: the texts.
      params: of the requests.
      seeds: of the target for "coupled" and "tree", which draw with its keys; else of the drafter.
      number: the depth of the drafts.
      method: "coupled", "tree", "argmax", or "own" for draws of its own.
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
            # A key of each step and draft: a position is drafted again behind a rejected draft.
            keys = jax.vmap(jax.random.fold_in, (0, None))(request_keys(seeds, begin), i)
            draw = functools.partial(categorical_sample, keys)
            tokens = (draw if method == "own" else greedy_sample)(logits)[:, None]
        state = update_state(state, tokens[:, 0])
        after, cache = extend(weights, cache, tokens[:, :1], state.lengths[:, None] - 1)
        return (after[:, 0], cache, state), (tokens, logits)

    carry = logits[:, -1], cache, state
    (_, cache, _), (tokens, given) = lax.scan(one, carry, jnp.arange(number, dtype=jnp.int32))
    tokens = tokens.swapaxes(0, 1).reshape(len(begin), -1)
    if method == "tree":  # each token and its siblings stand behind the draw before
        depth = np.arange(number * SIBLINGS) // SIBLINGS
        return Drafts(tokens, cache, np.where(depth > 0, (depth - 1) * SIBLINGS, -1))
    return Drafts(tokens, cache, logits=given.swapaxes(0, 1) if method == "own" else None)


def look_at(parents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the depths of a text and its tree of drafts, and which tokens each one attends to.

    Args:
      parents: int [n], the draft in front of each draft, -1 for the text.

    Returns:
      Int [n + 1], 0 for the text and the number of drafts up to each draft; and bool
      [n + 1, n + 1], whether the token of a row attends to that of a column: to itself and to those
      in front of it.
    """
    seen = np.eye(len(parents) + 1, dtype=bool)
    for draft, parent in enumerate(parents, start=1):
        seen[draft] |= seen[parent + 1]
    return seen.sum(1) - 1, seen
