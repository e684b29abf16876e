"""The canonical order in one call: temperature, top-k, top-p, min-p, draw."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample import _checks, _chunks, _draw, _kept, _normalizer, _ranking
from jaxsample._chunks import Rows
from jaxsample._kept import Kept, Rules
from jaxsample._mass import Scale
from jaxsample._ranking import Cut
from jaxsample.scaling import rate_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """What each row of a batch asks for; a field that is None is a stage that is not compiled.

    Each field is a scalar or an array that broadcasts to `logits.shape[:-1]`. All are traced: a
    new value never compiles anew, only another set of fields or other shapes do.

    Attributes:
      temperature: finite and at least 0; 0 is greedy, 1 neutral.
      top_k: an integer, at least 0; 0 and anything from `vocab` up are neutral.
      top_p: in [0, 1]; 1 is neutral, 0 keeps the token of rank 0.
      min_p: in [0, 1]; 0 is neutral.

    >>> import numpy as np
    >>> SamplingParams(temperature=0.7, top_p=np.array([0.9, 1.2])).validate()
    Traceback (most recent call last):
    ...
    ValueError: top_p[1] must be in [0, 1], got 1.2
    """

    temperature: ArrayLike | None = None
    top_k: ArrayLike | None = None
    top_p: ArrayLike | None = None
    min_p: ArrayLike | None = None

    def validate(self) -> None:
        """Checks the values, which no traced code can, on the host.

        Raises:
          TypeError: a field that holds no numbers, or top_k no integers.
          ValueError: a value outside its range; the message names the field, the row and the range.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                _validate(field.name, np.asarray(value))


class SampleOutput(NamedTuple):
    """What `sample` drew.

    Attributes:
      tokens: int32 `[...]`; -1 on a bad row.
      logprobs: float32 `[...]`, of each token under the distribution that it was drawn from; NaN
        on a bad row. Differentiable in the logits and the temperature.
      num_kept: int32 `[...]`, the number of tokens that the draw chose from; 0 on a bad row.
    """

    tokens: Array
    logprobs: Array
    num_kept: Array


def sample(key: ArrayLike, logits: ArrayLike, params: SamplingParams) -> SampleOutput:
    """Draws a token of each row: temperature, then top-k, then top-p on the rest, then min-p.

    Returns the very tokens of the functions it is made of, bit for bit, and does so in fewer
    passes over the logits:

        categorical_sample(key, min_p_logits(top_p_logits(top_k_logits(
            scaled_logits(logits, temperature), top_k), top_p), min_p))

    Args:
      key: one key, split over the rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32. In a decoding loop, `fold_in(request_key, position)`.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      params: what to apply; fields that are None cost nothing.

    Returns:
      `SampleOutput(tokens, logprobs, num_kept)`. A bad row (a NaN, +inf or no finite logit, a
      parameter outside its range) gets token -1 and log-probability NaN and touches no other row.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    >>> keys = jax.vmap(jax.random.key)(jnp.array([1, 2]))
    >>> params = SamplingParams(temperature=jnp.array([1.0, 0.0]), top_p=0.7)
    >>> tokens, logprobs, num_kept = sample(keys, logits, params)
    >>> print(num_kept, tokens[1], logprobs[1])
    [2 1] 2 0.0
    """
    logits = _checks.logits(logits)
    if not isinstance(params, SamplingParams):
        raise TypeError(f"params must be a SamplingParams, got {type(params).__name__}")

    def given(name: str) -> Array | None:
        value = getattr(params, name)
        check = _checks.integer if name in _INTEGERS else _checks.real
        return None if value is None else check(name, value, logits)

    rules = Rules(k=given("top_k"), p=given("top_p"), min_p=given("min_p"))
    return _sample(_checks.keys(key, logits), logits, given("temperature"), rules)


@jax.jit
def _sample(keys: Array, logits: Array, temperature: Array | None, rules: Rules) -> SampleOutput:
    rate, greedy, bad = None, None, jnp.array(False)
    if temperature is not None:
        rate, greedy, bad = rate_of(_checks.to_rows(temperature, logits))
    rules = jax.tree.map(lambda rule: _checks.to_rows(rule, logits), rules)
    rules, outside = _kept.checked(logits.shape[-1], rules)

    rows = _chunks.look_over(lax.stop_gradient(logits), lax.stop_gradient(rate))
    rows = rows._replace(bad=rows.bad | bad | outside)
    scale = _chunks.probability(rows)
    cut, kept = _kept_set(rows, scale, rules, greedy)
    tokens = _draw.draw(keys, rows, scale, kept.sums, cut)

    # Only the gradient reads `kept_logits`: their sum is known from `kept.sums`.
    keep = _ranking.is_kept(rows.read(logits), _chunks.positions(logits), cut)
    keep &= (logits > -jnp.inf) & ~rows.bad[..., None]
    scaled = rows._replace(rate=rate)
    kept_logits = jnp.where(keep, scaled.read(jnp.where(keep, logits, 0)), -jnp.inf)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1, mode="clip")
    chosen = jnp.where(rows.bad[..., None], 0, chosen)
    logprobs = _normalizer.logprobs(rows, scale, kept.sums, kept_logits, scaled.read(chosen))
    return SampleOutput(
        tokens=jnp.where(rows.bad, -1, tokens),
        logprobs=logprobs[..., 0],
        num_kept=jnp.where(rows.bad, 0, kept.num_kept),
    )


def _kept_set(rows: Rows, scale: Scale, rules: Rules, greedy: Array | None) -> tuple[Cut, Kept]:
    """What the rules keep, and rank 0 alone on greedy rows."""
    if any(rule is not None for rule in rules):
        if greedy is not None:
            k = rows.vocab if rules.k is None else rules.k
            rules = rules._replace(k=jnp.where(greedy, 1, k))
        prefix = _kept.prefix(rows, scale, rules)
        return prefix.cut, _kept.weigh(rows, scale, prefix)
    cut = _ranking.everything(rows)
    if greedy is not None:
        cut = _ranking.select(greedy, _ranking.best(rows), cut)
    return cut, _kept.weigh_to(rows, scale, cut)


_INTEGERS = ("top_k",)

_RANGES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "temperature": ("finite and at least 0", lambda x: np.isfinite(x) & (x >= 0)),
    "top_k": ("at least 0", lambda x: x >= 0),
    "top_p": ("in [0, 1]", lambda x: (x >= 0) & (x <= 1)),
    "min_p": ("in [0, 1]", lambda x: (x >= 0) & (x <= 1)),
}


def _validate(name: str, value: np.ndarray) -> None:
    allowed, inside = _RANGES[name]
    if _checks.kind(value) not in ("iu" if name in _INTEGERS else "iuf"):
        expected = "integers" if name in _INTEGERS else "real numbers"
        raise TypeError(f"{name} must hold {expected}, got {value.dtype}")
    with np.errstate(over="ignore"):  # as it is computed with, in which a large value is infinite
        computed = value if name in _INTEGERS else value.astype(np.float32)
    for row in np.argwhere(~inside(computed)):
        place = f"[{', '.join(map(str, row))}]" if value.ndim else ""
        raise ValueError(f"{name}{place} must be {allowed}, got {value[tuple(row)]}")
