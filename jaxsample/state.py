"""The state of a decoding loop: texts and token counts, in fixed shapes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _bits, _checks, _lookup, _shards, _source
from jaxsample._core._public import public, static_integer
from jaxsample._core._pytrees import pytree
from jaxsample._core._shards import AxisName, Shards
from jaxsample.constraints import packed_bitmask


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerState:
    """The texts of a batch, and the counts of their tokens.

    Attributes:
      tokens: int32 `[..., max_length]`, prompt and output, valid up to `lengths`.
      lengths: int32 `[...]`, of prompt and output. A row whose length is outside
        [0, max_length], because its prompt or its output is too long, is a bad row for `sample`.
      prompt_lengths: int32 `[...]`.
      prompt_mask: int32 `[..., ceil(vocab / 32)]`, the tokens of the prompt, a packed bitmask.
      counts: int32 `[..., vocab]`, how often each token was written after the prompt.
    """

    tokens: Array
    lengths: Array
    prompt_lengths: Array
    prompt_mask: Array
    counts: Array

    @staticmethod
    @public(
        first="tokens",
        convert_first=_checks.text,
        static=("vocab_size", "axis_name"),
        prompt_lengths=_checks.integer,
        lengths=_checks.integer,
        vocab_size=static_integer(1, _checks.MAX_VOCAB),
        left_padding=_checks.integer,
    )
    def from_tokens(
        tokens: ArrayLike,
        prompt_lengths: ArrayLike,
        lengths: ArrayLike,
        vocab_size: int,
        *,
        left_padding: ArrayLike = 0,
        axis_name: AxisName = None,
    ) -> "SamplerState":
        """Returns the state of given texts, for a loop that stores its texts elsewhere.

        It counts all tokens of the outputs. A loop that carries a state is faster with
        `update_state`, which counts only the new token.

        Args:
          tokens: integers `[..., max_length]`, prompt and output of each row, valid up to
            `lengths`.
          prompt_lengths: integers in [0, lengths], a scalar or `[...]`.
          lengths: integers in [0, max_length - left_padding], of prompt and output, a scalar or
            `[...]`.
          vocab_size: static, the size of the vocabulary; inside `shard_map`, of its local shard.
          left_padding: integers at least 0, a scalar or `[...]`, the number of padding tokens
            before each text, which are dropped. For prompts padded on the left to a width, it is
            that width minus the length of the prompt.

        Returns:
          `SamplerState`, equal bit for bit to `init_state` with the prompts followed by
          `update_state` with each output token. A row with a length outside its range has length
          -1: it is a bad row for `sample`.

        >>> import jax.numpy as jnp
        >>> texts = jnp.array([[0, 3, 1, 4], [5, 2, 2, 2]])
        >>> state = SamplerState.from_tokens(texts, [1, 2], [2, 4], 6, left_padding=[1, 0])
        >>> print(state.tokens.tolist(), state.counts.tolist())
        [[3, 1, 0, 0], [5, 2, 2, 2]] [[0, 1, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0]]
        """
        text = jnp.asarray(tokens)
        place, room = _lookup.positions(text), text.shape[-1]
        prompt, end, start = (
            _checks.to_rows(jnp.asarray(x), text) for x in (prompt_lengths, lengths, left_padding)
        )
        index = jnp.clip(place + start[..., None], 0, room - 1)
        text = jnp.take_along_axis(text, index, axis=-1, mode="clip")
        output = (place >= prompt[..., None]) & (place < end[..., None])
        state = init_state(text, prompt, vocab_size, room, axis_name=axis_name)
        state = update_state(state, jnp.where(output, text, -1), axis_name=axis_name)
        inside = (prompt <= end) & (start >= 0) & (end <= room - start)
        return dataclasses.replace(state, lengths=jnp.where(inside, state.lengths, -1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftedState(SamplerState):
    """The texts before several positions of each row, which differ only in their drafts.

    `tokens` and `lengths` are stored for each position, `[..., positions, *]`. `counts`,
    `prompt_mask` and `prompt_lengths` are stored for each row, without drafts, `[..., 1, *]`: for
    each position they would be as large as the logits.

    Attributes:
      drafts: int32 `[..., positions, n]`, the drafts in each text, in order; -1 is padding.
    """

    drafts: Array

    def of_tokens(self, ids: Array, shards: Shards | None) -> SamplerState:
        """Returns the states of the positions, with a few tokens `[..., n]` as the vocabulary."""
        drafted = jnp.sum(ids[..., None] == self.drafts[..., None, :], axis=-1, dtype=jnp.int32)
        words = _shards.take(self.prompt_mask, ids // _bits.WORD, shards)
        return dataclasses.replace(
            self,
            counts=_shards.take(self.counts, ids, shards) + drafted,
            prompt_mask=_bits.packed(_bits.is_set(words, ids % _bits.WORD)),
        )

    def whole(self, shards: Shards | None) -> SamplerState:
        """Returns the states of the positions, with counts as large as the logits."""

        def of_positions(leaf: Array) -> Array:
            return jnp.broadcast_to(leaf, (*self.lengths.shape, leaf.shape[-1]))

        counts = of_positions(self.counts)
        return SamplerState(
            tokens=self.tokens,
            lengths=self.lengths,
            prompt_lengths=jnp.broadcast_to(self.prompt_lengths, self.lengths.shape),
            prompt_mask=of_positions(self.prompt_mask),
            counts=_counted(counts, self.drafts, self.drafts >= 0, shards),
        )


def after_drafts(state: SamplerState, drafts: Array, *, is_chain: bool) -> DraftedState:
    """Returns the state after the drafts of each position, `[..., positions, n]`.

    The texts of a chain are one text, cut at different lengths, which is written once.
    """
    shape = (*drafts.shape[:-1], state.tokens.shape[-1])
    tokens = jnp.broadcast_to(state.tokens[..., None, :], shape)
    lengths = jnp.broadcast_to(state.lengths[..., None], shape[:-1])
    texts, ends = _appended(tokens, lengths, drafts, drafts >= 0)
    if is_chain:
        last = drafts[..., -1:, :]
        texts, _ = _appended(tokens[..., -1:, :], lengths[..., -1:], last, last >= 0)
    return DraftedState(
        tokens=jnp.broadcast_to(texts, shape),
        lengths=ends,
        prompt_lengths=state.prompt_lengths[..., None],
        prompt_mask=state.prompt_mask[..., None, :],
        counts=state.counts[..., None, :],
        drafts=drafts,
    )


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
    """Returns the state of rows with given prompts and empty outputs.

    Args:
      prompt_tokens: integers `[..., n]`, n at most `max_length`; tokens beyond a prompt's
        length are ignored, ids outside the vocabulary are not counted.
      prompt_lengths: integers in [0, n], a scalar or `[...]`.
      vocab_size: static, the size of the vocabulary; inside `shard_map`, of its local shard.
      max_length: static, the largest number of tokens of prompt and output.

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
    valid = _lookup.positions(tokens) < lengths[..., None]
    seen = jnp.zeros((*lead, vocab_size), bool)
    shards = _source.shards(seen, axis_name)
    # Ids at or above the vocabulary of all devices are dropped.
    ids = jnp.where(valid & (tokens >= 0), tokens, _shards.vocab(seen, shards))
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


def _new_tokens(name: str, value: ArrayLike, state: SamplerState) -> Array:
    """Returns one token a row, or several."""
    rows = state.lengths.shape
    tokens = _checks.integers(name, value)
    if tokens.shape not in (rows, (*rows, *tokens.shape[-1:])):
        raise ValueError(
            f"{name} must hold one token id a row, of shape {rows}, or several, of shape "
            f"{(*rows, 'n')}, got {tokens.shape}"
        )
    return tokens


@public(
    first="state",
    convert_first=_state,
    tokens=_new_tokens,
    active=lambda name, value, state: _checks.flags(name, value, state.counts),
)
def update_state(
    state: SamplerState, tokens: ArrayLike, active: ArrayLike = True, *, axis_name: AxisName = None
) -> SamplerState:
    """Appends one or more tokens to each row, and counts them.

    If the state is donated, nothing is copied.

    Args:
      state: of the rows.
      tokens: integers `[...]` or `[..., n]`, the sampled tokens; a negative one, of a bad row or
        after the accepted drafts, is not appended.
      active: bool, a scalar or `[...]`; rows where it is False are unchanged.

    Returns:
      The state after the tokens, the same for several at once as for one after the other. A token
      beyond `max_length` is counted but not stored, and its row becomes a bad row for `sample`.

    >>> import jax.numpy as jnp
    >>> state = init_state(jnp.zeros((2, 0), int), 0, vocab_size=4, max_length=8)
    >>> state = update_state(state, jnp.array([3, 3]), active=jnp.array([True, False]))
    >>> print(state.counts)
    [[0 0 0 1] [0 0 0 0]]
    >>> print(update_state(state, jnp.array([[1, 2], [1, -1]])).lengths)
    [3 1]
    """
    shards = _source.shards(state.counts, axis_name)
    token = jnp.asarray(tokens)
    if token.ndim == state.lengths.ndim:
        token = token[..., None]
    new = _checks.to_rows(jnp.asarray(active), state.counts)[..., None] & (token >= 0)
    text, lengths = _appended(state.tokens, state.lengths, token, new)
    counts = _counted(state.counts, token, new, shards)
    return dataclasses.replace(state, tokens=text, lengths=lengths, counts=counts)


def _appended(text: Array, lengths: Array, tokens: Array, new: Array) -> tuple[Array, Array]:
    """Returns texts with the new ones of `tokens [..., n]` appended, and their lengths."""
    new &= (lengths >= 0)[..., None]
    number = jnp.cumsum(new, axis=-1, dtype=jnp.int32)
    places = jnp.where(new, lengths[..., None] + number - 1, text.shape[-1])

    def set_at(row: Array, places: Array, tokens: Array) -> Array:
        return row.at[places].set(tokens, mode="drop")

    text = jnp.vectorize(set_at, signature="(l),(n),(n)->(l)")(text, places, tokens)
    return text, lengths + jnp.sum(new, axis=-1, dtype=jnp.int32)


def _counted(counts: Array, tokens: Array, new: Array, shards: Shards | None) -> Array:
    """Returns the counts with the new ones of `tokens [..., n]` added."""
    ids = jnp.where(new, tokens, _shards.vocab(counts, shards))

    def add_at(row: Array, places: Array) -> Array:
        return row.at[places].add(1, mode="drop")

    places = _shards.places(counts, ids, shards)
    return jnp.vectorize(add_at, signature="(v),(n)->(v)")(counts, places)


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

    If the state is donated, only the rows that change are written.

    Args:
      state: of a batch, with one leading axis.
      rows: integers `[n]`, the rows to assign, no row twice; negative ones are padding.
      prompt_tokens: integers `[n, width]`, width at most `max_length`.
      prompt_lengths: integers in [0, width], a scalar or `[n]`.

    Returns:
      The state with these rows replaced by the result of `init_state`.

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
