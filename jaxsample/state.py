"""The state of a decoding loop: texts and token counts, in fixed shapes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _checks, _chunks, _shards
from jaxsample._core._public import public, static_integer
from jaxsample._core._shards import AxisName
from jaxsample.constraints import packed_bitmask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerState:
    """The texts of a batch, and the counts of their tokens.

    Attributes:
      tokens: int32 `[..., max_length]`, prompt and output, valid up to `lengths`.
      lengths: int32 `[...]`, of prompt and output. A row whose length is outside
        [0, max_length], a prompt that was too long or an output that outgrew its room, is a bad
        row for `sample`.
      prompt_lengths: int32 `[...]`.
      prompt_mask: int32 `[..., ceil(vocab / 32)]`, the tokens of the prompt, a packed bitmask.
      counts: int32 `[..., vocab]`, how often each token was written after the prompt.
    """

    tokens: Array
    lengths: Array
    prompt_lengths: Array
    prompt_mask: Array
    counts: Array


def _state(name: str, value: Any) -> SamplerState:
    _checks.instance(name, value, SamplerState)
    return value


def _integers(name: str, value: ArrayLike, _: SamplerState) -> Array:
    return _checks.integers(name, value)


@public(
    first="prompt_tokens",
    convert_first=_checks.text,
    static=("vocab_size", "max_length", "axis_name"),
    prompt_lengths=_checks.integer,
    vocab_size=static_integer(1, _checks.MAX_VOCAB),
    max_length=static_integer(1, 2**31 - 1),
)
def init_state(
    prompt_tokens: ArrayLike,
    prompt_lengths: ArrayLike,
    vocab_size: int,
    max_length: int,
    *,
    axis_name: AxisName = None,
) -> SamplerState:
    """Returns the state of rows whose prompts were read and whose outputs are empty.

    Args:
      prompt_tokens: integers `[..., n]`, n at most `max_length`; tokens behind a prompt's
        length are ignored, ids outside the vocabulary are not counted.
      prompt_lengths: integers in [0, n], a scalar or `[...]`.
      vocab_size: static, the vocabulary of the logits; of each device's, where it is sharded.
      max_length: static, the room for prompt and output.

    Returns:
      `SamplerState`. A row with a prompt length outside its range has length -1.

    >>> import jax.numpy as jnp
    >>> state = init_state(jnp.array([[3, 1, 3], [2, 0, 0]]), jnp.array([3, 1]), 5, 8)
    >>> state = update_state(state, jnp.array([4, 4]))
    >>> print(state.lengths, state.tokens[:, :4].tolist())
    [4 2] [[3, 1, 3, 4], [2, 4, 0, 0]]
    """
    tokens = jnp.asarray(prompt_tokens)
    if tokens.shape[-1] > max_length:
        raise ValueError(
            f"prompt_tokens must have shape [..., n] with n <= max_length = {max_length}, "
            f"got {tokens.shape}"
        )
    lengths = _checks.to_rows(jnp.asarray(prompt_lengths), tokens)
    *lead, width = tokens.shape
    valid = _chunks.positions(tokens) < lengths[..., None]
    # Ids at or above the vocabulary are dropped.
    ids = jnp.where(valid & (tokens >= 0), tokens, vocab_size)
    seen = jnp.zeros((*lead, vocab_size), bool)
    shards = _chunks.shards(seen, axis_name)
    seen = jnp.vectorize(lambda mask, ids: mask.at[ids].set(True), signature="(v),(n)->(v)")(
        seen, _shards.places(seen, ids, shards)
    )
    padding = [(0, 0)] * len(lead) + [(0, max_length - width)]
    return SamplerState(
        tokens=jnp.pad(jnp.where(valid, tokens, 0), padding),
        lengths=jnp.where((lengths >= 0) & (lengths <= width), lengths, -1),
        prompt_lengths=lengths,
        prompt_mask=packed_bitmask(seen),
        counts=jnp.zeros_like(seen, jnp.int32),
    )


@public(
    first="state",
    convert_first=_state,
    tokens=lambda name, value, state: _checks.tokens(name, value, state.counts),
    active=lambda name, value, state: _checks.flags(name, value, state.counts),
)
def update_state(
    state: SamplerState, tokens: ArrayLike, active: ArrayLike = True, *, axis_name: AxisName = None
) -> SamplerState:
    """Appends a token to each row and counts it.

    Under donation of the state nothing is copied.

    Args:
      state: of the rows.
      tokens: integers `[...]`, what was sampled; a negative one, of a bad row, is not appended.
      active: bool, a scalar or `[...]`; rows where it is False stay as they are.

    Returns:
      The state after the tokens. A token beyond `max_length` is counted, but no longer in
      `tokens`; its row is bad for `sample` from then on.

    >>> import jax.numpy as jnp
    >>> state = init_state(jnp.zeros((2, 0), int), 0, vocab_size=4, max_length=8)
    >>> state = update_state(state, jnp.array([3, 3]), active=jnp.array([True, False]))
    >>> print(state.counts)
    [[0 0 0 1] [0 0 0 0]]
    """
    shards = _chunks.shards(state.counts, axis_name)
    token = jnp.asarray(tokens)
    appended = _checks.to_rows(jnp.asarray(active), state.counts) & (token >= 0)
    vocab, max_length = _shards.vocab(state.counts, shards), state.tokens.shape[-1]

    def set_at(row: Array, place: Array, token: Array) -> Array:
        return row.at[place].set(token, mode="drop")

    def add_at(row: Array, place: Array) -> Array:
        return row.at[place].add(1, mode="drop")

    in_range = appended & (state.lengths >= 0)
    place = jnp.where(in_range, state.lengths, max_length)
    return dataclasses.replace(
        state,
        tokens=jnp.vectorize(set_at, signature="(n),(),()->(n)")(state.tokens, place, token),
        lengths=state.lengths + in_range.astype(jnp.int32),
        counts=jnp.vectorize(add_at, signature="(v),()->(v)")(
            state.counts, _shards.places(state.counts, jnp.where(appended, token, vocab), shards)
        ),
    )


@public(
    first="state",
    convert_first=_state,
    rows=_integers,
)
def reset_rows(
    state: SamplerState,
    rows: ArrayLike,
    prompt_tokens: ArrayLike,
    prompt_lengths: ArrayLike,
    *,
    axis_name: AxisName = None,
) -> SamplerState:
    """Assigns rows of a batch to new requests: continuous batching in fixed shapes.

    Under donation of the state only the rows that change are written.

    Args:
      state: of a batch, with one leading axis.
      rows: integers `[n]`, the rows to assign, no row twice; negative ones are padding.
      prompt_tokens: integers `[n, width]`, width at most `max_length`.
      prompt_lengths: integers in [0, width], a scalar or `[n]`.

    Returns:
      The state, with the rows as `init_state` makes them and all others as they were.

    >>> import jax.numpy as jnp
    >>> state = init_state(jnp.zeros((3, 2), int), 2, vocab_size=4, max_length=8)
    >>> print(reset_rows(state, jnp.array([1, -1]), jnp.ones((2, 1), int), 1).lengths)
    [2 1 2]
    """
    if state.counts.ndim != 2:
        raise ValueError(f"state must have one leading axis, got {state.lengths.shape}")
    place, tokens = jnp.asarray(rows), jnp.asarray(prompt_tokens)
    if place.ndim != 1 or tokens.ndim != 2 or len(place) != len(tokens):
        raise ValueError(
            f"rows and prompt_tokens must have shapes [n] and [n, width], got {place.shape} and "
            f"{tokens.shape}"
        )
    vocab, max_length = state.counts.shape[-1], state.tokens.shape[-1]
    new = init_state(tokens, prompt_lengths, vocab, max_length, axis_name=axis_name)
    place = jnp.where(place < 0, len(state.lengths), place)  # dropped
    return jax.tree.map(lambda old, fresh: old.at[place].set(fresh, mode="drop"), state, new)
