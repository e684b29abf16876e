"""The context of the next token: the last tokens of a history."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _checks
from jaxsample._core._parameters import COUNT
from jaxsample._core._public import public
from jaxsample.watermarks import _texts


@public(first="tokens", convert_first=_checks.text, length=COUNT, width=_texts.width)
def last_tokens(tokens: ArrayLike, length: ArrayLike, *, width: int) -> Array:
    """Returns the last tokens of a history: the context of the next token.

    Args:
      tokens: integers `[..., L]`.
      length: integer in [0, L], a scalar or `[...]`, the number of valid tokens.
      width: static, at least 1.

    Returns:
      int32 `[..., width]`, the latest last, padded with -1 on the left; all -1 for a length outside
      its range.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or width; the message names the argument.

    >>> import jax.numpy as jnp
    >>> print(last_tokens(jnp.array([[7, 8, 9]] * 2), jnp.array([3, 1]), width=2))
    [[ 8  9]
     [-1  7]]
    """
    text, number = _texts.history(tokens, length)
    padded = jnp.concatenate([jnp.full((*text.shape[:-1], width), -1, jnp.int32), text], -1)
    take = jnp.vectorize(
        lambda row, start: lax.dynamic_slice_in_dim(row, start, width), signature="(n),()->(w)"
    )
    return jnp.where(number[..., None] < 0, -1, take(padded, number))


@public(first="tokens", convert_first=_checks.text, length=COUNT, width=_texts.width)
def context_repeated(tokens: ArrayLike, length: ArrayLike, *, width: int) -> Array:
    """Whether the last tokens of a history also occur earlier in it.

    Args:
      tokens: integers `[..., L]`.
      length: integer in [0, L], a scalar or `[...]`, the number of valid tokens.
      width: static, at least 1, the number of last tokens.

    Returns:
      bool `[...]`; False if there are fewer than `width` tokens, and for a length outside its
      range.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or width; the message names the argument.

    >>> import jax.numpy as jnp
    >>> print(context_repeated(jnp.array([[1, 2, 3, 1, 2]] * 2), jnp.array([5, 4]), width=2))
    [ True False]
    """
    text, number = _texts.history(tokens, length)
    last = last_tokens(text, number, width=width)
    earlier, _, within = _texts.grams(text, number, width)
    same = jnp.all(earlier == last[..., None, :], axis=-1)
    return jnp.any(same & within, axis=-1) & _texts.known(last)
