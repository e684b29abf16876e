"""Logits to logits, some tokens dropped: nearly every rule keeps a prefix of the ranking.

The ranking is by logit, equal logits by lower token id. Dropped logits become -inf and kept ones
stay as they are. What is kept is a constant under differentiation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample import _checks, _chunks, _cuts, _draw, _elementary, _kept, _look, _moments, _ranking
from jaxsample._chunks import Rows
from jaxsample._kept import Rules
from jaxsample._kernels.choice import Implementation
from jaxsample._ranking import Cut
from jaxsample._shards import AxisName, Shards


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
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, a
      k below -1) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Fan, Lewis and Dauphin, "Hierarchical neural story generation", arXiv 1805.04833.

    >>> import jax.numpy as jnp
    >>> print(top_k_logits(jnp.array([1.0, 3.0, 2.0, 2.0]), 2))
    [-inf   3.   2. -inf]
    """
    logits = _checks.logits(logits)
    shards = _chunks.shards(logits, axis_name)
    return _top_k_logits(logits, _checks.integer("k", k, logits), shards, implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def _top_k_logits(
    logits: Array, k: Array, shards: Shards | None, implementation: Implementation
) -> Array:
    return cut_by(
        logits, Rules({"top_k": _checks.to_rows(k, logits)}, (("top_k",),)), shards, implementation
    )


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
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

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
    shards = _chunks.shards(logits, axis_name)
    return _top_p_logits(logits, _checks.real("p", p, logits), shards, implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def _top_p_logits(
    logits: Array, p: Array, shards: Shards | None, implementation: Implementation
) -> Array:
    return cut_by(
        logits, Rules({"top_p": _checks.to_rows(p, logits)}, (("top_p",),)), shards, implementation
    )


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
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

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
    shards = _chunks.shards(logits, axis_name)
    return _min_p_logits(logits, _checks.real("p", p, logits), shards, implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def _min_p_logits(
    logits: Array, p: Array, shards: Shards | None, implementation: Implementation
) -> Array:
    rows, p, bad = _opened(logits, p, shards, implementation)
    return _cut_off(logits, rows, _kept.min_p_cut(rows, p), bad)


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
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, p
      outside its range) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Meister et al., "Locally typical sampling", arXiv 2202.00666.

    >>> import jax.numpy as jnp
    >>> print(typical_p_logits(jnp.log(jnp.array([0.5, 0.3, 0.1, 0.1])), 0.2))
    [ -inf -1.2  -inf  -inf]
    """
    logits = _checks.logits(logits)
    shards = _chunks.shards(logits, axis_name)
    return _typical_p_logits(logits, _checks.real("p", p, logits), shards, implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def _typical_p_logits(
    logits: Array, p: Array, shards: Shards | None, implementation: Implementation
) -> Array:
    p, bad = _share(logits, p)
    source = _chunks.source(lax.stop_gradient(logits), shards=shards)
    rows, scale, (sums,) = _look.look_over_and_weigh(source, None, implementation)
    centre, cut = _cuts.typical(rows, scale, sums, p)
    away = _cuts.typicality(rows.read(logits), centre)
    keep = _ranking.is_kept(away, rows.ids, cut)
    return _keep(logits, rows, keep | (p == 1)[..., None], bad)


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
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, epsilon
      outside its range) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Hewitt, Manning and Liang, "Truncation sampling as language model desmoothing",
      arXiv 2210.15191.

    >>> import jax.numpy as jnp
    >>> print(epsilon_logits(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.25))
    [-0.69 -1.2   -inf]
    """
    logits = _checks.logits(logits)
    shards = _chunks.shards(logits, axis_name)
    return _epsilon_logits(logits, _checks.real("epsilon", epsilon, logits), shards, implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def _epsilon_logits(
    logits: Array, epsilon: Array, shards: Shards | None, implementation: Implementation
) -> Array:
    epsilon, bad = _share(logits, epsilon)
    rows, log_sum = _normalized(logits, shards, implementation)
    return _from(logits, rows, log_sum + _elementary.log(epsilon), bad)


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
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, epsilon
      outside its range) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Hewitt, Manning and Liang, "Truncation sampling as language model desmoothing",
      arXiv 2210.15191.

    >>> import jax.numpy as jnp
    >>> print(eta_logits(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.25))
    [-0.69 -1.2  -1.6 ]
    """
    logits = _checks.logits(logits)
    shards = _chunks.shards(logits, axis_name)
    return _eta_logits(logits, _checks.real("epsilon", epsilon, logits), shards, implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def _eta_logits(
    logits: Array, epsilon: Array, shards: Shards | None, implementation: Implementation
) -> Array:
    epsilon, bad = _share(logits, epsilon)
    source = _chunks.source(lax.stop_gradient(logits), shards=shards)
    rows, scale, (sums,) = _look.look_over_and_weigh(source, None, implementation)
    entropy, log_sum = _moments.entropy(rows, scale, sums)
    least = _elementary.log(epsilon)
    return _from(logits, rows, log_sum + jnp.minimum(least, 0.5 * least - entropy), bad)


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
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, a
      outside its range) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Top-a, of KoboldAI and RWKV: https://github.com/BlinkDL/RWKV-LM.

    >>> import jax.numpy as jnp
    >>> print(top_a_logits(jnp.log(jnp.array([0.6, 0.3, 0.1])), 0.5))
    [-0.51 -1.2   -inf]
    """
    logits = _checks.logits(logits)
    shards = _chunks.shards(logits, axis_name)
    return _top_a_logits(logits, _checks.real("a", a, logits), shards, implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def _top_a_logits(
    logits: Array, a: Array, shards: Shards | None, implementation: Implementation
) -> Array:
    a, bad = _share(logits, a)
    rows, log_sum = _normalized(logits, shards, implementation)
    return _from(logits, rows, _elementary.log(a) - log_sum, bad)


def top_n_sigma_logits(logits: ArrayLike, n: ArrayLike, *, axis_name: AxisName = None) -> Array:
    """Keeps the tokens within n standard deviations of the largest logit.

    Keeps `logit >= max - n * sigma`, where sigma is the standard deviation (of the population) of
    the logits that are not masked. What is kept does not depend on the temperature.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      n: finite, a scalar or `[...]`; 0 and below are neutral.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, n
      outside its range) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Tang et al., "Top-n-sigma: not all logits are you need", arXiv 2411.07641.

    >>> import jax.numpy as jnp
    >>> print(top_n_sigma_logits(jnp.array([4.0, 3.0, 0.0, 1.0]), 1.0))
    [  4.   3. -inf -inf]
    """
    logits = _checks.logits(logits)
    shards = _chunks.shards(logits, axis_name)
    return _top_n_sigma_logits(logits, _checks.real("n", n, logits), shards)


@jax.jit
def _top_n_sigma_logits(logits: Array, n: Array, shards: Shards | None) -> Array:
    n = _checks.to_rows(lax.stop_gradient(n), logits)
    rows = _chunks.look_over(lax.stop_gradient(logits), shards)
    floor = jnp.where(n > 0, -n * _moments.deviation(rows), -jnp.inf)
    return _from(logits, rows, floor, ~jnp.isfinite(n))


def tail_free_logits(
    logits: ArrayLike,
    z: ArrayLike,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Cuts the ranking where its probabilities stop to bend.

    With p the sorted probabilities of the tokens that are not masked,
    `d[i] = abs((p[i] - p[i+1]) - (p[i+1] - p[i+2]))` over their sum: keeps the tokens before the
    first i at which the running sum of d exceeds z, at least one.

    The one rule that is about neighbours in the ranking, and so the one that sorts a row; it does
    so only where a row of the batch asks for it.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      z: in [0, 1], a scalar or `[...]`; 1 is neutral.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, z
      outside its range) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Phénix and Egan, "A new sampling technique: tail free sampling", 2019,
      https://trentbrick.github.io/Tail-Free-Sampling.

    >>> import jax.numpy as jnp
    >>> print(tail_free_logits(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.04, 0.01])), 0.6))
    [-0.69 -1.2  -inf  -inf  -inf]
    """
    logits = _checks.logits(logits)
    shards = _chunks.shards(logits, axis_name)
    return _tail_free_logits(logits, _checks.real("z", z, logits), shards, implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def _tail_free_logits(
    logits: Array, z: Array, shards: Shards | None, implementation: Implementation
) -> Array:
    rows, z, bad = _opened(logits, z, shards, implementation)
    length = jnp.where(bad, rows.vocab, _cuts.tail_free(rows, z))
    kept = cut_by(logits, Rules({"top_k": length}, (("top_k",),)), shards, implementation)
    return jnp.where(bad[..., None], jnp.nan, kept)


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
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, h
      outside its range) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Baghaei Potraghloo et al., "Top-H decoding", arXiv 2509.02510.

    >>> import jax.numpy as jnp
    >>> print(top_h_logits(jnp.log(jnp.array([0.5, 0.3, 0.1, 0.1])), 0.7))
    [-0.69 -1.2   -inf  -inf]
    """
    logits = _checks.logits(logits)
    shards = _chunks.shards(logits, axis_name)
    return _top_h_logits(logits, _checks.real("h", h, logits), shards, implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def _top_h_logits(
    logits: Array, h: Array, shards: Shards | None, implementation: Implementation
) -> Array:
    h, bad = _share(logits, h)
    rows, log_sum = _normalized(logits, shards, implementation)
    return _cut_off(logits, rows, _cuts.top_h(rows, log_sum, h), bad)


def p_less_logits(
    logits: ArrayLike, *, axis_name: AxisName = None, implementation: Implementation = None
) -> Array:
    """Keeps the tokens at least as likely as a draw is to be repeated: `prob >= sum(prob**2)`.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit) are NaN
      throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Tan et al., "p-less sampling: a robust hyperparameter-free approach for LLM decoding",
      arXiv 2509.23234.

    >>> import jax.numpy as jnp
    >>> print(p_less_logits(jnp.log(jnp.array([0.5, 0.3, 0.2]))))
    [-0.69  -inf  -inf]
    """
    logits = _checks.logits(logits)
    return _p_less_logits(logits, _chunks.shards(logits, axis_name), implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def _p_less_logits(logits: Array, shards: Shards | None, implementation: Implementation) -> Array:
    rows, log_sum = _normalized(logits, shards, implementation)
    return _from(logits, rows, log_sum + _moments.log_collision(rows, log_sum), rows.bad)


def xtc_logits(
    key: ArrayLike,
    logits: ArrayLike,
    probability: ArrayLike,
    threshold: ArrayLike,
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
      axis_name: static, the mesh axis, or axes, over which the vocabulary is sharded inside
        `shard_map`; None where it is whole.
      implementation: static, "xla", or "pallas" for the kernels of a TPU (interpreted elsewhere);
        None for kernels where a TPU should be faster with them. The result is the same.

    Returns:
      `[..., vocab]` in the dtype of the logits. Bad rows (a NaN, +inf or no finite logit, a
      parameter outside its range) are NaN throughout.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    References:
      Weidmann, "Exclude top choices (XTC)", text-generation-webui, pull request 6335, 2024.

    >>> import jax, jax.numpy as jnp
    >>> print(xtc_logits(jax.random.key(0), jnp.log(jnp.array([0.5, 0.3, 0.2])), 1.0, 0.25))
    [ -inf -1.2  -1.6 ]
    """
    logits = _checks.logits(logits)
    return _xtc_logits(
        _checks.keys(key, logits),
        logits,
        _checks.real("probability", probability, logits),
        _checks.real("threshold", threshold, logits),
        _chunks.shards(logits, axis_name),
        implementation,
    )


@functools.partial(jax.jit, static_argnames="implementation")
def _xtc_logits(
    keys: Array,
    logits: Array,
    probability: Array,
    threshold: Array,
    shards: Shards | None,
    implementation: Implementation,
) -> Array:
    probability, improbable = _share(logits, probability)
    threshold, outside = _share(logits, threshold)
    rows, log_sum = _normalized(logits, shards, implementation)
    floor = rows.row_max + (log_sum + _elementary.log(threshold))
    # A threshold of 0 is met by all that are not masked.
    floor = jnp.maximum(floor, np.finfo(np.float32).min)
    least = _ranking.last_from(rows, floor)
    first = jnp.zeros((*rows.row_max.shape, 1), jnp.int32)
    chance = _draw.uniforms(_draw.spend(keys), first, first)
    excludes = chance < probability[..., None]
    x, ids = rows.read(logits), rows.ids
    likely = x >= floor[..., None]
    last = (x == least.logit[..., None]) & (ids == least.token[..., None])
    return _keep(logits, rows, ~(excludes & likely) | last, improbable | outside)


def cut_by(
    logits: Array, rules: Rules, shards: Shards | None, implementation: Implementation
) -> Array:
    """The logits that top-k, top-p and min-p keep together."""
    source = _chunks.source(lax.stop_gradient(logits), shards=shards)
    rows, top = _look.look_over_and_rank(source, None, implementation)
    rules, bad = _kept.checked(rows.vocab, rules)
    cut = _kept.prefix(rows, top, rules).cut
    return _cut_off(logits, rows, cut, bad)


def _opened(
    logits: Array, share: Array, shards: Shards | None, implementation: Implementation
) -> tuple[Rows, Array, Array]:
    """The logits looked over, and a parameter in [0, 1] a row with the rows where it is not."""
    source = _chunks.source(lax.stop_gradient(logits), shards=shards)
    return _look.look_over(source, implementation), *_share(logits, share)


def _normalized(
    logits: Array, shards: Shards | None, implementation: Implementation
) -> tuple[Rows, Array]:
    """The logits looked over, and the logarithm of the sum of their exponentials."""
    source = _chunks.source(lax.stop_gradient(logits), shards=shards)
    rows, scale, (sums,) = _look.look_over_and_weigh(source, None, implementation)
    return rows, _moments.log_sum(_chunks.added_up(sums, scale))


def _share(logits: Array, share: Array) -> tuple[Array, Array]:
    share = _checks.to_rows(lax.stop_gradient(share), logits)
    return share, ~((share >= 0) & (share <= 1))


def _from(logits: Array, rows: Rows, floor: Array, bad: Array) -> Array:
    """The logits from a floor up, `[...]` above the largest, which is kept anyway."""
    floor = rows.row_max + jnp.minimum(floor, 0)
    cut = Cut(floor, jnp.full(floor.shape, rows.vocab, jnp.int32))
    return _cut_off(logits, rows, cut, bad)


def _cut_off(logits: Array, rows: Rows, cut: Cut, bad: Array) -> Array:
    """The logits up to a cut; NaN on bad rows."""
    keep = _ranking.is_kept(rows.read(logits), rows.ids, cut)
    return _keep(logits, rows, keep, bad)


def _keep(logits: Array, rows: Rows, keep: Array, bad: Array) -> Array:
    return jnp.where((bad | rows.bad)[..., None], jnp.nan, jnp.where(keep, logits, -jnp.inf))
