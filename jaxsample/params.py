"""What each row of a batch asks for: every rule a field."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsample import _checks


class _Field(NamedTuple):
    """What a field may hold.

    Attributes:
      kinds: of the dtypes, as `_checks.held` has them.
      allowed: the range, in words.
      inside: which values lie in it.
      axes: the axes behind the rows: none, "n" (a list), "vocab" or "vocab / 32".
    """

    kinds: str
    allowed: str
    inside: Callable[[np.ndarray], np.ndarray]
    axes: tuple[str, ...] = ()


def _real(allowed: str, inside: Callable[[np.ndarray], np.ndarray]) -> _Field:
    return _Field("iuf", allowed, lambda x: inside(x) & np.isfinite(x))


def _integer(least: int, *axes: str) -> _Field:
    return _Field("iu", f"at least {least}", lambda x: x >= least, axes)


def _anything(kinds: str, *axes: str) -> _Field:
    return _Field(kinds, "anything", lambda x: np.full(x.shape, True), axes)


_FINITE = _real("finite", lambda x: np.full(x.shape, True))
_SHARE = _real("in [0, 1]", lambda x: (x >= 0) & (x <= 1))
_NOT_NEGATIVE = _real("finite and at least 0", lambda x: x >= 0)


def _ids(*axes: str) -> _Field:
    # The vocabulary is not known here: those below it are found bad with the logits.
    return _Field("iu", f"below {_checks.MAX_VOCAB}", lambda x: x < _checks.MAX_VOCAB, axes)


def _field(field: _Field) -> Any:
    return dataclasses.field(default=None, metadata={"holds": field})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """What each row of a batch asks for; a field that is None is a stage that is not compiled.

    A field is a scalar or an array that broadcasts to `logits.shape[:-1]`, or a list of such
    scalars along a last axis: `[..., n]`, where token ids are padded with -1, or `[..., vocab]`.
    All are traced: a new value never compiles anew, only another set of fields or other shapes do.
    Each is explained by the function of its rule. In every list of token ids an id at or above the
    vocabulary, however large, makes its row a bad row.

    Attributes:
      unconditional_logits: `[..., vocab]`, of `guided_logits`, with `guidance_scale`; neutral 1.
      allowed: bool `[..., vocab]`, of `allowed_logits`.
      bitmask: int32 `[..., ceil(vocab / 32)]`, of `bitmask_logits`.
      suppressed_token_ids: `[..., n]`, of `suppressed_logits`.
      bad_words: `[..., words, n]`, of `bad_words_logits`, with `bad_word_lengths` `[..., words]`.
      stop_token_ids: `[..., n]`, barred for the first `min_tokens`, of `min_tokens_logits`.
      no_repeat_ngram: at least 0; neutral 0.
      repetition_penalty: finite and above 0; neutral 1.
      presence_penalty: finite; neutral 0.
      frequency_penalty: finite; neutral 0.
      dry_multiplier: finite and at least 0; neutral 0. With `dry_base` (at least 1, 1.75 if not
        given), `dry_allowed_length` (at least 1, 2) and `dry_breakers` `[..., n]` (none).
      bias_token_ids: `[..., n]`, of `biased_logits`, with `bias` `[..., n]`.
      temperature: finite and at least 0; 0 is greedy, 1 neutral.
      temperature_low: finite and at least 0, of `entropy_scaled_logits`, with `temperature_high`
        and `temperature_exponent` (1 if not given); neutral 1 and 1.
      smoothing_factor: finite and at least 0, neutral 0, with `smoothing_curve` (1 if not given).
      top_k: an integer, at least -1; -1, 0 and anything from `vocab` up are neutral.
      top_p: in [0, 1]; 1 is neutral, 0 keeps the token of rank 0.
      min_p: in [0, 1]; 0 is neutral.
      typical_p: in [0, 1]; 1 is neutral.
      epsilon: in [0, 1]; 0 is neutral.
      eta: in [0, 1]; 0 is neutral.
      top_a: in [0, 1]; 0 is neutral.
      top_n_sigma: finite; 0 and below are neutral.
      tail_free: in [0, 1]; 1 is neutral.
      top_h: in [0, 1]; 1 is neutral.
      p_less: bool; False is neutral.
      xtc_probability: in [0, 1], neutral 0, with `xtc_threshold` in [0, 1], neutral above 0.5.

    >>> import numpy as np
    >>> SamplingParams(temperature=0.7, top_p=np.array([0.9, 1.2])).validate()
    Traceback (most recent call last):
    ...
    ValueError: top_p[1] must be in [0, 1], got 1.2
    """

    unconditional_logits: ArrayLike | None = _field(_anything("f", "vocab"))
    guidance_scale: ArrayLike | None = _field(_FINITE)
    allowed: ArrayLike | None = _field(_anything("b", "vocab"))
    bitmask: ArrayLike | None = _field(_anything(_checks.WORDS, "vocab / 32"))
    suppressed_token_ids: ArrayLike | None = _field(_ids("n"))
    bad_words: ArrayLike | None = _field(_ids("words", "n"))
    bad_word_lengths: ArrayLike | None = _field(_integer(0, "words"))
    stop_token_ids: ArrayLike | None = _field(_ids("n"))
    min_tokens: ArrayLike | None = _field(_integer(0))
    no_repeat_ngram: ArrayLike | None = _field(_integer(0))
    repetition_penalty: ArrayLike | None = _field(_real("finite and above 0", lambda x: x > 0))
    presence_penalty: ArrayLike | None = _field(_FINITE)
    frequency_penalty: ArrayLike | None = _field(_FINITE)
    dry_multiplier: ArrayLike | None = _field(_NOT_NEGATIVE)
    dry_base: ArrayLike | None = _field(_real("finite and at least 1", lambda x: x >= 1))
    dry_allowed_length: ArrayLike | None = _field(_integer(1))
    dry_breakers: ArrayLike | None = _field(_ids("n"))
    bias_token_ids: ArrayLike | None = _field(_ids("n"))
    bias: ArrayLike | None = _field(
        _Field("iuf", "finite or -inf", lambda x: x < np.inf, axes=("n",))
    )
    temperature: ArrayLike | None = _field(_NOT_NEGATIVE)
    temperature_low: ArrayLike | None = _field(_NOT_NEGATIVE)
    temperature_high: ArrayLike | None = _field(_NOT_NEGATIVE)
    temperature_exponent: ArrayLike | None = _field(_NOT_NEGATIVE)
    smoothing_factor: ArrayLike | None = _field(_NOT_NEGATIVE)
    smoothing_curve: ArrayLike | None = _field(_real("finite and at least 1", lambda x: x >= 1))
    top_k: ArrayLike | None = _field(_integer(-1))
    top_p: ArrayLike | None = _field(_SHARE)
    min_p: ArrayLike | None = _field(_SHARE)
    typical_p: ArrayLike | None = _field(_SHARE)
    epsilon: ArrayLike | None = _field(_SHARE)
    eta: ArrayLike | None = _field(_SHARE)
    top_a: ArrayLike | None = _field(_SHARE)
    top_n_sigma: ArrayLike | None = _field(_FINITE)
    tail_free: ArrayLike | None = _field(_SHARE)
    top_h: ArrayLike | None = _field(_SHARE)
    p_less: ArrayLike | None = _field(_anything("b"))
    xtc_probability: ArrayLike | None = _field(_SHARE)
    xtc_threshold: ArrayLike | None = _field(_SHARE)

    def validate(self) -> None:
        """Checks the values, which no traced code can, on the host.

        Raises:
          TypeError: a field of the wrong kind of numbers.
          ValueError: a value outside its range; the message names the field, the row and the range.
        """
        for name, holds, value in _given(self):
            _checks.in_range(name, value, holds.kinds, holds.allowed, holds.inside)
            if np.ndim(value) < len(holds.axes):
                shape = ", ".join(holds.axes)
                raise ValueError(f"{name} must have shape [..., {shape}], got {np.shape(value)}")


def at_the_door(params: SamplingParams, logits: Array) -> SamplingParams:
    """The params with every field an array of known dtype, so that no number compiles anew."""
    changes = {name: _array(name, holds, x, logits) for name, holds, x in _given(params)}
    return dataclasses.replace(params, **changes)


def _given(params: SamplingParams) -> list[tuple[str, _Field, Any]]:
    fields = [(f.name, f.metadata["holds"]) for f in dataclasses.fields(params)]
    given = [(name, holds, getattr(params, name)) for name, holds in fields]
    return [(name, holds, value) for name, holds, value in given if value is not None]


def _array(name: str, holds: _Field, value: ArrayLike, logits: Array) -> Any:
    if holds.axes:  # the function of the rule looks at the shape
        array = _checks.held(name, value, holds.kinds)
        return array if holds.kinds in ("f", _checks.WORDS) else _checks.narrowed(array)
    checks = {"b": _checks.flags, "iu": _checks.integer, "iuf": _checks.real}
    return checks[holds.kinds](name, value, logits)
