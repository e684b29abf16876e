"""`vmap` of a batched function as the same function with one more leading axis."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

_P = ParamSpec("_P")
_R = TypeVar("_R")


def rowwise(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Marks a function whose array arguments all have the axes of the rows as leading axes.

    `vmap` converts a `lax.cond` on a mapped predicate to a select, which would do the work of both
    branches for every row. Here the mapped axis becomes a leading axis instead.
    """
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: Any, *args: Any) -> Any:
        def lead(batched: bool, x: jax.Array) -> jax.Array:
            return x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))

        out = mapped(*jax.tree.map(lead, in_batched, list(args)))
        return out, jax.tree.map(lambda _: True, out)

    return functools.wraps(function)(mapped)
