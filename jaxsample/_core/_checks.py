"""Checks of dtypes and shapes, which convert arguments to arrays of known dtype and shape.

Wrong shapes and dtypes raise an error at trace time that names the argument. The checks assert
relations between shapes, never a fixed rank, so that the same functions accept one row, a batch and
`vmap`. Python numbers become arrays of one dtype, so that a value never causes a recompilation.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core._bits import WORD

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)
MAX_VOCAB = 2**21
"""The largest vocabulary for which the mass of a row cannot overflow."""

WORDS = "w"
"""The kind of packed masks in `held`, in addition to NumPy's letters for kinds of dtypes."""

_KINDS = {
    "b": "bool",
    "i": "integers",
    "u": "integers",
    "f": "real numbers",
    WORDS: "int32 or uint32 words",
}


def logits(name: str, value: ArrayLike) -> Array:
    """Returns logits `[..., vocab]`, float32, bfloat16 or float16."""
    array = to_jax(name, value)
    if array.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16 or float16, got {array.dtype}")
    if array.ndim < 1 or not 1 <= array.shape[-1] <= MAX_VOCAB:
        raise ValueError(
            f"{name} must have shape [..., vocab] with vocab in [1, {MAX_VOCAB}], got {array.shape}"
        )
    not_explicit(name, array, array.ndim - 1)
    return array


def not_explicit(name: str, value: Array | np.ndarray, rows: int) -> None:
    """Raises an error for an array `[*rows, ...]` that is sharded over explicit mesh axes."""
    if not isinstance(value, Array):
        return
    sharding = jax.typeof(value).sharding
    if any(axis is not None for axis in sharding.spec):
        spec = jax.sharding.PartitionSpec(*sharding.spec[:rows])
        raise ValueError(
            f"{name} must not be sharded over explicit mesh axes, got {sharding.spec} over a mesh "
            f"with axes {sharding.mesh.axis_names}: call jax.sharding.auto_axes(function, "
            f"out_sharding=jax.sharding.NamedSharding(mesh, {spec}))(...), with the mesh and the "
            f"axes of the results; inside jax.set_mesh(mesh) also out_sharding={spec}"
        )


def to_array(name: str, value: Any) -> Array | np.ndarray:
    """Returns a value as an array: an array, or a list of numbers or arrays."""
    if isinstance(value, Array):
        return value
    of_jax = any(isinstance(leaf, Array) for leaf in jax.tree.leaves(value))
    try:
        if of_jax or hasattr(value, "__jax_array__"):
            return jnp.asarray(value)
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{name} must be an array, or a list whose rows are of one length; token ids are "
            "padded with -1"
        ) from error


def to_jax(name: str, value: Any) -> Array:
    """Returns a value as a JAX array, as `to_array`."""
    array = to_array(name, value)
    if isinstance(array, np.ndarray) and array.dtype.kind in "OSU":
        raise TypeError(f"{name} must hold numbers, got {value!r:.60}")
    return jnp.asarray(array)


def real(name: str, value: ArrayLike, rows: Array) -> Array:
    """Returns a real parameter, float32, a scalar or broadcastable to the rows `[..., vocab]`."""
    return _parameter(name, value, rows, "iuf", jnp.float32, "a real number")


def integer(name: str, value: ArrayLike, rows: Array) -> Array:
    """Returns an integer parameter, int32, a scalar or broadcastable to the rows."""
    return _parameter(name, value, rows, "iu", jnp.int32, "an integer")


def tokens(name: str, value: ArrayLike, rows: Array) -> Array:
    """Returns token ids, int32, one a row of `rows [..., vocab]`."""
    array = integer(name, value, rows)
    shape = rows.shape[:-1]
    chex.assert_shape(
        array,
        shape,
        custom_message=f"{name} must hold one token id a row, of shape {shape}, got {array.shape}",
        exception_type=ValueError,
    )
    return array


def integers(name: str, value: ArrayLike) -> Array:
    """Returns integers of any shape, int32."""
    return narrowed(held(name, value, "iu"))


def text(name: str, value: ArrayLike) -> Array:
    """Returns token ids `[..., L]`, int32."""
    array = integers(name, value)
    if array.ndim == 0:
        raise ValueError(f"{name} must have shape [..., L], got ()")
    return array


def flags(name: str, value: ArrayLike, rows: Array) -> Array:
    """Returns a bool parameter, a scalar or broadcastable to the rows of `rows [..., vocab]`."""
    return _parameter(name, value, rows, "b", jnp.bool_, "a bool")


def instance(name: str, value: object, expected: type) -> None:
    """Raises an error for a value of another type."""
    if not isinstance(value, expected):
        raise TypeError(f"{name} must be of type {expected.__name__}, got {type(value).__name__}")


def implementation(name: str, value: Any) -> None:
    """Raises an error for a value that is not the name of an implementation."""
    if value not in (None, "xla", "pallas"):
        raise ValueError(f"{name} must be None, 'xla' or 'pallas', got {value!r}")


def static_integer(name: str, value: Any, least: int, most: int) -> int:
    """Returns a static integer in a range."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be a Python integer, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be in [{least}, {most}], got {value}")
    return int(value)


def per_token(name: str, value: ArrayLike, rows: Array, kinds: str) -> Array:
    """Returns an array `[..., vocab]`, broadcast to the rows of `rows`, as `per_item`."""
    return per_item(name, value, rows, kinds, rows.shape[-1])


def per_item(
    name: str, value: ArrayLike, rows: Array, kinds: str, width: int | None = None
) -> Array:
    """Returns an array `[..., width]`, or of any width, broadcast to the rows of `rows`.

    `kinds` are those of `held`. Integers become int32 and real numbers float32.
    """
    array = held(name, value, kinds)
    lead = rows.shape[:-1]
    if array.ndim < 1 or (width is not None and array.shape[-1] != width):
        wanted = "n" if width is None else width
        raise ValueError(f"{name} must have shape [..., {wanted}], got {array.shape}")
    chex.assert_is_broadcastable(
        array.shape[:-1],
        lead,
        custom_message=(
            f"{name} must have one list for all rows or one a row of shape {lead}, got "
            f"{array.shape}"
        ),
        exception_type=ValueError,
    )
    return jnp.broadcast_to(narrowed(array), (*lead, array.shape[-1]))


def per_list(name: str, value: ArrayLike, rows: Array, kinds: str) -> Array:
    """Returns an array `[..., lists, n]`, broadcast to the rows of `rows`, as `per_item`."""
    array = to_array(name, value)
    if array.ndim < 2:
        raise ValueError(f"{name} must have shape [..., {name}, n], got {array.shape}")
    *lead, count, longest = array.shape
    flat = per_item(name, array.reshape(*lead, count * longest), rows, kinds)
    return flat.reshape(*flat.shape[:-1], count, longest)


def bitmask(name: str, value: ArrayLike, rows: Array) -> Array:
    """Returns packed masks, int32 `[..., ceil(vocab / 32)]`, one a row of `rows [..., vocab]`."""
    words = held(name, value, WORDS)
    return per_item(name, words.view(np.int32), rows, "i", -(-rows.shape[-1] // WORD))


def key_array(name: str, value: Any) -> Array:
    """Returns typed keys from typed or raw ones."""
    array = to_jax(name, value)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return array
    words = jax.random.key_data(jax.random.key(0)).shape[-1]
    if array.dtype != jnp.uint32 or array.shape[-1:] != (words,):
        raise TypeError(
            f"{name} must be a jax.random.key or raw uint32 keys of shape [..., {words}], "
            f"got {array.dtype} of shape {array.shape}; jax.random.key and request_keys make keys "
            "of integer seeds"
        )
    return jax.random.wrap_key_data(array)


def keys(name: str, value: Any, rows: Array) -> Array:
    """Returns threefry keys, one a row: a single key is split over the rows.

    Only threefry generates the same bits with and without `vmap`, so a key of another
    implementation is converted to a threefry key made of its first two words.
    """
    shape, array = rows.shape[:-1], key_array(name, value)
    if array.shape not in ((), shape):
        raise ValueError(
            f"{name} must be one key, or keys of shape {shape}, one a row; got shape {array.shape}"
        )
    if jax.random.key_impl(array) != "threefry2x32":
        array = jax.random.wrap_key_data(jax.random.key_data(array)[..., :2], impl="threefry2x32")
    return array if array.shape == shape else jax.random.split(array, shape)


def in_range(
    name: str,
    value: ArrayLike,
    kinds: str,
    allowed: str,
    inside: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Raises an error, with index and range, for a value on the host that is not `inside`."""
    array = np.asarray(held(name, value, kinds))
    with np.errstate(over="ignore"):  # in the dtype of the computation, where it may be infinite
        computed = array.astype(np.float32) if "f" in kinds else array
    for row in np.argwhere(~inside(computed)):
        place = f"[{', '.join(map(str, row))}]" if array.ndim else ""
        raise ValueError(f"{name}{place} must be {allowed}, got {array[tuple(row)]}")


def mask(name: str, value: ArrayLike) -> Array:
    """Returns a bool mask `[..., vocab]`."""
    array = held(name, value, "b")
    if array.ndim < 1:
        raise ValueError(f"{name} must have shape [..., vocab], got {array.shape}")
    return jnp.asarray(array)


def held(name: str, value: ArrayLike, kinds: str) -> Array | np.ndarray:
    """Returns an array of an allowed kind.

    `kinds` are NumPy's letters: b for bool, i and u for integers, f for real numbers; or `WORDS`.
    """
    array = to_array(name, value)
    is_word = array.dtype in (np.int32, np.uint32)
    if not (is_word if kinds == WORDS else kind(array) in kinds):
        letters = "f" if kinds == "iuf" else kinds
        expected = " or ".join(dict.fromkeys(_KINDS[letter] for letter in letters))
        raise TypeError(f"{name} must hold {expected}, got {array.dtype}")
    return array


def kind(array: Array | np.ndarray) -> str:
    """Returns NumPy's letter for the kind of a dtype; bfloat16 is a float."""
    return "f" if array.dtype in FLOATS else np.dtype(array.dtype).kind


def narrowed(array: Array | np.ndarray) -> Array:
    """Returns an array of bool, int32 or float32.

    An integer that does not fit in 32 bits is clipped, so an id beyond the vocabulary remains
    beyond it.
    """
    return _narrow(array, {"b": jnp.bool_, "f": jnp.float32}.get(kind(array), jnp.int32))


def to_rows(parameter: Array, rows: Array) -> Array:
    """Returns a parameter broadcast to one value a row."""
    return jnp.broadcast_to(parameter, rows.shape[:-1])


def to_elements(value: Array, x: Array) -> Array:
    """Returns a value a row `[...]` with trailing axes, to broadcast to elements `x [..., *]`."""
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def _parameter(
    name: str, value: ArrayLike, rows: Array, kinds: str, dtype: Any, expected: str
) -> Array:
    array = to_array(name, value)
    if kind(array) not in kinds:
        raise TypeError(f"{name} must be {expected}, a scalar or one a row, got {array.dtype}")
    chex.assert_is_broadcastable(
        array.shape,
        rows.shape[:-1],
        custom_message=(
            f"{name} must be a scalar or broadcast to one value a row, to shape {rows.shape[:-1]}, "
            f"got {array.shape}"
        ),
        exception_type=ValueError,
    )
    return _narrow(array, dtype)


def _narrow(array: Array | np.ndarray, dtype: Any) -> Array:
    if dtype == jnp.int32 and array.dtype in (np.int64, np.uint64, np.uint32):
        lowest = 0 if kind(array) == "u" else -(2**31)
        array = array.clip(lowest, 2**31 - 1)
    return jnp.asarray(array, dtype)
