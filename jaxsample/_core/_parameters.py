"""Parameters of rules and their ranges.

The function of a rule, the field of `SamplingParams` and `validate()` share one `Parameter`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _checks
from jaxsample._core._source import Source


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a rule.

    Attributes:
      kinds: the kinds of its dtypes, as in `_checks.held`.
      allowed: its range, in words.
      inside: returns whether values, NumPy or JAX arrays, are in the range.
      axes: the axes after those of the rows: none, "n" (a list), "vocab" or "vocab / 32".
    """

    kinds: str
    allowed: str
    inside: Callable[[Any], Any]
    axes: tuple[str, ...] = ()

    def __call__(self, name: str, value: ArrayLike, logits: Array) -> Array:
        """Returns the array of an argument, checked and converted."""
        array = _checks.to_array(name, value)
        _checks.not_explicit(name, array, array.ndim - len(self.axes))
        if self.kinds == _checks.WORDS:
            return _checks.bitmask(name, array, logits)
        if "vocab" in self.axes:
            return _checks.per_token(name, array, logits, self.kinds)
        if len(self.axes) == 2:
            return _checks.per_list(name, array, logits, self.kinds)
        if self.axes:
            return _checks.per_item(name, array, logits, self.kinds)
        if array.ndim == logits.ndim and array.shape[-1] == 1:  # a column
            array = array.reshape(array.shape[:-1])
        checks = {"b": _checks.flags, "iu": _checks.integer, "iuf": _checks.real}
        return checks[self.kinds](name, array, logits)

    def narrowed(self, name: str, value: ArrayLike, logits: Array) -> Any:
        """Returns the array of a field of `SamplingParams`; the rules check shapes of lists."""
        if not self.axes:
            return self(name, value, logits)
        array = _checks.held(name, value, self.kinds)
        _checks.not_explicit(name, array, array.ndim - len(self.axes))
        return array if self.kinds in ("f", _checks.WORDS) else _checks.narrowed(array)

    def validate(self, name: str, value: ArrayLike) -> None:
        """Checks values on the host."""
        _checks.in_range(name, value, self.kinds, self.allowed, self.inside)
        if np.ndim(value) < len(self.axes):
            shape = ", ".join(self.axes)
            raise ValueError(f"{name} must have shape [..., {shape}], got {np.shape(value)}")

    def of_rows(self, value: ArrayLike, x: Source) -> tuple[Array, Array]:
        """Returns one value a row, without a gradient, and where it is outside the range."""
        value = x.per_row(lax.stop_gradient(value))
        return value, ~self.inside(value)


class Field(NamedTuple):
    """A field of `SamplingParams`.

    Attributes:
      parameter: its range.
      neutral: the value that disables its rule; for a list, the value of each element.
      rule: the name of the stage that reads it.
    """

    parameter: Parameter
    neutral: Any
    rule: str


def _integer(least: int, *axes: str) -> Parameter:
    return Parameter("iu", f"at least {least}", lambda x: x >= least, axes)


def _real(allowed: str, inside: Callable[[Any], Any]) -> Parameter:
    return Parameter("iuf", allowed, lambda x: inside(x) & (x < np.inf))


def _anything(kinds: str, *axes: str) -> Parameter:
    return Parameter(kinds, "anything", lambda x: np.full(x.shape, True), axes)


def _ids(*axes: str) -> Parameter:
    # The vocabulary is not known here; the rules compare the ids with it.
    return Parameter("iu", f"below {_checks.MAX_VOCAB}", lambda x: x < _checks.MAX_VOCAB, axes)


def _bias(*axes: str) -> Parameter:
    return Parameter("iuf", "finite or -inf", lambda x: x < np.inf, axes)


FINITE = _real("finite", lambda x: x > -np.inf)
SHARE = _real("in [0, 1]", lambda x: (x >= 0) & (x <= 1))
NOT_NEGATIVE = _real("finite and at least 0", lambda x: x >= 0)
INSIDE_0_1 = _real("in (0, 1)", lambda x: (x > 0) & (x < 1))
POSITIVE = _real("finite and above 0", lambda x: x > 0)
FROM_1 = _real("finite and at least 1", lambda x: x >= 1)
BIAS = _bias("n")
WORD_BIAS = _bias("words")
TOP_K = _integer(-1)
COUNT = _integer(0)
COUNT_FROM_1 = _integer(1)
WORD_LENGTHS = _integer(0, "words")
COUNTS = _anything("iu", "vocab")
TOKENS = _anything("iu", "n")
FLAG = _anything("b")
IDS = _ids("n")
TOKEN_ID = Parameter(
    "iu",
    f"at least -1 and below {_checks.MAX_VOCAB}",
    lambda x: (x >= -1) & (x < _checks.MAX_VOCAB),
)
BAD_WORDS = _ids("words", "n")
LOGITS = _anything("f", "vocab")
MASK = _anything("b", "vocab")
BITMASK = _anything(_checks.WORDS, "vocab / 32")


def optional_ids(name: str, value: ArrayLike | None, logits: Array) -> Array:
    """Returns the array of a list of ids, empty for None."""
    return IDS(name, np.zeros(0, np.int32) if value is None else value, logits)
