"""SynthID: tournament sampling with keyed coins."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import ndtr
from jax.typing import ArrayLike

from jaxsample._core import _checks, _chunks, _elementary, _mass, _scan, _shards
from jaxsample._core._elementary import rounded
from jaxsample._core._parameters import COUNT, FLAG
from jaxsample._core._public import public, static_integer
from jaxsample._core._shards import AxisName, Shards
from jaxsample._core._source import Source, opened
from jaxsample.watermarks import _hash, _scoring, _texts
from jaxsample.watermarks._hash import Seed
from jaxsample.watermarks._scoring import ScoreDetection


@public(
    secret_key=_hash.keys,
    context=_texts.context,
    active=FLAG,
    depth=static_integer(1, _hash.BITS),
)
def synthid_logits(
    secret_key: ArrayLike,
    logits: ArrayLike,
    context: ArrayLike,
    active: ArrayLike = True,
    *,
    depth: int = 30,
    axis_name: AxisName = None,
) -> Array:
    """Applies tournament sampling: draws from the result are marked, and unbiased over random keys.

    Each of `depth` layers assigns a keyed coin g, 0 or 1, to each token, and updates
    `p <- p * (1 + g - sum(g * p))`, starting from `p = softmax(logits)`. This is the distribution
    of the winner between two draws from p, where a token with g = 1 wins. The result is the
    logarithm of the last p, up to a constant.

    Text is unbiased only if no context is used twice: pass `active=~context_repeated(...)`.

    Args:
      secret_key: one key for all rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      context: integers `[..., width]`, the last tokens, the latest last (`last_tokens`); four in
        the paper. A row with a negative one, a missing token, is unchanged.
      active: bool, a scalar or `[...]`; rows where it is False are unchanged.
      depth: static, in [1, 32].

    Returns:
      float32 `[..., vocab]`, differentiable in the logits. Bad rows (a NaN, +inf or no finite
      logit) are unchanged.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or depth; the message names the argument.

    References:
      Dathathri et al., "Scalable watermarking for identifying large language model outputs",
      Nature 634, 2024.

    >>> import jax, jax.numpy as jnp
    >>> key, context = jax.random.key(0), jnp.array([3, 1, 4, 1])
    >>> print(jax.nn.softmax(synthid_logits(key, jnp.zeros(4), context, depth=1)))
    [0.31 0.31 0.31 0.06]
    """
    x, last = opened(logits, axis_name, "xla"), jnp.asarray(context)
    seed = _hash.fold(jnp.asarray(secret_key), last)
    rows = _scan.scan(x)
    on = (x.per_row(active) & _texts.known(last) & ~rows.bad)[..., None]

    def play(layer: Array, below: Array) -> Array:
        # Tied to the loop: XLA would hoist the words of the whole vocabulary out of it.
        here, layer = lax.optimization_barrier((seed, layer))
        share = _losers(below, here, layer, x.shards)
        won, lost = _elementary.log(1 + share)[..., None], _elementary.log(share)[..., None]
        g = _hash.coin(_hash.word(here, x.ids), layer)
        return below + jnp.where(g, won, lost)

    # Other rows are excluded, since their gradients would be NaN. Logits are relative to the
    # maximum, where float32 is most precise.
    row_max = rows.row_max[..., None]
    wide = x.logits.astype(jnp.float32)
    below = jnp.where(on, wide - row_max, 0)
    played = lax.fori_loop(0, depth, play, below) + row_max
    return jnp.where(on, rounded(played), wide)


@jax.custom_jvp
def _losers(x: Array, seed: Seed, layer: Array, shards: Shards | None) -> Array:
    """Returns the probability `[...]` of the tokens with g = 0.

    It is the factor of a token with g = 0; the factor of a token with g = 1 is 1 more.
    """
    rows = _scan.scan(Source(x, shards=shards, implementation="xla"))
    scale = _chunks.probability(rows)

    def lost_token(_: Array, places: np.ndarray, start: Array) -> Array:
        return ~_hash.coin(_hash.word(seed, start + places), layer)

    lost = _chunks.mass(rows, scale, lost_token, _chunks.starts(rows))
    share = _mass.to_float(lost) / _mass.to_float(_chunks.mass(rows, scale))
    # A share that rounds to 0 must not mask its tokens.
    return jnp.maximum(share, 2.0**-_mass.FRACTION_BITS)


@_losers.defjvp
def _losers_jvp(
    primals: tuple[Array, Seed, Array, Shards | None],
    tangents: tuple[Array, Seed, Array, Shards | None],
) -> tuple[Array, Array]:
    x, seed, layer, shards = primals
    share = _losers(*primals)
    lost = ~_hash.coin(_hash.word(seed, _shards.ids(x, shards)), layer)
    softmax = _shards.softmax(x, shards)
    change = softmax * (jnp.where(lost, 1, 0) - share[..., None]) * tangents[0]
    return share, _shards.total(jnp.sum(change, axis=-1), shards)


@public(
    first="tokens",
    convert_first=_checks.text,
    secret_key=_hash.keys,
    length=COUNT,
    depth=static_integer(1, _hash.BITS),
    width=_texts.width,
)
def detect_synthid(
    secret_key: ArrayLike, tokens: ArrayLike, length: ArrayLike, *, depth: int = 30, width: int
) -> ScoreDetection:
    """Scores a text by the coins of its tokens, whose mean is 1/2 in text without the mark.

    The score is the mean of the coins over tokens and layers, with weights that decrease linearly
    from the first layer to a tenth at the last one, where the coins of marked text are less biased.
    Tokens that follow a repeated context are not scored.

    Args:
      secret_key: the key of the mark: one key for all rows, or an array of keys `[...]`.
      tokens: integers `[..., L]`; a negative one is missing, and n-grams with it are not scored.
      length: integer in [0, L], a scalar or `[...]`, the number of valid tokens.
      depth: static, in [1, 32], as in `synthid_logits`.
      width: static, at least 1, the number of context tokens of the mark.

    Returns:
      `(score, p_value, scored)`, each `[...]`. The p-value is that of a normal distribution with
      the exact mean and variance of the score, at most 2% too large down to 1e-6 at 30 layers and
      200 tokens, and more with fewer. If no token is scored, the score is 1/2 and p_value 1. On a
      row with a length outside its range, score and p_value are NaN and the number -1.

    Raises:
      TypeError, ValueError: a wrong dtype, shape, depth or width; the message names the argument.

    References:
      Dathathri et al., "Scalable watermarking for identifying large language model outputs",
      Nature 634, 2024: the weighted mean.

    >>> import jax, jax.numpy as jnp
    >>> found = detect_synthid(jax.random.key(0), jnp.arange(1000), 1000, width=4)
    >>> print(found.score, found.p_value > 0.01)
    0.5 True
    """
    text, number = _texts.history(tokens, length)
    contexts, candidates, valid = _texts.grams(text, number, width)
    seed = _hash.fold(jnp.asarray(secret_key)[..., None], contexts)
    words, first = _scoring.first_of_each(valid, seed.first, _hash.word(seed, candidates))
    scored = _scoring.count(first)
    # Linear from 10 to 1, as integers: the sums are exact.
    weights = [10 * (depth - 1) - 9 * layer for layer in range(depth)] if depth > 1 else [1]
    heads = [_scoring.count(first & _hash.coin(words, jnp.int32(layer))) for layer in range(depth)]
    total = jnp.zeros_like(scored)
    for weight, head in zip(weights, heads, strict=True):
        total += weight * head
    n = jnp.maximum(scored, 1).astype(jnp.float32)
    # Continuity correction: half a unit less, since the sums are integers.
    excess = (2 * total - 1 - scored * sum(weights)).astype(jnp.float32)
    deviation = jnp.sqrt(n * sum(weight**2 for weight in weights))
    some = scored > 0
    score = jnp.where(some, total.astype(jnp.float32) / (n * sum(weights)), 0.5)
    tail = jnp.where(some, ndtr(-excess / deviation), 1)
    return ScoreDetection(*_scoring.unless(number < 0, (score, tail, scored)))
