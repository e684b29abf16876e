"""Constraints: biases, masks, banned and forced tokens, and guidance, as functions of logits."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _bits, _checks, _chunks, _normalizer, _scan, _shards, _sparse
from jaxsample._core._elementary import rounded
from jaxsample._core._parameters import (
    BIAS,
    BITMASK,
    COUNT,
    FINITE,
    IDS,
    LOGITS,
    MASK,
    TOKEN_ID,
)
from jaxsample._core._public import public
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, Source, opened


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
        are padding, and the biases of a repeated id add up.
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
    each = each.astype(jnp.float32)
    return biased(x, ids, each, jnp.any((ids >= 0) & ~BIAS.inside(each), axis=-1))


def biased(x: Source, ids: Array, bias: Array, bad: Array) -> Array:
    """Returns the logits with biases `[..., n]` of some tokens added; NaN on bad rows."""
    bad |= jnp.any(ids >= x.vocab, axis=-1)
    used = ids >= 0
    wide = jnp.where(bad[..., None], jnp.nan, x.logits.astype(jnp.float32))
    ids, total = _sparse.summed(jnp.where(used, ids, x.vocab), jnp.where(used, bias, 0), x.vocab)
    places = _shards.places(wide, ids, x.shards)
    new = rounded(_shards.take(wide, places) + total)
    return _sparse.replace(wide, jnp.where(total == 0, x.vocab, places), new)


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
        beyond the vocabulary are ignored.

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
    """Packs a mask over the vocabulary into the bitmask that `bitmask_logits` takes.

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


@public(token_id=TOKEN_ID)
def forced_logits(logits: ArrayLike, token_id: ArrayLike, *, axis_name: AxisName = None) -> Array:
    """Masks every token but one, even if that token was masked before.

    The log-probability of the token is 0, and every truncation keeps it.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      token_id: integer in [-1, vocab), a scalar or `[...]`; -1 is neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. The forced token keeps its logit, and gets 0 if
      that was -inf. An id outside its range makes its row NaN; NaN and +inf stay, so their row
      stays bad.

    References:
      The end of a thinking budget in vLLM and llama.cpp; `ForcedEOSTokenLogitsProcessor` in Hugging
      Face transformers.

    >>> import jax.numpy as jnp
    >>> print(forced_logits(jnp.array([1.0, 2.0, -jnp.inf]), jnp.array(2)))
    [-inf -inf   0.]
    """
    x = opened(logits, axis_name)
    token = x.per_row(token_id)
    bad = ~TOKEN_ID.inside(token) | (token >= x.vocab)
    lifted = jnp.where(x.logits == -jnp.inf, 0, x.logits)
    alone = _bits.masked(lifted, x.ids == token[..., None])
    forced = jnp.where((token < 0)[..., None], x.logits, alone)
    return jnp.where(bad[..., None], jnp.nan, forced)


@public(first="conditional", unconditional=LOGITS, scale=FINITE)
def guided_logits(
    conditional: ArrayLike,
    unconditional: ArrayLike,
    scale: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Applies classifier-free guidance: `u + scale * (c - u)`, c and u being log-probabilities.

    Args:
      conditional: logits `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      unconditional: logits `[..., vocab]` of the model without the prompt to follow.
      scale: finite, a scalar or `[...]`; 1 is neutral, 0 returns the unconditional
        log-probabilities.

    Returns:
      float32 `[..., vocab]`; a token masked in either is masked. At scale 1 the conditional logits,
      unchanged. At other scales bad rows (a NaN, +inf or no finite logit in either, a scale outside
      its range) are NaN throughout.

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
    # A log-probability may overflow float32, and 0 * -inf is NaN.
    lowest = jnp.finfo(jnp.float32).min
    c, u = (jnp.where(masked | bad, 0, jnp.maximum(part, lowest)) for part in parts)
    step = rounded(jnp.where(bad, 1, weight) * (c - u))
    guided = rounded(u + step)
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
