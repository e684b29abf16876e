"""Mirostat: draws tokens so that their mean surprise approaches a target."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import (
    _checks,
    _chunks,
    _draw,
    _elementary,
    _mass,
    _normalizer,
    _prefix,
    _ranking,
    _rows,
    _scan,
    _shards,
)
from jaxsample._core._elementary import LOG2_E, rounded
from jaxsample._core._parameters import FINITE, NOT_NEGATIVE
from jaxsample._core._prefix import Candidates
from jaxsample._core._public import public
from jaxsample._core._pytrees import pytree
from jaxsample._core._ranking import Cut
from jaxsample._core._rows import Rows
from jaxsample._core._search import Rules
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, Source, opened

_ZIPF_TOKENS = 100
_STEEPEST = 1e6
"""Nats between neighbours of the ranking, more than float32 probabilities can represent."""
_FLATTEST = 1e-6
"""An exponent close to 0, for which k is either 1 or the whole vocabulary."""

_Keep = Callable[[Source, Array], tuple[Rows, Cut]]


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class MirostatParams:
    """Parameters of mirostat; each field is a scalar or broadcasts to `logits.shape[:-1]`.

    Attributes:
      tau: the target of the mean surprise, in bits a token; finite and at least 0.
      eta: the learning rate; finite and at least 0, 0 keeps the state constant.

    >>> MirostatParams(tau=[3.0, -1.0]).validate()
    Traceback (most recent call last):
    ...
    ValueError: tau[1] must be finite and at least 0, got -1.0
    """

    tau: ArrayLike = 5.0
    eta: ArrayLike = 0.1

    def validate(self) -> None:
        """Checks the values on the host. (Traced code cannot: there, a bad value makes a bad row.)

        Raises:
          TypeError: a field that holds no real numbers.
          ValueError: a value outside its range; the message names the field, the row and the range.
        """
        NOT_NEGATIVE.validate("tau", self.tau)
        NOT_NEGATIVE.validate("eta", self.eta)


@pytree
class MirostatState(NamedTuple):
    """The state of mirostat.

    Attributes:
      mu: float32 `[...]`, the largest surprise of a kept token, in bits; finite.
    """

    mu: Array


def init_mirostat(params: MirostatParams, rows_shape: tuple[int, ...] = ()) -> MirostatState:
    """Returns the state before the first token: `mu = 2 tau`.

    Args:
      params: its `tau` is a scalar or broadcasts to `rows_shape`.
      rows_shape: static, the `logits.shape[:-1]` of the draws.

    Returns:
      `MirostatState(mu)`, float32 in the shape of the rows.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    >>> print(init_mirostat(MirostatParams(tau=3.0), (2,)).mu)
    [6. 6.]
    """
    _checks.instance("params", params, MirostatParams)
    rows = jnp.empty((*rows_shape, 1))
    return MirostatState(2 * _checks.to_rows(_checks.real("tau", params.tau, rows), rows))


def _mirostat_params(name: str, value: Any, logits: Array) -> MirostatParams:
    _checks.instance(name, value, MirostatParams)
    tau, eta = (NOT_NEGATIVE(field, getattr(value, field), logits) for field in ("tau", "eta"))
    return MirostatParams(tau=tau, eta=eta)


def _mirostat_state(name: str, value: Any, logits: Array) -> MirostatState:
    _checks.instance(name, value, MirostatState)
    return MirostatState(FINITE("mu", value.mu, logits))


@public(key=_checks.keys, params=_mirostat_params, state=_mirostat_state)
def mirostat_v1_sample(
    key: ArrayLike,
    logits: ArrayLike,
    params: MirostatParams,
    state: MirostatState,
    *,
    axis_name: AxisName = None,
) -> tuple[Array, MirostatState]:
    """Draws from the top k tokens, where rank k has surprise mu under a fitted Zipf law.

    The exponent s of the Zipf law is fitted to the 100 likeliest tokens:

        s = sum(t_i b_i) / sum(t_i^2),  t_i = log((i + 1) / i),  b_i = log(p_i / p_(i+1))
        k = (e 2^mu / (1 - N^-e))^(1/s),  e = s - 1,  rounded down, at least 1
        mu <- mu - eta (surprise - tau)

    N is the number of tokens that are not masked. The surprise of the drawn token is -log2 of its
    probability after truncation, among the k tokens, as in llama.cpp. The authors of the paper use
    the probability before truncation, and round k to the nearest integer and add 1.

    Args:
      key: one key, split over the rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32. In a decoding loop, `fold_in(request_key, position)`.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      params: `MirostatParams(tau, eta)`.
      state: from `init_mirostat` or the last call; `mu` is a scalar or `[...]`.

    Returns:
      The tokens, int32 `[...]`, as `categorical_sample` draws them from the top-k logits, and the
      next state. A bad row (a NaN, +inf or no finite logit, a parameter outside its range, a state
      that is not finite) gets token -1, keeps its state and does not affect other rows.

    References:
      Basu et al., "Mirostat: a neural text decoding algorithm that directly controls perplexity",
      arXiv 2007.14966; llama.cpp's mirostat, where N includes masked tokens and a k that overflows
      becomes 1. Here such a k keeps every token.

    >>> import jax, jax.numpy as jnp
    >>> logits = -jnp.log(jnp.arange(1.0, 1001))  # Zipf's law with s = 1
    >>> params = MirostatParams(tau=3.0)
    >>> tokens, state = mirostat_v1_sample(jax.random.key(0), logits, params, MirostatState(2.8))
    >>> print(tokens, state.mu)  # k = 2^2.8 / log(1000) = 1.008: one token, without surprise
    0 3.1
    """
    # The tokens are also counted: with a kernel that takes one more read, by estimate.
    return _mirostat(_zipf_prefix, key, opened(logits, axis_name, "xla"), params, state)


@public(key=_checks.keys, params=_mirostat_params, state=_mirostat_state)
def mirostat_v2_sample(
    key: ArrayLike,
    logits: ArrayLike,
    params: MirostatParams,
    state: MirostatState,
    *,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> tuple[Array, MirostatState]:
    """Draws from the tokens whose surprise is at most mu: `-log2(p) <= mu`, at least rank 0.

        mu <- mu - eta (surprise - tau)

    The surprise of the drawn token is -log2 of its probability after truncation, among the kept
    tokens, as in llama.cpp and text-generation-webui.

    Args:
      key: one key, split over the rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32. In a decoding loop, `fold_in(request_key, position)`.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      params: `MirostatParams(tau, eta)`.
      state: from `init_mirostat` or the last call; `mu` is a scalar or `[...]`.

    Returns:
      The tokens, int32 `[...]`, as `categorical_sample` draws them from the kept logits, and the
      next state. A bad row (a NaN, +inf or no finite logit, a parameter outside its range, a state
      that is not finite) gets token -1, keeps its state and does not affect other rows.

    References:
      Basu et al., "Mirostat: a neural text decoding algorithm that directly controls perplexity",
      arXiv 2007.14966; llama.cpp's mirostat-v2, which has no Zipf law.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([0.25, 0.5, 0.125, 0.125]))
    >>> params = MirostatParams(tau=0.9)
    >>> tokens, state = mirostat_v2_sample(jax.random.key(0), logits, params, MirostatState(1.8))
    >>> print(tokens, state.mu)  # only one token has at most 1.8 bits
    1 1.89
    """
    x = opened(logits, axis_name, implementation)
    return _mirostat(_unsurprising, key, x, params, state)


def _mirostat(
    keep: _Keep, key: ArrayLike, x: Source, params: MirostatParams, state: MirostatState
) -> tuple[Array, MirostatState]:
    x = lax.stop_gradient(x)
    tau, eta, mu = map(x.per_row, lax.stop_gradient((params.tau, params.eta, state.mu)))
    bad = ~(NOT_NEGATIVE.inside(tau) & NOT_NEGATIVE.inside(eta) & jnp.isfinite(mu))
    rows, cut = _rows.read_again(*keep(x, jnp.where(bad, 0, mu)))
    bad |= rows.bad
    tokens, mass, _ = _draw.draw_to(_draw.random_words(jnp.asarray(key)), rows, cut)

    chosen = _shards.take(x.logits, tokens[..., None], x.shards)
    logprobs = _normalizer.logprobs(rows, mass, x.logits, chosen)[..., 0]
    surprise = rounded(-logprobs * LOG2_E)
    next_mu = mu - rounded(eta * (surprise - tau))
    return jnp.where(bad, -1, tokens), MirostatState(jnp.where(bad, mu, next_mu))


def _unsurprising(x: Source, mu: Array) -> tuple[Rows, Cut]:
    """Returns the rows, and the cut after the last token of surprise at most mu bits."""
    rows, scale, (sums,) = _scan.scan_and_weigh(x)
    log_mass = _mass.log(_chunks.added_up(sums, scale))
    floor = rows.row_max + log_mass - rounded(mu / LOG2_E)
    likely = Cut(floor, jnp.full(floor.shape, rows.vocab, jnp.int32))
    return rows, _ranking.select(floor > rows.row_max, _ranking.best(rows), likely)


def _zipf_prefix(x: Source, mu: Array) -> tuple[Rows, Cut]:
    """Returns the rows, and the cut after the rank whose surprise is mu bits under a Zipf law.

    The law is fitted to the first tokens of each row.
    """
    rows = _scan.scan(x)
    units = _chunks.weigh(rows, _chunks.tally(rows))
    log_vocab = _elementary.log(jnp.maximum(jnp.sum(units, axis=-1), 2).astype(jnp.float32))
    top = _ranking.candidates(rows, _ZIPF_TOKENS)
    s = _zipf_exponent(top.logit)
    e = s - 1
    power = -rounded(e * log_vocab)
    # e / (1 - N^-e), of which the limit at e = 0 is 1 / log N.
    inverse = _elementary.exp2(power * LOG2_E)
    share = jnp.where(inverse == 1, 1, _elementary.log(inverse) / (inverse - 1)) / log_vocab
    log2_k = (mu + rounded(_elementary.log(share) * LOG2_E)) / s
    k = jnp.clip(_elementary.exp2(log2_k), 1, rows.vocab).astype(jnp.int32)
    rules = Rules({"top_k": lax.optimization_barrier(k)}, (("top_k",),))
    return rows, _prefix.cut_of(rows, Candidates(top, jnp.full(k.shape, True)), rules)


def _zipf_exponent(logits: Array) -> Array:
    """Returns the slope of logits `[..., n]` over the logarithms of their ranks."""
    ranks = np.arange(1, logits.shape[-1], dtype=np.float64)
    t = np.log1p(1 / ranks).astype(np.float32).reshape((1,) * (logits.ndim - 1) + (-1,))
    masked = logits[..., 1:] == -jnp.inf
    gaps = jnp.where(masked, 0, jnp.minimum(logits[..., :-1] - logits[..., 1:], _STEEPEST))
    squares = jnp.where(masked, 0, t * t)
    s = _tree_sum(rounded(gaps * t)) / jnp.maximum(_tree_sum(squares), np.float32(1e-30))
    return jnp.maximum(s, _FLATTEST)


def _tree_sum(x: Array) -> Array:
    """Adds the elements of the last axis, at most 128, always in the same order."""
    size = 128
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])
    while size > 1:
        size //= 2
        x = x[..., :size] + x[..., size:]
    return x[..., 0]
