"""Stop conditions: whether the text of a row has ended, and why."""

import enum
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _checks, _history, _lookup
from jaxsample._core._parameters import BAD_WORDS, IDS
from jaxsample._core._public import Converter, public, static_integer
from jaxsample.state import SamplerState


class StopReason(enum.IntEnum):
    """The codes of `stop_reason`."""

    NONE = 0
    STOP_TOKEN = 1
    STOP_SEQUENCE = 2
    LENGTH = 3
    LOOP = 4
    BAD_ROW = 5


def _state(name: str, value: Any) -> SamplerState:
    _checks.instance(name, value, SamplerState)
    return value


def _per_row(convert: Converter) -> Converter:
    """Returns the converter of an argument that may be None."""
    return lambda name, value, state: value if value is None else convert(name, value, state.counts)


@public(
    first="state",
    convert_first=_state,
    static=("max_period", "repeats"),
    tokens=_per_row(_checks.tokens),
    stop_token_ids=_per_row(IDS),
    stop_sequences=_per_row(BAD_WORDS),
    max_tokens=_per_row(_checks.integer),
    max_period=static_integer(0, 2**10),
    repeats=static_integer(2, 2**10),
)
def stop_reason(
    state: SamplerState,
    tokens: ArrayLike,
    *,
    stop_token_ids: ArrayLike | None = None,
    stop_sequences: ArrayLike | None = None,
    max_tokens: ArrayLike | None = None,
    max_period: int = 0,
    repeats: int = 4,
) -> Array:
    """Returns why the text of each row ends with its newest token, as a code of `StopReason`.

    If several reasons hold, returns the first of: BAD_ROW, a negative token or a text longer than
    `max_length`; STOP_TOKEN; STOP_SEQUENCE, the output ends with one of the sequences; LOOP, the
    output ends with `repeats` copies of the same p tokens, for a p up to `max_period`; LENGTH, the
    output has `max_tokens` or the text has `max_length`.

    Only the end of the text is tested. If a step accepts several tokens, call `update_state` and
    this function for each of them in turn.

    Args:
      state: after `update_state` with the newest tokens.
      tokens: integers `[...]`, the newest token of each row, -1 on bad rows, as `sample` returns
        them with its default `bad_token`.
      stop_token_ids: integers `[..., n]`, one list for all rows or one a row; negative ids are
        padding.
      stop_sequences: integers `[..., n, m]` of token ids, each sequence padded with negative ones.
        An empty sequence is ignored.
      max_tokens: integers at least 0, a scalar or `[...]`, the largest number of output tokens; a
        negative one makes its row a bad row. None: limited by `max_length` alone.
      max_period: static, in [0, 1024]; 0 disables LOOP.
      repeats: static, in [2, 1024].

    Returns:
      int32 `[...]`.

    References:
      The stop conditions of vLLM's `SamplingParams` (`stop_token_ids`, `max_tokens`,
      `repetition_detection`): https://github.com/vllm-project/vllm.

    >>> from jaxsample import init_state, update_state
    >>> import jax.numpy as jnp
    >>> state = init_state(jnp.zeros((3, 1), int), 1, vocab_size=9, max_length=8)
    >>> state = update_state(state, [[5, 6, 5, 6], [1, 2, 3, 4], [1, 1, 7, 8]])
    >>> code = stop_reason(
    ...     state, [6, 4, 8], stop_token_ids=[4], stop_sequences=[[7, 8]], max_period=2, repeats=2
    ... )
    >>> print([StopReason(c).name for c in code.tolist()])
    ['LOOP', 'STOP_TOKEN', 'STOP_SEQUENCE']
    """
    token, written = jnp.asarray(tokens), state.lengths - state.prompt_lengths
    bad = (token < 0) | _history.is_bad(state.tokens, state.lengths)
    full = state.lengths >= state.tokens.shape[-1]
    if max_tokens is not None:
        limit = _checks.to_rows(jnp.asarray(max_tokens), state.counts)
        bad, full = bad | (limit < 0), full | (written >= limit)
    reasons = [(StopReason.BAD_ROW, bad)]
    if stop_token_ids is not None:
        stops = jnp.any(jnp.asarray(stop_token_ids) == token[..., None], axis=-1)
        reasons.append((StopReason.STOP_TOKEN, stops))
    if stop_sequences is not None:
        ends = _ends_with(state, jnp.asarray(stop_sequences), written)
        reasons.append((StopReason.STOP_SEQUENCE, ends))
    if max_period:
        reasons.append((StopReason.LOOP, _loops(state, written, max_period, repeats)))
    code = jnp.where(full, jnp.int32(StopReason.LENGTH), jnp.int32(StopReason.NONE))
    for reason, holds in reversed(reasons):
        code = jnp.where(holds, jnp.int32(reason), code)
    return code


def _ends_with(state: SamplerState, sequences: Array, written: Array) -> Array:
    """Returns whether the output of each row ends with one of its sequences `[..., n, m]`."""
    lengths = jnp.sum(sequences >= 0, axis=-1, dtype=jnp.int32)
    place = _lookup.positions(sequences)
    index = (state.lengths[..., None] - lengths)[..., None] + place
    text = _last(state, index.reshape(*index.shape[:-2], -1))
    equal = (text.reshape(index.shape) == sequences) | (place >= lengths[..., None])
    fits = (lengths > 0) & (lengths <= written[..., None])
    return jnp.any(jnp.all(equal, axis=-1) & fits, axis=-1)


def _loops(state: SamplerState, written: Array, max_period: int, repeats: int) -> Array:
    """Returns whether the output of each row ends with copies of the same few tokens."""
    back = _lookup.positions(jnp.empty((*written.shape, max_period * repeats)))
    tail = _last(state, state.lengths[..., None] - 1 - back)

    def with_period(i: Array, found: Array) -> Array:
        period = i + 1
        equal = tail == jnp.roll(tail, -period, axis=-1)
        equal |= back >= period * (repeats - 1)
        return found | (jnp.all(equal, axis=-1) & (period * repeats <= written))

    none = jnp.zeros_like(written, bool)
    # A loop, since the time to compile should not grow with the periods.
    return lax.fori_loop(np.int32(0), np.int32(max_period), with_period, none)


def _last(state: SamplerState, index: Array) -> Array:
    """Returns tokens by index; at a negative index, any token."""
    return _lookup.take(state.tokens, jnp.maximum(index, 0))
