"""Logits to logits, some tokens dropped: each rule keeps a prefix of the ranking.

The ranking is by logit, equal logits by lower token id. Dropped logits become -inf and kept ones
stay as they are. What is kept is a constant under differentiation.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample import _checks, _chunks, _kept, _ranking
from jaxsample._chunks import Rows
from jaxsample._kept import Rules
from jaxsample._ranking import Cut


def top_k_logits(logits: ArrayLike, k: ArrayLike) -> Array:
    """Keeps exactly the first k tokens of the ranking.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      k: integer, at least 0, a scalar or `[...]`; 0 and anything from `vocab` up are neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, a
      negative k) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Fan, Lewis and Dauphin, "Hierarchical neural story generation", arXiv 1805.04833.

    >>> import jax.numpy as jnp
    >>> print(top_k_logits(jnp.array([1.0, 3.0, 2.0, 2.0]), 2))
    [-inf   3.   2. -inf]
    """
    logits = _checks.logits(logits)
    return _top_k_logits(logits, _checks.integer("k", k, logits))


@jax.jit
def _top_k_logits(logits: Array, k: Array) -> Array:
    return _prefix_logits(logits, Rules(k=_checks.to_rows(k, logits)))


def top_p_logits(logits: ArrayLike, p: ArrayLike) -> Array:
    """Keeps the shortest prefix of the ranking whose probability reaches p, at least one token.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      p: in [0, 1], a scalar or `[...]`; 1 is neutral, 0 keeps the token of rank 0.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, p
      outside its range) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Holtzman et al., "The curious case of neural text degeneration", arXiv 1904.09751.

    >>> import jax.numpy as jnp
    >>> print(top_p_logits(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.7))
    [-0.69 -1.2   -inf]
    """
    logits = _checks.logits(logits)
    return _top_p_logits(logits, _checks.real("p", p, logits))


@jax.jit
def _top_p_logits(logits: Array, p: Array) -> Array:
    return _prefix_logits(logits, Rules(p=_checks.to_rows(p, logits)))


def min_p_logits(logits: ArrayLike, p: ArrayLike) -> Array:
    """Keeps the tokens at least p times as likely as the likeliest: `logit >= max + log(p)`.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      p: in [0, 1], a scalar or `[...]`; 0 is neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, p
      outside its range) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Nguyen et al., "Turning up the heat: min-p sampling", arXiv 2407.01082.

    >>> import jax.numpy as jnp
    >>> print(min_p_logits(jnp.array([0.0, 2.0, 1.0]), 0.3))
    [-inf   2.   1.]
    """
    logits = _checks.logits(logits)
    return _min_p_logits(logits, _checks.real("p", p, logits))


@jax.jit
def _min_p_logits(logits: Array, p: Array) -> Array:
    rules, bad = _kept.checked(logits.shape[-1], Rules(min_p=_checks.to_rows(p, logits)))
    rows = _chunks.look_over(lax.stop_gradient(logits))
    assert rules.min_p is not None
    return _cut_off(logits, rows, _kept.min_p_cut(rows, rules.min_p), bad)


def _prefix_logits(logits: Array, rules: Rules) -> Array:
    rules, bad = _kept.checked(logits.shape[-1], rules)
    rows = _chunks.look_over(lax.stop_gradient(logits))
    cut = _kept.prefix(rows, _chunks.probability(rows), rules).cut
    return _cut_off(logits, rows, cut, bad)


def _cut_off(logits: Array, rows: Rows, cut: Cut, bad: Array) -> Array:
    """The logits up to a cut; NaN on bad rows."""
    keep = _ranking.is_kept(rows.read(logits), _chunks.positions(logits), cut)
    return jnp.where((bad | rows.bad)[..., None], jnp.nan, jnp.where(keep, logits, -jnp.inf))
