"""Penalties: functions of logits that make tokens of the text so far less likely.

Repetition, presence and frequency penalties depend on the count of each token. DRY and
no-repeat-n-gram depend on the history: `tokens [..., L]`, of which the first `length [...]` are
valid.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _history, _lookup, _shards, _sparse
from jaxsample._core._elementary import rounded
from jaxsample._core._parameters import (
    COUNT,
    COUNT_FROM_1,
    COUNTS,
    FINITE,
    FROM_1,
    MASK,
    NOT_NEGATIVE,
    POSITIVE,
    TOKENS,
    optional_ids,
)
from jaxsample._core._public import public
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Source, opened

_LARGEST = float(np.finfo(np.float32).max)


@public(seen=MASK, penalty=POSITIVE)
def repetition_penalized_logits(
    logits: ArrayLike, seen: ArrayLike, penalty: ArrayLike, *, axis_name: AxisName = None
) -> Array:
    """Lowers the logits of seen tokens: `logit * penalty` below 0, `logit / penalty` above.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      seen: bool `[..., vocab]`, the tokens of prompt and output.
      penalty: finite and above 0, a scalar or `[...]`; 1 is neutral, below 1 seen tokens become
        likelier. Computed as `logit * (1 / penalty)` in float32.

    Returns:
      float32 `[..., vocab]`. A penalty outside its range makes its row NaN; NaN and +inf stay.

    References:
      Keskar et al., "CTRL", arXiv 1909.05858; for logits below 0, Hugging Face transformers.

    >>> import jax.numpy as jnp
    >>> seen = jnp.array([True, True, False])
    >>> print(repetition_penalized_logits(jnp.array([3.0, -1.0, 2.0]), seen, 1.5))
    [ 2.  -1.5  2. ]
    """
    x = opened(logits, axis_name)
    penalty = x.per_row(penalty)
    bad = ~POSITIVE.inside(penalty)
    penalty = jnp.where(bad, 1, penalty)
    rate = (1 / penalty)[..., None]
    # Other logits are excluded from the product: its derivative by the penalty would be inf * 0.
    wide = x.logits.astype(jnp.float32)
    touched = jnp.asarray(seen) & jnp.isfinite(wide) & (penalty != 1)[..., None]
    some = jnp.where(touched, wide, 0)
    moved = rounded(some * jnp.where(some < 0, penalty[..., None], rate))
    return jnp.where(bad[..., None], jnp.nan, jnp.where(touched, moved, wide))


@public(counts=COUNTS, penalty=FINITE)
def presence_penalized_logits(
    logits: ArrayLike, counts: ArrayLike, penalty: ArrayLike, *, axis_name: AxisName = None
) -> Array:
    """Subtracts the penalty from tokens with a count: `logit - penalty * [count > 0]`.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      counts: integers `[..., vocab]`, how often each token was written; below 0 is as 0.
      penalty: finite, a scalar or `[...]`; 0 is neutral, below 0 counted tokens gain.

    Returns:
      float32 `[..., vocab]`. A penalty outside its range makes its row NaN; NaN and +inf stay bad.

    References:
      The OpenAI API; vLLM, which counts the output and not the prompt.

    >>> import jax.numpy as jnp
    >>> print(presence_penalized_logits(jnp.array([3.0, 2.0, 1.0]), jnp.array([0, 1, 4]), 0.5))
    [3.  1.5 0.5]
    """
    x = opened(logits, axis_name)
    return _counted_less(x, (jnp.asarray(counts) > 0).astype(jnp.float32), x.per_row(penalty))


@public(counts=COUNTS, penalty=FINITE)
def frequency_penalized_logits(
    logits: ArrayLike, counts: ArrayLike, penalty: ArrayLike, *, axis_name: AxisName = None
) -> Array:
    """Subtracts the penalty once for each time a token was written: `logit - penalty * count`.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      counts: integers `[..., vocab]`, how often each token was written; below 0 is as 0.
      penalty: finite, a scalar or `[...]`; 0 is neutral, below 0 counted tokens gain.

    Returns:
      float32 `[..., vocab]`. A penalty outside its range makes its row NaN; NaN and +inf stay bad,
      and a product with a count that overflows is NaN.

    References:
      The OpenAI API; vLLM, which counts the output and not the prompt.

    >>> import jax.numpy as jnp
    >>> print(frequency_penalized_logits(jnp.array([3.0, 2.0, 1.0]), jnp.array([0, 1, 4]), 0.5))
    [ 3.   1.5 -1. ]
    """
    x = opened(logits, axis_name)
    return _counted_less(x, jnp.maximum(counts, 0).astype(jnp.float32), x.per_row(penalty))


def _counted_less(x: Source, counts: Array, penalty: Array) -> Array:
    """Returns the logits, less a penalty `[...]` for each of the float32 counts `[..., vocab]`."""
    bad = ~FINITE.inside(penalty)
    penalty = jnp.where(bad, 0, penalty)[..., None]
    touched = (counts > 0) & (penalty != 0)
    wide = x.logits.astype(jnp.float32)
    amount = rounded(penalty * counts)  # kept from contraction with the sum
    less = rounded(wide - amount)
    return jnp.where(bad[..., None], jnp.nan, jnp.where(touched, less, wide))


@public(
    tokens=TOKENS,
    length=COUNT,
    multiplier=NOT_NEGATIVE,
    base=FROM_1,
    allowed_length=COUNT_FROM_1,
    sequence_breakers=optional_ids,
    exempt_token_ids=optional_ids,
)
def dry_penalized_logits(
    logits: ArrayLike,
    tokens: ArrayLike,
    length: ArrayLike,
    multiplier: ArrayLike,
    base: ArrayLike = 1.75,
    allowed_length: ArrayLike = 2,
    sequence_breakers: ArrayLike | None = None,
    exempt_token_ids: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
) -> Array:
    """Penalises tokens that would continue a repetition of the text ("don't repeat yourself").

    If the last n tokens also occur earlier in the history, the logit of the token that followed
    them there is lowered by `multiplier * base**(n - allowed_length)`, for the largest such n, if
    n >= allowed_length. A repetition never extends across a breaker, and breakers are not
    penalised.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      tokens: integers `[..., L]`, the history; tokens beyond its length are ignored, ids
        outside the vocabulary are penalised nowhere.
      length: integers in [0, L], a scalar or `[...]`.
      multiplier: finite and at least 0, a scalar or `[...]`; 0 is neutral.
      base: finite and at least 1, a scalar or `[...]`. The penalty is at most the largest float32.
      allowed_length: integer, at least 1, a scalar or `[...]`.
      sequence_breakers: integers `[..., n]` below `vocab`, or None; negative ids are padding.
      exempt_token_ids: integers `[..., n]` below `vocab`, or None: tokens that are not penalised,
        but may be part of a repetition; negative ids are padding.

    Returns:
      float32 `[..., vocab]`. A parameter outside its range makes its row NaN; NaN and +inf stay
      bad. A logit below the least float32 masks its token.

    References:
      p-e-w, "DRY: a modern repetition penalty", text-generation-webui pull request 5677; as in
      llama.cpp, with breakers of one token.

    >>> import jax.numpy as jnp
    >>> history = jnp.array([1, 2, 3, 0, 1, 2])
    >>> print(dry_penalized_logits(jnp.zeros(5), history, 6, 0.8))
    [ 0.   0.   0.  -0.8  0. ]
    """
    x, text = opened(logits, axis_name), jnp.asarray(tokens)
    breaking, exempt = jnp.asarray(sequence_breakers), jnp.asarray(exempt_token_ids)
    length, multiplier, base, allowed = map(x.per_row, (length, multiplier, base, allowed_length))
    vocab, size = x.vocab, text.shape[-1]
    place = _lookup.positions(text)
    bad = _history.is_bad(text, length)
    bad |= jnp.any(breaking >= vocab, axis=-1) | jnp.any(exempt >= vocab, axis=-1)
    bad |= ~(NOT_NEGATIVE.inside(multiplier) & FROM_1.inside(base) & COUNT_FROM_1.inside(allowed))
    multiplier, base = jnp.where(bad, 0, multiplier), jnp.where(bad, 1, base)

    breaks = _history.is_listed(text, breaking)
    valid = place < length[..., None]
    start = jnp.max(jnp.where(breaks & valid, place + 1, 0), axis=-1, initial=0)
    # Longer matches do not change the penalty, which is at the largest float by then.
    useful = jnp.minimum(90 / jnp.log(lax.stop_gradient(base)) + 2, size).astype(jnp.int32)
    limit = jnp.minimum(length - start, jnp.minimum(allowed, size) + useful)
    matches = _history.matches(text, length, jnp.where(multiplier > 0, limit, 0))

    repeats = valid & (matches >= allowed[..., None]) & (multiplier > 0)[..., None]
    repeats &= ~(breaks | _history.is_listed(text, exempt))
    power = _power(base[..., None], jnp.where(repeats, matches - allowed[..., None], 0), size)
    amount = jnp.minimum(multiplier[..., None] * power, _LARGEST)
    wide = jnp.where(bad[..., None], jnp.nan, x.logits.astype(jnp.float32))
    ids = jnp.where(repeats & (text >= 0), text, vocab)
    places = _shards.places(wide, ids, x.shards)
    return _sparse.lower(wide, places, rounded(_shards.take(wide, places) - amount))


def _power(base: Array, exponent: Array, largest: int) -> Array:
    """Returns `base ** exponent`, at most the largest float, by squaring, which is exact."""
    result = jnp.ones(exponent.shape, jnp.float32)
    for bit in range(largest.bit_length()):
        times = jnp.where((exponent >> bit) & 1 == 1, base, 1)
        result = jnp.minimum(result * times, _LARGEST)
        base = jnp.minimum(base * base, _LARGEST)
    return result


@public(tokens=TOKENS, length=COUNT, n=COUNT)
def no_repeat_ngram_logits(
    logits: ArrayLike,
    tokens: ArrayLike,
    length: ArrayLike,
    n: ArrayLike,
    *,
    axis_name: AxisName = None,
) -> Array:
    """Masks every token that would complete an n-gram that is already in the history.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      tokens: integers `[..., L]`, the history; tokens beyond its length are ignored, ids
        outside the vocabulary are masked nowhere.
      length: integers in [0, L], a scalar or `[...]`.
      n: integer, at least 0, a scalar or `[...]`; 0 is neutral, 1 masks every token of the history.

    Returns:
      `[..., vocab]` in the dtype of the logits. A parameter outside its range makes its row NaN;
      NaN and +inf stay.

    References:
      Paulus, Xiong and Socher, "A deep reinforced model for abstractive summarization",
      arXiv 1705.04304; as in Hugging Face transformers.

    >>> import jax.numpy as jnp
    >>> print(no_repeat_ngram_logits(jnp.zeros(4), jnp.array([1, 2, 3, 1, 2]), 5, 3))
    [  0.   0.   0. -inf]
    """
    x, text = opened(logits, axis_name), jnp.asarray(tokens)
    length, n = x.per_row(length), x.per_row(n)
    bad = _history.is_bad(text, length) | ~COUNT.inside(n)
    matches = _history.matches(text, length, jnp.where(bad, 0, n - 1))
    repeats = (matches >= (n - 1)[..., None]) & (_lookup.positions(text) < length[..., None])
    wide = jnp.where(bad[..., None], jnp.nan, x.logits)
    places = _shards.places(wide, text, x.shards)
    return _sparse.ban(wide, places, repeats & (n > 0)[..., None])
