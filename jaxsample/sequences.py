"""Constraints on sequences of tokens, as functions of logits and the text so far.

A text is `tokens [..., L]`, of which the first `length [...]` are valid. Sequences are
`[..., words, n]`, each valid up to its length in `[..., words]`. The logit of the last token of a
sequence is changed if the text ends with all of its other tokens.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _history, _lookup, _shards
from jaxsample._core._parameters import BAD_WORDS, COUNT, TOKENS, WORD_BIAS, WORD_LENGTHS
from jaxsample._core._public import public
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Source, opened
from jaxsample.constraints import Banned, biased, without


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
      tokens: integers `[..., L]`, the history; tokens beyond its length are ignored.
      length: integers in [0, L], a scalar or `[...]`.
      words: integers `[..., words, n]` in [0, vocab), one list for all rows or one a row; tokens
        beyond a word's length are ignored.
      word_lengths: integers `[..., words]` in [0, n]; 0 is padding, a word of one token is always
        masked.

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
    _check_number("word_lengths", word_lengths, words)
    return _completing(x, tokens, length, words, word_lengths)


@public(
    tokens=TOKENS,
    length=COUNT,
    sequences=BAD_WORDS,
    sequence_lengths=WORD_LENGTHS,
    bias=WORD_BIAS,
)
def sequence_biased_logits(
    logits: ArrayLike,
    tokens: ArrayLike,
    length: ArrayLike,
    sequences: ArrayLike,
    sequence_lengths: ArrayLike,
    bias: ArrayLike,
    *,
    axis_name: AxisName = None,
) -> Array:
    """Adds a bias to the last token of each sequence whose other tokens end the history.

    The logit of a token becomes `logit + bias`, with the sum of the biases of all sequences that it
    completes. A bias of -inf bans the sequence, as `bad_words_logits` does.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked and stays so.
      tokens: integers `[..., L]`, the history; tokens beyond its length are ignored.
      length: integers in [0, L], a scalar or `[...]`.
      sequences: integers `[..., words, n]` in [0, vocab), one list for all rows or one a row;
        tokens beyond a sequence's length are ignored.
      sequence_lengths: integers `[..., words]` in [0, n]; 0 is padding, a sequence of one token is
        always biased.
      bias: `[..., words]`, finite or -inf; 0 is neutral. The bias of padding is ignored.

    Returns:
      float32 `[..., vocab]`. A parameter outside its range makes its row NaN; NaN and +inf stay
      bad.

    References:
      `sequence_bias` of Hugging Face transformers.

    >>> import jax.numpy as jnp
    >>> sequences, lengths = jnp.array([[1, 2], [3, 0], [0, 2]]), jnp.array([2, 1, 2])
    >>> bias = jnp.array([1.5, -1.0, 4.0])
    >>> print(sequence_biased_logits(jnp.zeros(4), jnp.array([0, 1]), 2, sequences, lengths, bias))
    [ 0.   0.   1.5 -1. ]
    """
    x = opened(logits, axis_name)
    text, listed, lengths, each = map(jnp.asarray, (tokens, sequences, sequence_lengths, bias))
    _check_number("sequence_lengths", lengths, listed)
    _check_number("bias", each, listed)
    each = each.astype(jnp.float32)
    ends = _completing(x, text, length, listed, lengths)
    bad = ends.bad | jnp.any((lengths > 0) & ~WORD_BIAS.inside(each), axis=-1)
    return biased(x, jnp.where(ends.where, ends.ids, -1), each, bad)


def _check_number(name: str, each: Array, sequences: Array) -> None:
    number = sequences.shape[-2]
    if each.shape[-1] != number:
        raise ValueError(f"{name} must have shape [..., {number}], got {each.shape}")


def _completing(
    x: Source, tokens: Array, length: ArrayLike, sequences: Array, lengths: Array
) -> Banned:
    """Returns the last token of each sequence, and whether the history ends with the others."""
    count, longest = sequences.shape[-2:]
    length, place = x.per_row(length), _lookup.positions(sequences)
    unknown = (sequences < 0) | (sequences >= x.vocab)
    bad = _history.is_bad(tokens, length)
    bad |= jnp.any((lengths < 0) | (lengths > longest), axis=-1)
    bad |= jnp.any(unknown & (place < lengths[..., None]), axis=(-2, -1))

    prefix = lengths - 1
    start = length[..., None] - prefix
    where = (start[..., None] + place).reshape(*length.shape, count * longest)
    written = _shards.take(tokens, where).reshape(sequences.shape)
    begun = jnp.all((sequences == written) | (place >= prefix[..., None]), axis=-1)
    last = _lookup.at(sequences, prefix)
    return Banned(last, begun & (prefix >= 0) & (start >= 0), bad)
