"""Public functions: their arguments are checked and converted, then a jitted program is called.

The range of a parameter is stated once, by a `Parameter`: the function of its rule, the field of
`SamplingParams` and `validate()` share it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample import _checks, _chunks
from jaxsample._chunks import Source
from jaxsample._kernels.choice import check

P = ParamSpec("P")
R = TypeVar("R")

Converter = Callable[[str, Any, Array], Any]
"""Takes the name and value of an argument and the logits, returns an array or a static value."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a rule.

    Attributes:
      kinds: of its dtypes, as `_checks.held` has them.
      allowed: its range, in words.
      inside: whether values, of NumPy or JAX, lie in the range.
      axes: the axes behind the rows: none, "n" (a list), "vocab" or "vocab / 32".
    """

    kinds: str
    allowed: str
    inside: Callable[[Any], Any]
    axes: tuple[str, ...] = ()

    def __call__(self, name: str, value: ArrayLike, logits: Array) -> Array:
        """Returns the array that programs take."""
        if self.kinds == _checks.WORDS:
            return _checks.bitmask(name, value, logits)
        if "vocab" in self.axes:
            return _checks.per_token(name, value, logits, self.kinds)
        if len(self.axes) == 2:
            return _checks.per_list(name, value, logits, self.kinds)
        if self.axes:
            return _checks.per_item(name, value, logits, self.kinds)
        checks = {"b": _checks.flags, "iu": _checks.integer, "iuf": _checks.real}
        return checks[self.kinds](name, value, logits)

    def narrowed(self, name: str, value: ArrayLike, logits: Array) -> Any:
        """Returns a field of `SamplingParams`, of which the function of a rule sees the shape."""
        if not self.axes:
            return self(name, value, logits)
        array = _checks.held(name, value, self.kinds)
        return array if self.kinds in ("f", _checks.WORDS) else _checks.narrowed(array)

    def validate(self, name: str, value: ArrayLike) -> None:
        """Checks values on the host."""
        _checks.in_range(name, value, self.kinds, self.allowed, self.inside)
        if np.ndim(value) < len(self.axes):
            shape = ", ".join(self.axes)
            raise ValueError(f"{name} must have shape [..., {shape}], got {np.shape(value)}")

    def of_rows(self, value: ArrayLike, x: Source) -> tuple[Array, Array]:
        """Returns one value a row, without a gradient, and where it lies outside the range."""
        value = x.per_row(lax.stop_gradient(value))
        return value, ~self.inside(value)


def _integer(least: int, *axes: str) -> Parameter:
    return Parameter("iu", f"at least {least}", lambda x: x >= least, axes)


def _real(allowed: str, inside: Callable[[Any], Any]) -> Parameter:
    return Parameter("iuf", allowed, lambda x: inside(x) & (x < np.inf))


def _anything(kinds: str, *axes: str) -> Parameter:
    return Parameter(kinds, "anything", lambda x: x == x, axes)


def _ids(*axes: str) -> Parameter:
    # The vocabulary is not known here: those below it are found bad with the logits.
    return Parameter("iu", f"below {_checks.MAX_VOCAB}", lambda x: x < _checks.MAX_VOCAB, axes)


FINITE = _real("finite", lambda x: x > -np.inf)
SHARE = _real("in [0, 1]", lambda x: (x >= 0) & (x <= 1))
NOT_NEGATIVE = _real("finite and at least 0", lambda x: x >= 0)
INSIDE_0_1 = _real("in (0, 1)", lambda x: (x > 0) & (x < 1))
POSITIVE = _real("finite and above 0", lambda x: x > 0)
FROM_1 = _real("finite and at least 1", lambda x: x >= 1)
BIAS = Parameter("iuf", "finite or -inf", lambda x: x < np.inf, ("n",))
TOP_K = _integer(-1)
COUNT = _integer(0)
COUNT_FROM_1 = _integer(1)
WORD_LENGTHS = _integer(0, "words")
COUNTS = _anything("iu", "vocab")
TOKENS = _anything("iu", "n")
FLAG = _anything("b")
IDS = _ids("n")
BAD_WORDS = _ids("words", "n")
LOGITS = _anything("f", "vocab")
MASK = _anything("b", "vocab")
BITMASK = _anything(_checks.WORDS, "vocab / 32")


def keys(name: str, value: Any, logits: Array) -> Array:
    """Converts one key, or keys of the rows, to one a row."""
    return _checks.keys(value, logits, name)


def token(name: str, value: Any, logits: Array) -> Array:
    """Converts token ids, one a row."""
    return _checks.tokens(name, value, logits)


def static_integer(least: int, most: int) -> Converter:
    """Makes the converter of a static integer in a range."""
    return lambda name, value, _: _checks.static_integer(name, value, least, most)


def public(
    *,
    rows: str = "logits",
    convert_rows: Callable[[Any, str], Array] = _checks.logits,
    **converters: Converter,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a public function of a body that is jitted.

    Logits and `axis_name` and `implementation`, where the function has them, are checked, and
    the arguments that are named here are converted, before the body is traced: a Python number
    never compiles anew, and an integer of 64 bits is not cut. Keyword-only arguments are static.

    Args:
      rows: the name of the argument that holds the logits, or another array `[..., n]`.
      convert_rows: its converter.
      **converters: of the other arguments, by name.
    """

    def decorated(body: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(body)
        static = [p.name for p in signature.parameters.values() if p.kind == p.KEYWORD_ONLY]
        program = jax.jit(body, static_argnames=static)

        @functools.wraps(body)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            logits = given[rows] = convert_rows(given[rows], rows)
            _chunks.shards(logits, given.get("axis_name"))
            check(given.get("implementation"))
            for name, convert in converters.items():
                given[name] = convert(name, given[name], logits)
            return program(*bound.args, **bound.kwargs)

        return checked

    return decorated
