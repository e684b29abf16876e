"""Truncations, logits to logits: each rule drops tokens, and most keep a prefix of the ranking.

The ranking is by logit, equal logits by lower token id. Dropped logits become -inf and kept ones
stay as they are. The kept set is a constant under differentiation.
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
    """Keeps the tokens whose surprise is nearest to the entropy, of probability p or more together.

    Tokens are ranked by `abs(-log(prob) - entropy)`, the least first, equals by lower id; the
    shortest prefix of that ranking whose probability reaches p is kept, at least one token. It need
    not hold the likeliest.

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
    """Keeps the tokens of probability epsilon or more, and the likeliest.

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
    """Keeps the tokens of probability `min(epsilon, sqrt(epsilon) * exp(-entropy))` or more.

    The likeliest is always kept. Where the distribution is flat, and every token unlikely, the
    bound is lower than that of `epsilon_logits`.

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
    """Keeps the tokens of probability `a * max(prob)**2` or more.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      a: in [0, 1], a scalar or `[...]`; 0 is neutral.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, a
      outside its range) are NaN throughout.

    References:
      Top-a, of KoboldAI and RWKV: https://github.com/BlinkDL/RWKV-LM.

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

    Keeps `logit >= max - n * sigma`, where sigma is the standard deviation (of the population) of
    the logits that are not masked. What is kept does not depend on the temperature.

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
    """Cuts the ranking where the curvature of its probabilities vanishes.

    With p the sorted probabilities of the tokens that are not masked,
    `d[i] = abs((p[i] - p[i+1]) - (p[i+1] - p[i+2]))` over their sum: keeps the tokens before the
    first i at which the running sum of d exceeds z, at least one.

    The one rule that is about neighbours in the ranking, and so the one that sorts a row; it does
    so only where a row of the batch asks for it.

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
    """Keeps the longest prefix of the ranking that holds at most a share h of the entropy.

    The sum of `-prob * log(prob)` over the kept tokens stays within `h` times that over all; the
    likeliest is always kept.

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
    """Keeps the tokens at least as likely as a draw is to be repeated: `prob >= sum(prob**2)`.

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
    """Excludes the top choices: with some probability, drops all likely tokens but the least.

    One draw a row decides; then of the tokens of probability `threshold` or more, if they are two
    or more, only the last of the ranking is kept, and every token below the threshold.

    Args:
      key: one key, split over the rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      probability: in [0, 1], a scalar or `[...]`; 0 is neutral.
      threshold: in [0, 1], a scalar or `[...]`; above 0.5 it is neutral.
      exempt_token_ids: integers `[..., n]` below `vocab`, or None: tokens that are never dropped,
        such as line breaks and the end of the text; they count among the likely ones. Negative ids
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
    # A threshold of 0 is met by all that are not masked.
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
    """Returns the logits that top-k, top-p and min-p keep together."""
    rows, top = _scan.scan_and_rank(x)
    rules, bad = _prefix.checked(rows.vocab, rules)
    return _cut_off(x, rows, _prefix.cut_of(rows, top, rules), bad)


def _normalized(x: Source) -> tuple[Rows, Array]:
    """Returns the scanned rows and the log-sum-exp of each, relative to its maximum."""
    rows, scale, (sums,) = _scan.scan_and_weigh(x)
    return rows, _moments.log_sum(_chunks.added_up(sums, scale))


def _from(x: Source, rows: Rows, floor: Array, bad: Array) -> Array:
    """Returns the logits from a floor up, `[...]` relative to the largest, which is always kept."""
    floor = rows.row_max + jnp.minimum(floor, 0)
    cut = Cut(floor, jnp.full(floor.shape, rows.vocab, jnp.int32))
    return _cut_off(x, rows, cut, bad)


def _cut_off(x: Source, rows: Rows, cut: Cut, bad: Array) -> Array:
    """Returns the logits up to a cut; NaN on bad rows."""
    return _keep(x, rows, _ranking.is_kept(rows.read(x.logits), rows.ids, cut), bad)


def _keep(x: Source, rows: Rows, keep: Array, bad: Array) -> Array:
    return jnp.where((bad | rows.bad)[..., None], jnp.nan, jnp.where(keep, x.logits, -jnp.inf))
