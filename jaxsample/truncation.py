"""Truncation: functions of logits that drop tokens; most keep a prefix of the ranking.

The ranking is by logit, equal logits by lower token id. Dropped logits become -inf and kept ones
are unchanged. The kept set is a constant under differentiation.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import (
    _bits,
    _checks,
    _chunks,
    _cuts,
    _draw,
    _elementary,
    _moments,
    _prefix,
    _ranking,
    _scan,
    _search,
    _sparse,
)
from jaxsample._core._parameters import FINITE, SHARE, TOP_K, optional_ids
from jaxsample._core._public import public
from jaxsample._core._ranking import Cut
from jaxsample._core._rows import Rows
from jaxsample._core._search import Rules
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, Source, opened


@public(k=TOP_K)
def top_k_logits(
    logits: ArrayLike,
    k: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Keeps exactly the first k tokens of the ranking.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      k: integer, at least -1, a scalar or `[...]`; -1, 0 and anything from `vocab` up are neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, a
      k below -1) are NaN throughout.

    References:
      Fan, Lewis and Dauphin, "Hierarchical neural story generation", arXiv 1805.04833.

    >>> import jax.numpy as jnp
    >>> print(top_k_logits(jnp.array([1.0, 3.0, 2.0, 2.0]), 2))
    [-inf   3.   2. -inf]
    """
    x = opened(logits, axis_name, implementation)
    return cut_by(x, Rules({"top_k": x.per_row(k)}, (("top_k",),)))


@public(p=SHARE)
def top_p_logits(
    logits: ArrayLike,
    p: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Keeps the shortest prefix of the ranking whose probability reaches p, at least one token.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      p: in [0, 1], a scalar or `[...]`; 1 is neutral, 0 keeps the token of rank 0.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, p
      outside its range) are NaN throughout.

    References:
      Holtzman et al., "The curious case of neural text degeneration", arXiv 1904.09751.

    >>> import jax.numpy as jnp
    >>> print(top_p_logits(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.7))
    [-0.69 -1.2   -inf]
    """
    x = opened(logits, axis_name, implementation)
    return cut_by(x, Rules({"top_p": x.per_row(p)}, (("top_p",),)))


@public(p=SHARE)
def min_p_logits(
    logits: ArrayLike,
    p: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Keeps the tokens at least p times as likely as the likeliest: `logit >= max + log(p)`.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      p: in [0, 1], a scalar or `[...]`; 0 is neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, p
      outside its range) are NaN throughout.

    References:
      Nguyen et al., "Turning up the heat: min-p sampling", arXiv 2407.01082.

    >>> import jax.numpy as jnp
    >>> print(min_p_logits(jnp.array([0.0, 2.0, 1.0]), 0.3))
    [-inf   2.   1.]
    """
    x = opened(logits, axis_name, implementation)
    share, bad = SHARE.of_rows(p, x)
    rows = _scan.scan(x)
    return _cut_off(x, rows, _search.min_p_cut(rows, share), bad)


@public(p=SHARE)
def typical_p_logits(
    logits: ArrayLike,
    p: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Keeps the tokens whose information content is closest to the entropy, up to probability p.

    Tokens are ranked by `abs(-log(prob) - entropy)` in ascending order, ties by lower id. The
    shortest prefix of that ranking whose probability reaches p is kept, at least one token. It may
    not contain the likeliest token.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      p: in [0, 1], a scalar or `[...]`; 1 is neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, p
      outside its range) are NaN throughout.

    References:
      Meister et al., "Locally typical sampling", arXiv 2202.00666.

    >>> import jax.numpy as jnp
    >>> print(typical_p_logits(jnp.log(jnp.array([0.5, 0.3, 0.1, 0.1])), 0.2))
    [ -inf -1.2  -inf  -inf]
    """
    x = opened(logits, axis_name, implementation)
    share, bad = SHARE.of_rows(p, x)
    rows, scale, (sums,) = _scan.scan_and_weigh(x)
    centre, cut = _cuts.typical(rows, scale, sums, share)
    away = _cuts.typicality(rows.read(x.logits), centre)
    keep = _ranking.is_kept(away, rows.ids, cut)
    return _keep(x, rows, keep | (share == 1)[..., None], bad)


@public(epsilon=SHARE)
def epsilon_logits(
    logits: ArrayLike,
    epsilon: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Keeps the tokens of probability at least epsilon, and the likeliest token.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      epsilon: in [0, 1], a scalar or `[...]`; 0 is neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, epsilon
      outside its range) are NaN throughout.

    References:
      Hewitt, Manning and Liang, "Truncation sampling as language model desmoothing",
      arXiv 2210.15191.

    >>> import jax.numpy as jnp
    >>> print(epsilon_logits(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.25))
    [-0.69 -1.2   -inf]
    """
    x = opened(logits, axis_name, implementation)
    share, bad = SHARE.of_rows(epsilon, x)
    rows, log_sum = _normalized(x)
    return _from(x, rows, log_sum + _elementary.log(share), bad)


@public(epsilon=SHARE)
def eta_logits(
    logits: ArrayLike,
    epsilon: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Keeps the tokens of probability at least `min(epsilon, sqrt(epsilon) * exp(-entropy))`.

    The likeliest token is always kept. For a flat distribution, in which every token is unlikely,
    the bound is lower than the one of `epsilon_logits`.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      epsilon: in [0, 1], a scalar or `[...]`; 0 is neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, epsilon
      outside its range) are NaN throughout.

    References:
      Hewitt, Manning and Liang, "Truncation sampling as language model desmoothing",
      arXiv 2210.15191.

    >>> import jax.numpy as jnp
    >>> print(eta_logits(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.25))
    [-0.69 -1.2  -1.6 ]
    """
    x = opened(logits, axis_name, implementation)
    share, bad = SHARE.of_rows(epsilon, x)
    rows, scale, (sums,) = _scan.scan_and_weigh(x)
    entropy, log_sum = _moments.entropy(rows, scale, sums)
    least = _elementary.log(share)
    return _from(x, rows, log_sum + jnp.minimum(least, 0.5 * least - entropy), bad)


@public(a=SHARE)
def top_a_logits(
    logits: ArrayLike,
    a: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Keeps the tokens of probability at least `a * max(prob)**2`.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      a: in [0, 1], a scalar or `[...]`; 0 is neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, a
      outside its range) are NaN throughout.

    References:
      Top-a in KoboldAI and RWKV: https://github.com/BlinkDL/RWKV-LM.

    >>> import jax.numpy as jnp
    >>> print(top_a_logits(jnp.log(jnp.array([0.6, 0.3, 0.1])), 0.5))
    [-0.51 -1.2   -inf]
    """
    x = opened(logits, axis_name, implementation)
    share, bad = SHARE.of_rows(a, x)
    rows, log_sum = _normalized(x)
    return _from(x, rows, _elementary.log(share) - log_sum, bad)


@public(n=FINITE)
def top_n_sigma_logits(logits: ArrayLike, n: ArrayLike, *, axis_name: AxisName = None) -> Array:
    """Keeps the tokens within n standard deviations of the largest logit.

    Keeps `logit >= max - n * sigma`, where sigma is the population standard deviation of the
    logits that are not masked. The kept set does not depend on the temperature.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      n: finite, a scalar or `[...]`; 0 and below are neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, n
      outside its range) are NaN throughout.

    References:
      Tang et al., "Top-n-sigma: not all logits are you need", arXiv 2411.07641.

    >>> import jax.numpy as jnp
    >>> print(top_n_sigma_logits(jnp.array([4.0, 3.0, 0.0, 1.0]), 1.0))
    [  4.   3. -inf -inf]
    """
    x = opened(logits, axis_name, "xla")
    number, bad = FINITE.of_rows(n, x)
    rows = _scan.scan(x)
    floor = jnp.where(number > 0, -number * _moments.deviation(rows), -jnp.inf)
    return _from(x, rows, floor, bad)


@public(z=SHARE)
def tail_free_logits(
    logits: ArrayLike,
    z: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Keeps the tokens before the tail of the ranking, where the curvature of probabilities is low.

    With p the sorted probabilities of the tokens that are not masked, let
    `d[i] = abs((p[i] - p[i+1]) - (p[i+1] - p[i+2]))`, normalized to sum to 1. Keeps the tokens
    before the first i at which the cumulative sum of d exceeds z, at least one.

    This is the only rule that sorts rows, because it compares neighbours in the ranking. The sort
    is skipped if z is neutral in every row.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      z: in [0, 1], a scalar or `[...]`; 1 is neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, z
      outside its range) are NaN throughout.

    References:
      Phénix and Egan, "A new sampling technique: tail free sampling", 2019,
      https://trentbrick.github.io/Tail-Free-Sampling.

    >>> import jax.numpy as jnp
    >>> print(tail_free_logits(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.04, 0.01])), 0.6))
    [-0.69 -1.2  -inf  -inf  -inf]
    """
    x = opened(logits, axis_name, implementation)
    share, bad = SHARE.of_rows(z, x)
    rows = _scan.scan(x)
    length = jnp.where(bad, rows.vocab, _cuts.tail_free(rows, share))
    kept = cut_by(x, Rules({"top_k": length}, (("top_k",),)))
    return jnp.where(bad[..., None], jnp.nan, kept)


@public(h=SHARE)
def top_h_logits(
    logits: ArrayLike,
    h: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Keeps the longest prefix of the ranking that contributes at most a share h of the entropy.

    The sum of `-prob * log(prob)` over the kept tokens is at most `h` times the sum over all
    tokens. The likeliest token is always kept.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      h: in [0, 1], a scalar or `[...]`; 1 is neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, h
      outside its range) are NaN throughout.

    References:
      Baghaei Potraghloo et al., "Top-H decoding", arXiv 2509.02510.

    >>> import jax.numpy as jnp
    >>> print(top_h_logits(jnp.log(jnp.array([0.5, 0.3, 0.1, 0.1])), 0.7))
    [-0.69 -1.2   -inf  -inf]
    """
    x = opened(logits, axis_name, implementation)
    share, bad = SHARE.of_rows(h, x)
    rows, log_sum = _normalized(x)
    return _cut_off(x, rows, _cuts.top_h(rows, log_sum, share), bad)


@public()
def p_less_logits(
    logits: ArrayLike, *, axis_name: AxisName = None, implementation: Implementation = None
) -> Array:
    """Keeps the tokens with `prob >= sum(prob**2)`, the probability that two draws are equal.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit) are NaN
      throughout.

    References:
      Tan et al., "p-less sampling: a robust hyperparameter-free approach for LLM decoding",
      arXiv 2509.23234.

    >>> import jax.numpy as jnp
    >>> print(p_less_logits(jnp.log(jnp.array([0.5, 0.3, 0.2]))))
    [-0.69  -inf  -inf]
    """
    x = opened(logits, axis_name, implementation)
    rows, log_sum = _normalized(x)
    return _from(x, rows, log_sum + _moments.log_collision(rows, log_sum), rows.bad)


@public(key=_checks.keys, probability=SHARE, threshold=SHARE, exempt_token_ids=optional_ids)
def xtc_logits(
    key: ArrayLike,
    logits: ArrayLike,
    probability: ArrayLike,
    threshold: ArrayLike,
    exempt_token_ids: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Excludes top choices: with a given probability, drops all likely tokens but the least likely.

    One draw for each row decides whether the rule applies. If it does, of the tokens of probability
    at least `threshold` only the last one in the ranking is kept, and so is every token below the
    threshold.

    Args:
      key: one key, split over the rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      probability: in [0, 1], a scalar or `[...]`; 0 is neutral.
      threshold: in [0, 1], a scalar or `[...]`; above 0.5 it is neutral.
      exempt_token_ids: integers `[..., n]` below `vocab`, or None: tokens that are never dropped,
        such as line breaks and the end of the text. They still count as likely tokens. Negative ids
        are padding.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, a
      parameter outside its range) are NaN throughout.

    References:
      Weidmann, "Exclude top choices (XTC)", text-generation-webui, pull request 6335, 2024;
      exempt tokens as in mlx-lm.

    >>> import jax, jax.numpy as jnp
    >>> print(xtc_logits(jax.random.key(0), jnp.log(jnp.array([0.5, 0.3, 0.2])), 1.0, 0.25))
    [ -inf -1.2  -1.6 ]
    """
    x = opened(logits, axis_name, implementation)
    probability, improbable = SHARE.of_rows(probability, x)
    threshold, outside = SHARE.of_rows(threshold, x)
    rows, log_sum = _normalized(x)
    floor = rows.row_max + (log_sum + _elementary.log(threshold))
    # A threshold of 0 makes all tokens likely that are not masked.
    floor = jnp.maximum(floor, np.finfo(np.float32).min)
    least = _ranking.last_from(rows, floor)
    first = jnp.zeros((*rows.row_max.shape, 1), jnp.int32)
    chance = _draw.uniforms(_draw.random_words(jnp.asarray(key)), first, first)
    excludes = chance < probability[..., None]
    logit, ids = rows.read(x.logits), rows.ids
    likely = logit >= floor[..., None]
    last = (logit == least.logit[..., None]) & (ids == least.token[..., None])
    keep, bad = ~(excludes & likely) | last, improbable | outside
    exempt = jnp.asarray(exempt_token_ids)
    if exempt.shape[-1]:
        keep |= ~_bits.unpacked(_sparse.unlisted(x, exempt), x.logits.shape[-1])
        bad |= jnp.any(exempt >= x.vocab, axis=-1)
    return _keep(x, rows, keep, bad)


def cut_by(x: Source, rules: Rules) -> Array:
    """Returns the logits that top-k, top-p and min-p jointly keep."""
    rows, top = _scan.scan_and_rank(x)
    rules, bad = _prefix.checked(rows.vocab, rules)
    return _cut_off(x, rows, _prefix.cut_of(rows, top, rules), bad)


def _normalized(x: Source) -> tuple[Rows, Array]:
    """Returns the scanned rows and the log-sum-exp of each, relative to its maximum."""
    rows, scale, (sums,) = _scan.scan_and_weigh(x)
    return rows, _moments.log_sum(_chunks.added_up(sums, scale))


def _from(x: Source, rows: Rows, floor: Array, bad: Array) -> Array:
    """Returns the logits at or above a floor `[...]`, relative to the largest, which is kept."""
    floor = rows.row_max + jnp.minimum(floor, 0)
    cut = Cut(floor, jnp.full(floor.shape, rows.vocab, jnp.int32))
    return _cut_off(x, rows, cut, bad)


def _cut_off(x: Source, rows: Rows, cut: Cut, bad: Array) -> Array:
    """Returns the logits up to a cut; NaN on bad rows."""
    return _keep(x, rows, _ranking.is_kept(rows.read(x.logits), rows.ids, cut), bad)


def _keep(x: Source, rows: Rows, keep: Array, bad: Array) -> Array:
    return jnp.where((bad | rows.bad)[..., None], jnp.nan, jnp.where(keep, x.logits, -jnp.inf))
