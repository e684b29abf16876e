"""Penalties by count, with a window, exempt tokens and drafts.

A penalty by count is elementwise. So it can be applied to a few tokens alone, such as the tokens of
a window or of drafts, and no counts of the size of the logits are written.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxsample._core import _bits, _history, _lookup, _shards, _sparse
from jaxsample._core._parameters import COUNT, IDS
from jaxsample._core._source import Source
from jaxsample.params import SamplingParams
from jaxsample.state import DraftedState, SamplerState

Penalties = Callable[[Source, SamplerState], Source]
"""Returns the logits after penalties, given a state whose counts are of the same tokens."""


def by_count(apply: Penalties, x: Source, params: SamplingParams, state: SamplerState) -> Source:
    """Returns the logits after penalties by count; NaN on bad rows."""
    given, window = params.exempt_token_ids, params.penalty_window
    if given is None and window is None:
        return _of_text(apply, x, state, None)
    bad, exempt = jnp.array(False), None
    if given is not None:
        exempt = IDS("exempt_token_ids", given, x.logits)
        bad = jnp.any(exempt >= x.vocab, axis=-1)
    if window is None:
        penalised = _of_text(apply, x, state, exempt)
    else:
        last = x.per_row(window)
        bad |= ~COUNT.inside(last)
        penalised = _of_window(apply, x, state, last, exempt)
    logits = jnp.where(bad[..., None], jnp.nan, penalised.logits)
    return dataclasses.replace(penalised, logits=logits)


def _of_text(apply: Penalties, x: Source, state: SamplerState, exempt: Array | None) -> Source:
    """Returns the logits after penalties by the counts of the whole text.

    With drafts, the penalties are applied to all tokens with the counts of the row, then to the
    drafts alone with the counts of the position.
    """
    penalised = apply(x, state if exempt is None else _without(state, x, exempt))
    if not isinstance(state, DraftedState) or not state.drafts.shape[-1]:
        return penalised
    ids = state.drafts
    if exempt is not None:
        ids = jnp.where(_history.is_listed(ids, exempt), -1, ids)
    few = apply(_taken(x, ids), state.of_tokens(ids, x.shards))
    return _replaced(penalised, _sparse.once(ids, x.vocab), few)


def _without(state: SamplerState, x: Source, exempt: Array) -> SamplerState:
    """Returns the state without the counts of some tokens."""
    words = _sparse.unlisted(x, exempt)
    counts = jnp.where(_bits.unpacked(words, x.logits.shape[-1]), state.counts, 0)
    return dataclasses.replace(state, counts=counts, prompt_mask=state.prompt_mask & words)


def _of_window(
    apply: Penalties, x: Source, state: SamplerState, window: Array, exempt: Array | None
) -> Source:
    """Returns the logits after penalties by the counts of the last `window [...]` tokens."""
    tokens, length = state.tokens, state.lengths
    place = _lookup.positions(tokens)
    start = jnp.where(window > 0, length - window, 0)
    counted = (place >= start[..., None]) & (place < length[..., None])
    counted &= (tokens >= 0) & (tokens < x.vocab)
    if exempt is not None:
        counted &= ~_history.is_listed(tokens, exempt)
    written = counted & (place >= state.prompt_lengths[..., None])
    ids, counts = _sparse.summed(
        jnp.where(counted, tokens, x.vocab), written.astype(jnp.int32), x.vocab
    )
    seen = _bits.packed(ids < x.vocab)
    few = apply(_taken(x, ids), dataclasses.replace(state, counts=counts, prompt_mask=seen))
    # Penalties of no token: float32, and NaN where a penalty is outside its range.
    none = dataclasses.replace(
        state,
        counts=jnp.zeros(x.logits.shape, jnp.int32),
        prompt_mask=jnp.zeros((*window.shape, -(-x.logits.shape[-1] // _bits.WORD)), jnp.int32),
    )
    return _replaced(apply(x, none), ids, few)


def _taken(x: Source, ids: Array) -> Source:
    """Returns the logits of a few tokens `[..., n]`, as a vocabulary of their own."""
    return Source(_shards.take(x.logits, ids, x.shards))


def _replaced(x: Source, ids: Array, few: Source) -> Source:
    """Returns the logits with the logits of a few tokens replaced."""
    places = _shards.places(x.logits, ids, x.shards)
    logits = _sparse.replace(x.logits, places, few.logits)
    return dataclasses.replace(x, logits=logits)
