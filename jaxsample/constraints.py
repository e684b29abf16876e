"""Logits to logits: what may be said, and what had better be, whatever the model thinks of it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample import _bits, _checks, _chunks, _history, _look, _normalizer, _shards, _sparse
from jaxsample._kernels.choice import Implementation
from jaxsample._shards import AxisName, Shards


class Banned(NamedTuple):
    """A few tokens of each row that may not come.

    Attributes:
      ids: int32 `[..., n]`; negative ones are padding.
      where: bool `[..., n]`, which of them are banned.
      bad: bool `[...]`, the rows with a parameter outside its range.
    """

    ids: Array
    where: Array
    bad: Array


def biased_logits(
    logits: ArrayLike, token_ids: ArrayLike, bias: ArrayLike, *, axis_name: AxisName = None
) -> Array:
    """Adds a bias to the logits of some tokens: `logit + bias`, -inf masks.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked and stays so.
      token_ids: integers `[..., n]` below `vocab`, one list for all rows or one a row; negative ids
        are padding, an id's several biases add up.
      bias: `[..., n]`, finite or -inf; 0 is neutral.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.

    Returns:
      float32 `[..., vocab]`. An id or a bias outside its range makes its row NaN; NaN and +inf
      stay bad.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      The `logit_bias` of the OpenAI API.

    >>> import jax.numpy as jnp
    >>> print(biased_logits(jnp.zeros(4), jnp.array([2, 0, -1]), jnp.array([1.5, -jnp.inf, 0.0])))
    [-inf   0.   1.5  0. ]
    """
    logits = _checks.logits(logits)
    token_ids = _checks.per_item("token_ids", token_ids, logits, "iu")
    width = token_ids.shape[-1]
    bias = _checks.per_item("bias", bias, logits, "iuf")
    if bias.shape[-1] != width:
        raise ValueError(f"bias must have shape [..., {width}], as token_ids, got {bias.shape}")
    shards = _chunks.shards(logits, axis_name)
    return _biased_logits(logits, token_ids, bias.astype(jnp.float32), shards)


@jax.jit
def _biased_logits(logits: Array, token_ids: Array, bias: Array, shards: Shards | None) -> Array:
    vocab, used = _shards.vocab(logits, shards), token_ids >= 0
    bad = jnp.any((token_ids >= vocab) | (used & ~(bias < jnp.inf)), axis=-1)
    logits = jnp.where(bad[..., None], jnp.nan, logits.astype(jnp.float32))
    ids, total = _summed(jnp.where(used, token_ids, vocab), jnp.where(used, bias, 0))
    places = _shards.places(logits, ids, shards)
    new = _chunks.settle(_shards.take(logits, places) + total)
    return _sparse.replace(logits, jnp.where(total == 0, vocab, places), new)


def _summed(ids: Array, bias: Array) -> tuple[Array, Array]:
    """The ids sorted, and with the last of each its biases' sum; with the others 0."""

    def add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return right[0], jnp.where(left[0] == right[0], left[1], 0) + right[1]

    ids, bias = lax.sort((ids, bias), num_keys=1, is_stable=True)
    total = lax.associative_scan(add, (ids, bias), axis=ids.ndim - 1)[1]
    followed = ids[..., :-1] == ids[..., 1:]
    last = jnp.concatenate([~followed, jnp.full_like(ids[..., :1], True, jnp.bool_)], axis=-1)
    return ids, jnp.where(last, total, 0)


def allowed_logits(logits: ArrayLike, allowed: ArrayLike, *, axis_name: AxisName = None) -> Array:
    """Masks the tokens that are not allowed.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      allowed: bool `[..., vocab]`, one mask for all rows or one a row.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.

    Returns:
      `[..., vocab]` in the dtype of the logits; NaN and +inf stay, so their row stays bad.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    >>> import jax.numpy as jnp
    >>> print(allowed_logits(jnp.array([1.0, 2.0, 3.0]), jnp.array([True, False, True])))
    [  1. -inf   3.]
    """
    logits = _checks.logits(logits)
    _chunks.shards(logits, axis_name)
    return _allowed_logits(logits, _checks.per_token("allowed", allowed, logits, "b"))


@jax.jit
def _allowed_logits(logits: Array, allowed: Array) -> Array:
    return _bits.masked(logits, allowed)


def bitmask_logits(logits: ArrayLike, bitmask: ArrayLike, *, axis_name: AxisName = None) -> Array:
    """Masks the tokens whose bit is 0: token t is bit `t % 32`, from the least, of word `t // 32`.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      bitmask: int32 or uint32 `[..., ceil(vocab / 32)]`, one mask for all rows or one a row; bits
        beyond the vocabulary mean nothing.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.

    Returns:
      `[..., vocab]` in the dtype of the logits; NaN and +inf stay, so their row stays bad.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      The token bitmasks of xgrammar and llguidance.

    >>> import numpy as np
    >>> print(bitmask_logits(np.float32([1, 2, 3]), np.int32([0b101])))
    [  1. -inf   3.]
    """
    logits = _checks.logits(logits)
    _chunks.shards(logits, axis_name)
    return _bitmask_logits(logits, _checks.bitmask("bitmask", bitmask, logits))


@jax.jit
def _bitmask_logits(logits: Array, bitmask: Array) -> Array:
    return _bits.masked(logits, _bits.unpacked(bitmask, logits.shape[-1]))


def packed_bitmask(allowed: ArrayLike) -> Array:
    """Packs a mask over the vocabulary as `bitmask_logits` reads it.

    Args:
      allowed: bool `[..., vocab]`.

    Returns:
      int32 `[..., ceil(vocab / 32)]`; the bits beyond the vocabulary are 0.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    >>> import numpy as np
    >>> print(packed_bitmask(np.arange(34) % 2 == 1))
    [-1431655766           2]
    """
    array = allowed if isinstance(allowed, Array) else np.asarray(allowed)
    if array.dtype != np.bool_:
        raise TypeError(f"allowed must hold bool, got {array.dtype}")
    if array.ndim < 1:
        raise ValueError(f"allowed must have shape [..., vocab], got {array.shape}")
    return _packed_bitmask(jnp.asarray(array))


_packed_bitmask = jax.jit(_bits.packed)


def suppressed_logits(
    logits: ArrayLike, token_ids: ArrayLike, *, axis_name: AxisName = None
) -> Array:
    """Masks some tokens.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      token_ids: integers `[..., n]` below `vocab`, one list for all rows or one a row; negative ids
        are padding.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.

    Returns:
      `[..., vocab]` in the dtype of the logits. An id outside its range makes its row NaN; NaN and
      +inf stay, so their row stays bad.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    >>> import jax.numpy as jnp
    >>> print(suppressed_logits(jnp.array([1.0, 2.0, 3.0]), jnp.array([1, -1])))
    [  1. -inf   3.]
    """
    logits = _checks.logits(logits)
    return without(logits, suppressed(logits, token_ids, axis_name), axis_name)


def suppressed(logits: Array, token_ids: ArrayLike, axis_name: AxisName) -> Banned:
    """What `suppressed_logits` masks."""
    token_ids = _checks.per_item("token_ids", token_ids, logits, "iu")
    return _suppressed(logits, token_ids, _chunks.shards(logits, axis_name))


@jax.jit
def _suppressed(logits: Array, token_ids: Array, shards: Shards | None) -> Banned:
    bad = jnp.any(token_ids >= _shards.vocab(logits, shards), axis=-1)
    return Banned(token_ids, jnp.full(token_ids.shape, True), bad)


def min_tokens_logits(
    logits: ArrayLike,
    stop_token_ids: ArrayLike,
    length: ArrayLike,
    min_tokens: ArrayLike,
    *,
    axis_name: AxisName = None,
) -> Array:
    """Masks the tokens that end a text while it has fewer than `min_tokens` tokens.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      stop_token_ids: integers `[..., n]` below `vocab`, one list for all rows or one a row;
        negative ids are padding.
      length: integers, at least 0, a scalar or `[...]`, the tokens written so far.
      min_tokens: integer, at least 0, a scalar or `[...]`; 0 is neutral.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.

    Returns:
      `[..., vocab]` in the dtype of the logits. A parameter outside its range makes its row NaN;
      NaN and +inf stay, so their row stays bad.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    >>> import jax.numpy as jnp
    >>> print(min_tokens_logits(jnp.zeros((2, 3)), jnp.array([2]), jnp.array([4, 5]), 5))
    [[  0.   0. -inf]
     [  0.   0.   0.]]
    """
    logits = _checks.logits(logits)
    banned = before_min_tokens(logits, stop_token_ids, length, min_tokens, axis_name)
    return without(logits, banned, axis_name)


def before_min_tokens(
    logits: Array,
    stop_token_ids: ArrayLike,
    length: ArrayLike,
    min_tokens: ArrayLike,
    axis_name: AxisName,
) -> Banned:
    """What `min_tokens_logits` masks."""
    return _before_min_tokens(
        logits,
        _checks.per_item("stop_token_ids", stop_token_ids, logits, "iu"),
        _checks.integer("length", length, logits),
        _checks.integer("min_tokens", min_tokens, logits),
        _chunks.shards(logits, axis_name),
    )


@jax.jit
def _before_min_tokens(
    logits: Array, stop_token_ids: Array, length: Array, min_tokens: Array, shards: Shards | None
) -> Banned:
    length, min_tokens = (_checks.to_rows(x, logits) for x in (length, min_tokens))
    bad = jnp.any(stop_token_ids >= _shards.vocab(logits, shards), axis=-1)
    bad |= (length < 0) | (min_tokens < 0)
    early = jnp.broadcast_to((length < min_tokens)[..., None], stop_token_ids.shape)
    return Banned(stop_token_ids, early, bad)


def bad_words_logits(
    logits: ArrayLike,
    tokens: ArrayLike,
    length: ArrayLike,
    words: ArrayLike,
    word_lengths: ArrayLike,
    *,
    axis_name: AxisName = None,
) -> Array:
    """Masks the last token of each word whose other tokens end the history.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      tokens: integers `[..., L]`, the history; what lies behind its length is not looked at.
      length: integers in [0, L], a scalar or `[...]`.
      words: integers `[..., words, n]` in [0, vocab), one list for all rows or one a row; what lies
        behind a word's length is not looked at.
      word_lengths: integers `[..., words]` in [0, n]; 0 is no word, words of 1 are always masked.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.

    Returns:
      `[..., vocab]` in the dtype of the logits. A parameter outside its range makes its row NaN;
      NaN and +inf stay, so their row stays bad.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      `bad_words_ids` of Hugging Face transformers, `bad_words` of vLLM.

    >>> import jax.numpy as jnp
    >>> words = jnp.array([[1, 2], [3, 0], [2, 0]])
    >>> print(bad_words_logits(jnp.zeros(4), jnp.array([0, 1]), 2, words, jnp.array([2, 1, 2])))
    [  0.   0. -inf -inf]
    """
    logits = _checks.logits(logits)
    banned = bad_words(logits, tokens, length, words, word_lengths, axis_name)
    return without(logits, banned, axis_name)


def bad_words(
    logits: Array,
    tokens: ArrayLike,
    length: ArrayLike,
    words: ArrayLike,
    word_lengths: ArrayLike,
    axis_name: AxisName,
) -> Banned:
    """What `bad_words_logits` masks."""
    tokens = _checks.per_item("tokens", tokens, logits, "iu")
    length = _checks.integer("length", length, logits)
    words = words if isinstance(words, Array) else np.asarray(words)
    if words.ndim < 2:
        raise ValueError(f"words must have shape [..., words, n], got {words.shape}")
    *lead, count, longest = words.shape
    words = _checks.per_item("words", words.reshape(*lead, count * longest), logits, "iu")
    word_lengths = _checks.per_item("word_lengths", word_lengths, logits, "iu")
    if word_lengths.shape[-1] != count:
        raise ValueError(f"word_lengths must have shape [..., {count}], got {word_lengths.shape}")
    words = words.reshape(*words.shape[:-1], count, longest)
    shards = _chunks.shards(logits, axis_name)
    return _bad_words(logits, tokens, length, words, word_lengths, shards)


@jax.jit
def _bad_words(
    logits: Array,
    tokens: Array,
    length: Array,
    words: Array,
    word_lengths: Array,
    shards: Shards | None,
) -> Banned:
    length, place = _checks.to_rows(length, logits), _chunks.positions(words)
    unknown = (words < 0) | (words >= _shards.vocab(logits, shards))
    bad = _history.is_bad(tokens, length)
    bad |= jnp.any((word_lengths < 0) | (word_lengths > words.shape[-1]), axis=-1)
    bad |= jnp.any(unknown & (place < word_lengths[..., None]), axis=(-2, -1))

    prefix = word_lengths - 1
    start = length[..., None] - prefix
    where = (start[..., None] + place).reshape(*length.shape, words.shape[-2] * words.shape[-1])
    written = _shards.take(tokens, where).reshape(words.shape)
    begun = jnp.all((words == written) | (place >= prefix[..., None]), axis=-1)
    last = _chunks.at(words, prefix)
    return Banned(last, begun & (prefix >= 0) & (start >= 0), bad)


def guided_logits(
    conditional: ArrayLike,
    unconditional: ArrayLike,
    scale: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Classifier-free guidance: `u + scale * (c - u)` of the log-probabilities c and u.

    Args:
      conditional: logits `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      unconditional: logits `[..., vocab]`, what the model says without the prompt to be followed.
      scale: finite, a scalar or `[...]`; 1 is neutral, 0 leaves the unconditional ones.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

    Returns:
      float32 `[..., vocab]`; a token masked in either is masked. At scale 1 the conditional logits
      as they are, whatever the others. Else bad rows (a NaN, +inf or no finite logit in either, a
      scale outside its range) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Sanchez et al., "Stay on topic with classifier-free guidance", arXiv 2306.17806.

    >>> import jax.numpy as jnp
    >>> c, u = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.8, 0.2]))
    >>> print(jnp.exp(guided_logits(c, u, 2.0)))
    [0.312 1.25 ]
    """
    conditional = _checks.logits(conditional, "conditional")
    unconditional = _checks.per_token("unconditional", unconditional, conditional, "f")
    scale = _checks.real("scale", scale, conditional)
    shards = _chunks.shards(conditional, axis_name)
    return _guided_logits(conditional, unconditional, scale, shards, implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def _guided_logits(
    conditional: Array,
    unconditional: Array,
    scale: Array,
    shards: Shards | None,
    implementation: Implementation,
) -> Array:
    scale = _checks.to_rows(scale, conditional)[..., None]
    bad = ~jnp.isfinite(scale)
    masked = (conditional == -jnp.inf) | (unconditional == -jnp.inf)
    parts = []
    for logits in (conditional, unconditional):
        logprobs, bad_row = _log_softmax(logits, shards, implementation)
        bad |= bad_row[..., None]
        parts.append(logprobs)
    # A log-probability may lie beyond float32, and 0 times -inf is NaN.
    lowest = jnp.finfo(jnp.float32).min
    c, u = (jnp.where(masked | bad, 0, jnp.maximum(part, lowest)) for part in parts)
    step = _chunks.settle(jnp.where(bad, 1, scale) * (c - u))
    guided = _chunks.settle(u + step)
    guided = jnp.where(bad, jnp.nan, jnp.where(masked, -jnp.inf, guided))
    return jnp.where(scale == 1, conditional.astype(jnp.float32), guided)


def _log_softmax(
    logits: Array, shards: Shards | None, implementation: Implementation
) -> tuple[Array, Array]:
    """The log-probabilities `[..., vocab]`, float32, and the bad rows `[...]`."""
    source = _chunks.source(lax.stop_gradient(logits), shards=shards)
    rows, scale, (sums,) = _look.look_over_and_weigh(source, None, implementation)
    mass = _chunks.added_up(sums, scale)
    return _normalizer.logprobs(rows, mass, logits, logits), rows.bad


@functools.partial(jax.jit, static_argnames="axis_name")
def without(logits: Array, banned: Banned, axis_name: AxisName) -> Array:
    """The logits without what is banned; NaN on bad rows."""
    shards = _chunks.shards(logits, axis_name)
    logits = jnp.where(banned.bad[..., None], jnp.nan, logits)
    return _sparse.ban(logits, _shards.places(logits, banned.ids, shards), banned.where)
