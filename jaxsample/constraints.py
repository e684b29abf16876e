"""Constraints, logits to logits: biases, masks, banned tokens and guidance."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _bits, _checks, _chunks, _history, _normalizer, _scan, _shards, _sparse
from jaxsample._core._chunks import Implementation, Source, opened
from jaxsample._core._parameters import (
    BAD_WORDS,
    BIAS,
    BITMASK,
    COUNT,
    FINITE,
    IDS,
    LOGITS,
    MASK,
    TOKENS,
    WORD_LENGTHS,
)
from jaxsample._core._public import public
from jaxsample._core._shards import AxisName


class Banned(NamedTuple):
    """A few banned tokens of each row.

    Attributes:
      ids: int32 `[..., n]`; negative ones are padding.
      where: bool `[..., n]`, which of them are banned.
      bad: bool `[...]`, the rows with a parameter outside its range.
    """

    ids: Array
    where: Array
    bad: Array


@public(token_ids=IDS, bias=BIAS)
def biased_logits(
    logits: ArrayLike, token_ids: ArrayLike, bias: ArrayLike, *, axis_name: AxisName = None
) -> Array:
    """Adds a bias to the logits of some tokens: `logit + bias`, -inf masks.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked and stays so.
      token_ids: integers `[..., n]` below `vocab`, one list for all rows or one a row; negative ids
        are padding, an id's several biases add up.
      bias: `[..., n]`, finite or -inf; 0 is neutral.

    Returns:
      float32 `[..., vocab]`. An id or a bias outside its range makes its row NaN; NaN and +inf
      stay bad.

    References:
      The `logit_bias` of the OpenAI API.

    >>> import jax.numpy as jnp
    >>> print(biased_logits(jnp.zeros(4), jnp.array([2, 0, -1]), jnp.array([1.5, -jnp.inf, 0.0])))
    [-inf   0.   1.5  0. ]
    """
    x, ids, each = opened(logits, axis_name), jnp.asarray(token_ids), jnp.asarray(bias)
    if each.shape != ids.shape:
        raise ValueError(
            f"bias must have shape [..., {ids.shape[-1]}], as token_ids, got {each.shape}"
        )
    vocab, used, each = x.vocab, ids >= 0, each.astype(jnp.float32)
    bad = jnp.any((ids >= vocab) | (used & ~BIAS.inside(each)), axis=-1)
    wide = jnp.where(bad[..., None], jnp.nan, x.logits.astype(jnp.float32))
    ids, total = _summed(jnp.where(used, ids, vocab), jnp.where(used, each, 0))
    places = _shards.places(wide, ids, x.shards)
    new = _chunks.rounded(_shards.take(wide, places) + total)
    return _sparse.replace(wide, jnp.where(total == 0, vocab, places), new)


def _summed(ids: Array, bias: Array) -> tuple[Array, Array]:
    """Returns the ids sorted, and with the last of each its biases' sum; with the others 0."""

    def add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return right[0], jnp.where(left[0] == right[0], left[1], 0) + right[1]

    ids, bias = lax.sort((ids, bias), num_keys=1, is_stable=True)
    total = lax.associative_scan(add, (ids, bias), axis=ids.ndim - 1)[1]
    followed = ids[..., :-1] == ids[..., 1:]
    last = jnp.concatenate([~followed, jnp.full_like(ids[..., :1], True, jnp.bool_)], axis=-1)
    return ids, jnp.where(last, total, 0)


@public(allowed=MASK)
def allowed_logits(logits: ArrayLike, allowed: ArrayLike, *, axis_name: AxisName = None) -> Array:
    """Masks the tokens that are not allowed.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      allowed: bool `[..., vocab]`, one mask for all rows or one a row.

    Returns:
      `[..., vocab]` in the dtype of the logits; NaN and +inf stay, so their row stays bad.

    >>> import jax.numpy as jnp
    >>> print(allowed_logits(jnp.array([1.0, 2.0, 3.0]), jnp.array([True, False, True])))
    [  1. -inf   3.]
    """
    return _bits.masked(opened(logits, axis_name).logits, jnp.asarray(allowed))


@public(bitmask=BITMASK)
def bitmask_logits(logits: ArrayLike, bitmask: ArrayLike, *, axis_name: AxisName = None) -> Array:
    """Masks the tokens whose bit is 0: token t is bit `t % 32`, from the least, of word `t // 32`.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      bitmask: int32 or uint32 `[..., ceil(vocab / 32)]`, one mask for all rows or one a row; bits
        beyond the vocabulary mean nothing.

    Returns:
      `[..., vocab]` in the dtype of the logits; NaN and +inf stay, so their row stays bad.

    References:
      The token bitmasks of xgrammar and llguidance.

    >>> import numpy as np
    >>> print(bitmask_logits(np.float32([1, 2, 3]), np.int32([0b101])))
    [  1. -inf   3.]
    """
    x = opened(logits, axis_name)
    return _bits.masked(x.logits, _bits.unpacked(jnp.asarray(bitmask), x.logits.shape[-1]))


@public(first="allowed", convert_first=_checks.mask)
def packed_bitmask(allowed: ArrayLike) -> Array:
    """Packs a mask over the vocabulary as `bitmask_logits` reads it.

    Args:
      allowed: bool `[..., vocab]`.

    Returns:
      int32 `[..., ceil(vocab / 32)]`; the bits beyond the vocabulary are 0.

    >>> import numpy as np
    >>> print(packed_bitmask(np.arange(34) % 2 == 1))
    [-1431655766           2]
    """
    return _bits.packed(jnp.asarray(allowed))


@public(token_ids=IDS)
def suppressed_logits(
    logits: ArrayLike, token_ids: ArrayLike, *, axis_name: AxisName = None
) -> Array:
    """Masks the tokens of a list.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      token_ids: integers `[..., n]` below `vocab`, one list for all rows or one a row; negative ids
        are padding.

    Returns:
      `[..., vocab]` in the dtype of the logits. An id outside its range makes its row NaN; NaN and
      +inf stay, so their row stays bad.

    >>> import jax.numpy as jnp
    >>> print(suppressed_logits(jnp.array([1.0, 2.0, 3.0]), jnp.array([1, -1])))
    [  1. -inf   3.]
    """
    x = opened(logits, axis_name)
    return without(x, suppressed(x, jnp.asarray(token_ids)))


def suppressed(x: Source, token_ids: Array) -> Banned:
    """Returns the tokens that `suppressed_logits` masks."""
    bad = jnp.any(token_ids >= x.vocab, axis=-1)
    return Banned(token_ids, jnp.full(token_ids.shape, True), bad)


@public(stop_token_ids=IDS, length=COUNT, min_tokens=COUNT)
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

    Returns:
      `[..., vocab]` in the dtype of the logits. A parameter outside its range makes its row NaN;
      NaN and +inf stay, so their row stays bad.

    >>> import jax.numpy as jnp
    >>> print(min_tokens_logits(jnp.zeros((2, 3)), jnp.array([2]), jnp.array([4, 5]), 5))
    [[  0.   0. -inf]
     [  0.   0.   0.]]
    """
    x = opened(logits, axis_name)
    return without(x, before_min_tokens(x, jnp.asarray(stop_token_ids), length, min_tokens))


def before_min_tokens(
    x: Source, stop_token_ids: Array, length: ArrayLike, min_tokens: ArrayLike
) -> Banned:
    """Returns the tokens that `min_tokens_logits` masks."""
    length, min_tokens = x.per_row(length), x.per_row(min_tokens)
    bad = jnp.any(stop_token_ids >= x.vocab, axis=-1)
    bad |= ~(COUNT.inside(length) & COUNT.inside(min_tokens))
    early = jnp.broadcast_to((length < min_tokens)[..., None], stop_token_ids.shape)
    return Banned(stop_token_ids, early, bad)


@public(tokens=TOKENS, length=COUNT, words=BAD_WORDS, word_lengths=WORD_LENGTHS)
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
      tokens: integers `[..., L]`, the history; tokens behind its length are ignored.
      length: integers in [0, L], a scalar or `[...]`.
      words: integers `[..., words, n]` in [0, vocab), one list for all rows or one a row; tokens
        behind a word's length are ignored.
      word_lengths: integers `[..., words]` in [0, n]; 0 is no word, words of 1 are always masked.

    Returns:
      `[..., vocab]` in the dtype of the logits. A parameter outside its range makes its row NaN;
      NaN and +inf stay, so their row stays bad.

    References:
      `bad_words_ids` of Hugging Face transformers, `bad_words` of vLLM.

    >>> import jax.numpy as jnp
    >>> words = jnp.array([[1, 2], [3, 0], [2, 0]])
    >>> print(bad_words_logits(jnp.zeros(4), jnp.array([0, 1]), 2, words, jnp.array([2, 1, 2])))
    [  0.   0. -inf -inf]
    """
    x = opened(logits, axis_name)
    text, listed, lengths = map(jnp.asarray, (tokens, words, word_lengths))
    return without(x, bad_words(x, text, length, listed, lengths))


def bad_words(
    x: Source, tokens: Array, length: ArrayLike, words: Array, word_lengths: Array
) -> Banned:
    """Returns the tokens that `bad_words_logits` masks."""
    count, longest = words.shape[-2:]
    if word_lengths.shape[-1] != count:
        raise ValueError(f"word_lengths must have shape [..., {count}], got {word_lengths.shape}")
    length, place = x.per_row(length), _chunks.positions(words)
    unknown = (words < 0) | (words >= x.vocab)
    bad = _history.is_bad(tokens, length)
    bad |= jnp.any((word_lengths < 0) | (word_lengths > longest), axis=-1)
    bad |= jnp.any(unknown & (place < word_lengths[..., None]), axis=(-2, -1))

    prefix = word_lengths - 1
    start = length[..., None] - prefix
    where = (start[..., None] + place).reshape(*length.shape, count * longest)
    written = _shards.take(tokens, where).reshape(words.shape)
    begun = jnp.all((words == written) | (place >= prefix[..., None]), axis=-1)
    last = _chunks.at(words, prefix)
    return Banned(last, begun & (prefix >= 0) & (start >= 0), bad)


@public(first="conditional", unconditional=LOGITS, scale=FINITE)
def guided_logits(
    conditional: ArrayLike,
    unconditional: ArrayLike,
    scale: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Applies classifier-free guidance: `u + scale * (c - u)` of log-probabilities c and u.

    Args:
      conditional: logits `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      unconditional: logits `[..., vocab]`, of the model without the prompt to be followed.
      scale: finite, a scalar or `[...]`; 1 is neutral, 0 leaves the unconditional ones.

    Returns:
      float32 `[..., vocab]`; a token masked in either is masked. At scale 1 the conditional logits
      as they are, whatever the others. Else bad rows (a NaN, +inf or no finite logit in either, a
      scale outside its range) are NaN throughout.

    References:
      Sanchez et al., "Stay on topic with classifier-free guidance", arXiv 2306.17806.

    >>> import jax.numpy as jnp
    >>> c, u = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.8, 0.2]))
    >>> print(jnp.exp(guided_logits(c, u, 2.0)))
    [0.312 1.25 ]
    """
    weight = opened(conditional, axis_name).per_row(scale)[..., None]
    bad = ~FINITE.inside(weight)
    masked, parts = jnp.array(False), []
    for logits in (conditional, unconditional):
        x = opened(logits, axis_name, implementation)
        logprobs, bad_row = _log_softmax(x)
        bad |= bad_row[..., None]
        masked |= x.logits == -jnp.inf
        parts.append(logprobs)
    # A log-probability may lie beyond float32, and 0 times -inf is NaN.
    lowest = jnp.finfo(jnp.float32).min
    c, u = (jnp.where(masked | bad, 0, jnp.maximum(part, lowest)) for part in parts)
    step = _chunks.rounded(jnp.where(bad, 1, weight) * (c - u))
    guided = _chunks.rounded(u + step)
    guided = jnp.where(bad, jnp.nan, jnp.where(masked, -jnp.inf, guided))
    return jnp.where(weight == 1, jnp.asarray(conditional).astype(jnp.float32), guided)


def _log_softmax(x: Source) -> tuple[Array, Array]:
    """Returns the log-probabilities `[..., vocab]`, float32, and the bad rows `[...]`."""
    rows, scale, (sums,) = _scan.scan_and_weigh(x)
    mass = _chunks.added_up(sums, scale)
    return _normalizer.logprobs(rows, mass, x.logits, x.logits), rows.bad


def without(x: Source, banned: Banned) -> Array:
    """Returns the logits without the banned tokens; NaN on bad rows."""
    logits = jnp.where(banned.bad[..., None], jnp.nan, x.logits)
    return _sparse.ban(logits, _shards.places(logits, banned.ids, x.shards), banned.where)
