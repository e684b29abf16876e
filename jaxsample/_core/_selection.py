"""The k largest of some values, by a sort, or by a selection on TPUs, where a sort is slow.

The selection finds the k-th largest value by bisection. It moves the values at or above it together
by products with matrices of zeros and ones. These are exact, since bytes are bfloat16 numbers.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from jaxsample._core._sortable import from_sortable, to_sortable

_GROUP = 32
"""The number of values that are moved as one row of a matrix."""


def top_k(raw: Array, k: int, value: Callable[[Array], Array]) -> tuple[Array, Array, Array]:
    """Returns the k largest float32 `value(raw)` of `[..., n]` in order, equal ones by position.

    Returns:
      The values, their positions and their raw values.
    """

    def by_sort(raw: Array) -> tuple[Array, Array, Array]:
        values, positions = lax.top_k(value(raw), k)
        return values, positions, jnp.take_along_axis(raw, positions, axis=-1)

    def by_selection(raw: Array) -> tuple[Array, Array, Array]:
        sortable = to_sortable(value(raw))
        positions, raw = _move(_first(sortable, _kth_largest(sortable, k), k), k, raw)
        falling = ~to_sortable(value(raw))
        falling, positions, raw = lax.sort((falling, positions, raw), dimension=-1, num_keys=1)
        return from_sortable(~falling), positions, raw

    if raw.shape[-1] <= _GROUP:
        return by_sort(raw)
    return lax.platform_dependent(raw, tpu=by_selection, default=by_sort)


def places_of_top_k(x: Array, k: int) -> tuple[Array, Array]:
    """Returns the ascending positions of the k largest of float32 `[..., n]`, and the k-th one."""

    def by_sort(x: Array) -> tuple[Array, Array]:
        values, positions = lax.top_k(x, k)
        return jnp.sort(positions, axis=-1), values[..., -1]

    def by_selection(x: Array) -> tuple[Array, Array]:
        sortable = to_sortable(x)
        least = _kth_largest(sortable, k)
        (positions,) = _move(_first(sortable, least, k), k)
        return positions, from_sortable(least)

    return lax.platform_dependent(x, tpu=by_selection, default=by_sort)


def _first(sortable: Array, least: Array, k: int) -> Array:
    """Marks the k largest sortable integers, ties by lower position, bool `[..., groups, size]`."""
    least = least[..., None, None]
    sortable = _grouped(sortable, jnp.iinfo(sortable.dtype).min)
    above, equal = sortable > least, sortable == least
    needed = k - jnp.sum(above, axis=(-2, -1), keepdims=True, dtype=jnp.int32)
    return above | (equal & (_running(equal) <= needed))


def _move(kept: Array, k: int, *carried: Array) -> list[Array]:
    """Returns the positions of the k kept of `[..., groups, size]`, ascending, and the elements."""
    rank = _running(kept)
    last = rank[..., -1]  # of each group
    before = jnp.pad(last, [(0, 0)] * (last.ndim - 1) + [(1, 0)])[..., :-1]

    bytes_ = [byte for x in carried for byte in _bytes(_grouped(x, 0))]
    groups = jnp.stack([jnp.where(kept, rank - before[..., None], 0), *bytes_], axis=-2)
    wanted = _along(1, k, kept.ndim, -2)
    passed = last[..., None, :] < wanted
    group = jnp.sum(passed, axis=-1, dtype=jnp.int32)
    wanted -= jnp.max(jnp.where(passed, last[..., None, :], 0), axis=-1, keepdims=True)
    moved = _take_groups(groups, group)
    hit = moved[..., 0, :] == wanted
    place = jnp.max(jnp.where(hit, _along(0, _GROUP, hit.ndim, -1), 0), axis=-1)
    found = jnp.max(jnp.where(hit[..., None, :], moved[..., 1:, :], 0), axis=-1)
    return [group * _GROUP + place, *_from_bytes(found, carried)]


def _kth_largest(sortable: Array, k: int) -> Array:
    """Returns the k-th largest sortable integer of each row.

    Each iteration finds two bits, since it is one exchange between the devices that share a row.
    """
    digits = _along(1, 3, sortable.ndim, -1).astype(jnp.uint32)

    def lower(number: Array | int, least: Array) -> Array:  # of unsigned integers
        shift = jnp.uint32(30 - 2 * number)  # a plain int where jit is disabled
        more = least[..., None] | (digits << shift)
        reached = sortable[..., None, :] >= _signed(more)[..., None]
        enough = jnp.sum(reached, axis=-1, dtype=jnp.int32) >= k
        return least | (jnp.sum(enough, axis=-1, dtype=jnp.uint32) << shift)

    start = jnp.zeros_like(sortable[..., 0], jnp.uint32)
    return _signed(lax.fori_loop(np.int32(0), np.int32(16), lower, start))  # in 64-bit mode, too


def _signed(x: Array) -> Array:
    """Returns unsigned integers as signed ones, in the same order."""
    return lax.bitcast_convert_type(x ^ np.uint32(1 << 31), jnp.int32)


def _grouped(x: Array, filler: float) -> Array:
    """Reshapes `[..., n]` to `[..., groups, size]`."""
    widths = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % _GROUP)]
    x = jnp.pad(x, widths, constant_values=jnp.asarray(filler, x.dtype))
    return x.reshape(*x.shape[:-1], x.shape[-1] // _GROUP, _GROUP)


def _running(mask: Array) -> Array:
    """Returns the inclusive running counts of True in `[..., groups, size]`."""
    inside, groups = _product(mask, np.tri(_GROUP).T), mask.shape[-2]
    before = _product(inside[..., -1], np.tri(groups, k=-1).T)
    return inside + before[..., None]


def _take_groups(groups: Array, index: Array) -> Array:
    """Returns the groups `[..., groups, m, size]` of small numbers at indices `[..., k]`."""
    *lead, number, m, size = groups.shape
    chosen = index[..., None] == _along(0, number, index.ndim + 1, -1)
    # bfloat16 sums, so that devices exchange two bytes a number.
    taken = _product(chosen, groups.reshape(*lead, number, m * size), jnp.bfloat16)
    return taken.reshape(*index.shape, m, size)


def _product(a: Array, b: Array | np.ndarray, sums: DTypeLike = jnp.float32) -> Array:
    """Returns the product, int32, of matrices of integers from 0 to 255; `sums` are exact."""
    a, b = (jnp.asarray(x).astype(jnp.bfloat16) for x in (a, b))
    return jnp.matmul(a, b, preferred_element_type=sums).astype(jnp.int32)


def _along(start: int, number: int, ndim: int, axis: int) -> Array:
    """Returns consecutive integers along one axis of several."""
    shape = [1] * ndim
    shape[axis] = number
    return jnp.arange(start, start + number, dtype=jnp.int32).reshape(shape)


def _bytes(x: Array) -> list[Array]:
    """Returns the bytes of each number, the lowest first."""
    width = 8 * x.dtype.itemsize
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    return [((bits >> low) & 255).astype(jnp.int32) for low in range(0, width, 8)]


def _from_bytes(found: Array, like: Sequence[Array]) -> list[Array]:
    """Returns the arrays from the bytes `[..., bytes]` of their elements."""
    numbers, start = [], 0
    for x in like:
        width = x.dtype.itemsize
        shifts = 8 * _along(0, width, found.ndim, -1)
        bits = jnp.sum(found[..., start : start + width] << shifts, axis=-1, dtype=jnp.int32)
        unsigned = lax.bitcast_convert_type(bits, jnp.uint32).astype(f"uint{8 * width}")
        numbers.append(lax.bitcast_convert_type(unsigned, x.dtype))
        start += width
    return numbers
