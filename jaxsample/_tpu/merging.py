"""The k largest of many integers, by Batcher's odd-even merge sort with one row in each lane.

A vector has 8 elements of each of 128 rows, and elements are compared vector by vector. So eight
sorts of a row run in parallel, one in each sublane, and their results are merged at the end.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
_SUBLANES = 8


class _Runs(NamedTuple):
    """Sorted runs, `[runs, length, sublanes, rows]`: the largest first, equal ones by id."""

    keys: Array
    ids: Array


def first(keys: Array, ids: Array, k: int, *, interpret: bool) -> tuple[Array, Array]:
    """Returns the k largest keys in order, equal ones by lower id, and their ids.

    Args:
      keys: int32 `[rows, n]`, with n a power of two and at least 8 k.
      ids: int32 `[rows, n]`.
      k: a power of two, at least 8.
      interpret: whether to run without a TPU.

    Returns:
      int32 `[rows, k]` each.
    """
    rows, number = keys.shape
    together = min(rows, LANES)

    def spec(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((together, size), lambda i: (i, 0))

    return pl.pallas_call(
        functools.partial(_body, k=k),
        grid=(pl.cdiv(rows, together),),
        in_specs=[spec(number)] * 2,
        out_specs=[spec(k)] * 2,
        out_shape=jax.eval_shape(lambda *given: [x[:, :k] for x in given], keys, ids),
        interpret=interpret,
    )(keys, ids)


def _body(keys_ref: Any, ids_ref: Any, first_keys_ref: Any, first_ids_ref: Any, *, k: int) -> None:
    runs = _Runs(_runs_of_one(keys_ref), _runs_of_one(ids_ref))
    while runs.keys.shape[0] > 1:
        runs = _merged(runs, k)
    for distance in (4, 2, 1):  # of sublanes
        rolled = (pltpu.roll(x, distance, 2) for x in runs)
        runs = _merged(_Runs(*map(_joined, runs, rolled)), k)
    for ref, x in zip((first_keys_ref, first_ids_ref), runs, strict=True):
        ref[...] = _sublane_by_sublane(x[0]).T


def _runs_of_one(ref: Any) -> Array:
    rows, number = ref.shape
    columns = [ref[:, pl.ds(start, LANES)].T for start in range(0, number, LANES)]
    return jnp.concatenate(columns, axis=0).reshape(-1, 1, _SUBLANES, rows)


def _merged(runs: _Runs, limit: int) -> _Runs:
    """Merges pairs of runs, and returns the first `limit` elements of each."""
    _, length, *vector = runs.keys.shape
    runs = _Runs(*(x.reshape(-1, 2 * length, *vector) for x in runs))
    runs = _compared(runs, 0, length)
    distance = length // 2
    while distance:
        if length == limit:  # later elements cannot be among the first `limit`
            runs = _Runs(*(x[:, : length + distance] for x in runs))
        runs = _compared(runs, distance, distance)
        distance //= 2
    return _Runs(*(x[:, :limit] for x in runs))


def _compared(runs: _Runs, start: int, distance: int) -> _Runs:
    """Compares and swaps elements at a distance, in consecutive pairs of stretches from `start`."""
    number, length, *vector = runs.keys.shape
    stop = length - (length - start) % (2 * distance)

    def pairs(x: Array) -> tuple[Array, Array]:
        x = x[:, start:stop].reshape(number, -1, 2, distance, *vector)
        return x[:, :, 0], x[:, :, 1]

    (key, other), (id_, other_id) = map(pairs, runs)
    ordered = (key > other) | ((key == other) & (id_ < other_id))

    def put(x: Array, a: Array, b: Array) -> Array:
        swapped = jnp.stack([jnp.where(ordered, a, b), jnp.where(ordered, b, a)], axis=2)
        swapped = swapped.reshape(number, -1, *vector)
        return _joined(x[:, :start], swapped, x[:, stop:], axis=1)

    return _Runs(put(runs.keys, key, other), put(runs.ids, id_, other_id))


def _joined(*parts: Array, axis: int = 0) -> Array:
    return jnp.concatenate([x for x in parts if x.size], axis=axis)


def _sublane_by_sublane(x: Array) -> Array:
    """Returns `[n, sublanes, rows]`, which is equal in all sublanes, as `[n, rows]`."""
    number, _, rows = x.shape
    x = x.reshape(-1, _SUBLANES, _SUBLANES, rows)
    place, sublane = (lax.broadcasted_iota(jnp.int32, x.shape, axis) for axis in (1, 2))
    return jnp.sum(jnp.where(place == sublane, x, 0), axis=1).reshape(number, rows)
