"""A choice between functions at lowering, by the platform and the devices of a program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import mlir

Function = Callable[..., tuple[Array, ...]]
Choice = Callable[[str, bool], Function | None]
"""Takes the platform and whether the program runs on each device independently. Returns a function,
or None for the default."""

_choice = Primitive("jaxsample_choice")
_choice.multiple_results = True


def at_lowering(
    choose: Choice, default: Function, *args: Any, like: tuple[Array, ...] | None = None
) -> tuple[Array, ...]:
    """Calls the function that `choose` returns for the program, with the same results as `default`.

    It is not differentiable. `like` are arrays with the shapes and dtypes of the results. Without
    them the default is traced to find these, even if another function is chosen.
    """
    leaves, tree = jax.tree.flatten(args)

    def of_leaves(function: Function) -> Function:
        return lambda *leaves: function(*jax.tree.unflatten(tree, leaves))

    def chosen(platform: str, is_alone: bool) -> Function | None:
        function = choose(platform, is_alone)
        return None if function is None else of_leaves(function)

    avals = None if like is None else tuple(map(jax.typeof, like))
    return tuple(_choice.bind(*leaves, choose=chosen, default=of_leaves(default), avals=avals))


def _impl(*leaves: Array, default: Function, **_: Any) -> tuple[Array, ...]:
    return default(*leaves)


def _abstract(*leaves: Any, default: Function, avals: Any, **_: Any) -> Any:
    return jax.make_jaxpr(default)(*leaves).out_avals if avals is None else avals


def _lowered(
    ctx: Any, *leaves: Any, platform: str, choose: Choice, default: Function, **_: Any
) -> Any:
    function = choose(platform, _is_alone(ctx.module_context.axis_context)) or default
    return mlir.lower_fun(function, multiple_results=True)(ctx, *leaves)


_choice.def_impl(_impl)
_choice.def_abstract_eval(_abstract)
mlir.register_lowering(_choice, functools.partial(_lowered, platform="other"))
for _platform in ("cpu", "cuda", "tpu"):
    mlir.register_lowering(
        _choice, functools.partial(_lowered, platform=_platform), platform=_platform
    )


def _is_alone(axes: Any) -> bool:
    """Whether the program runs on each device independently."""
    if isinstance(axes, mlir.ShardingContext):
        return bool(axes.num_devices == 1)
    if isinstance(axes, mlir.SPMDAxisContext):
        manual = axes.manual_axes | set(axes.mesh.manual_axes)
        return manual == set(axes.mesh.axis_names)
    return False
