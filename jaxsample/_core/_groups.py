"""Further work for only some rows of a batch.

The rows are gathered in groups of a fixed size, one group after the other. The logits of a group
are copied once and stay in cache for all passes. If devices share a batch or a row, gathering rows
would move logits between them: then the work is done for all rows, if any row needs it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsample._core._lowering import Function, at_lowering
from jaxsample._core._vmap import rowwise

_SIZES = {"cpu": 4, "tpu": 8}
_SIZE = 32
"""The number of rows of a group, by platform and for other platforms: few enough for the cache, and
enough to use the whole device. Only the one of a CPU was measured (bench/NOTES.md).
"""

T = TypeVar("T")


def update_rows(
    function: Callable[..., T], needed: Array, results: T, shared: bool, *args: Any
) -> T:
    """Returns `results` with those of `function(needed, *args)` in the needed rows.

    Args:
      function: `function(needed, *args, grouped=...)`, which computes each row independently.
        `grouped` is static, whether it gets few rows and may materialise arrays of their size.
      needed: bool `[...]`.
      results: a pytree of arrays whose leading axes are those of the rows.
      shared: static, whether several devices share each row.
      *args: pytrees of arrays whose leading axes are those of the rows.
    """

    def all_rows(needed: Array, results: T, *args: Any, grouped: bool = False) -> tuple[Array, ...]:
        def computed() -> T:
            return select(needed, function(needed, *args, grouped=grouped), results)

        return tuple(jax.tree.leaves(lax.cond(jnp.any(needed), computed, lambda: results)))

    @rowwise
    def updated(needed: Array, results: T, *args: Any) -> T:
        static = all(isinstance(size, int) for size in needed.shape)
        number = math.prod(needed.shape)

        def chosen(platform: str, is_alone: bool) -> Function | None:
            if not is_alone:
                return None
            size = _SIZES.get(platform, _SIZE)
            if number <= size:
                return functools.partial(all_rows, grouped=True)
            return functools.partial(_in_groups, function, size)

        if shared or not static:
            leaves = all_rows(needed, results, *args)
        else:
            like = tuple(jax.tree.leaves(results))
            leaves = at_lowering(chosen, all_rows, needed, results, *args, like=like)
        return jax.tree.unflatten(jax.tree.structure(results), leaves)

    return updated(needed, results, *args)


def _in_groups(
    function: Callable[..., Any], size: int, needed: Array, results: Any, *args: Any
) -> tuple[Array, ...]:
    lead = needed.shape
    needed, results, args = jax.tree.map(
        lambda a: a.reshape(-1, *a.shape[len(lead) :]), (needed, results, args)
    )
    rows = np.arange(needed.size, dtype=np.int32)

    def update(state: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
        _, needed, results = state
        number = jnp.cumsum(needed, dtype=jnp.int32)
        here = needed[None] & (number[None] == np.arange(1, size + 1, dtype=np.int32)[:, None])
        index = jnp.min(jnp.where(here, rows[None], needed.size), axis=-1)
        # Materialised once: XLA would fuse the gather into each pass and read rows from memory.
        group = lax.optimization_barrier(jax.tree.map(lambda a: _take(a, index), args))
        new = function(index < needed.size, *group, grouped=True)
        needed &= number > size
        return (
            jnp.any(needed),
            needed,
            jax.tree.map(lambda old, new: old.at[index].set(new, mode="drop"), results, new),
        )

    # The condition is part of the state: a GPU would compute it in a kernel of its own.
    start = jnp.any(needed), needed, results
    *_, results = lax.while_loop(lambda state: state[0], update, start)
    return tuple(a.reshape(*lead, *a.shape[1:]) for a in jax.tree.leaves(results))


def _take(a: Array, index: Array) -> Array:
    """Returns rows by index, clipped at the end."""

    def gathered(a: Array, index: Array) -> Array:
        return jnp.take(a, index, axis=0, mode="clip")

    def sliced(a: Array, index: Array) -> Array:  # a gather would copy all rows
        return jnp.concatenate([lax.dynamic_slice_in_dim(a, i, 1) for i in index])

    if a.ndim == 1:
        return gathered(a, index)
    return lax.platform_dependent(a, index, tpu=sliced, default=gathered)


def select(which: Array, a: Any, b: Any) -> Any:
    """Returns `a` in rows `[...]` where `which` is True, else `b`; both are pytrees of arrays."""

    def chosen(a: Array, b: Array) -> Array:
        return jnp.where(which.reshape(*which.shape, *(1,) * (a.ndim - which.ndim)), a, b)

    return jax.tree.map(chosen, a, b)
