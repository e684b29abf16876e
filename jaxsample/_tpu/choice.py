"""The choice between kernels and XLA, made at lowering by the platform of the program.

A compiler that shards a program over devices cannot look into a kernel: it would gather the logits
for it. So the programs of one TPU get kernels, and those inside `shard_map`, where each device
runs on its own.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jaxsample._core._chunks import Source
from jaxsample._core._vmap import rowwise
from jaxsample._tpu.rows import MAX_VOCAB, MIN_VOCAB, ROWS

Function = Callable[..., tuple[Array, ...]]

_scan = Primitive("jaxsample_scan")
_scan.multiple_results = True


def choose(
    kernel: Function, otherwise: Function, source: Source, *rest: Array | None
) -> tuple[Array, ...]:
    """Calls `kernel(source, *rest, interpret=...)` where a kernel is chosen, else `otherwise`.

    Of both nothing has a gradient. The rest leads with the axes of the rows, too.
    """
    if source.implementation == "xla":
        return otherwise(source, *rest)

    @rowwise
    def chosen(source: Source, *rest: Array | None) -> tuple[Array, ...]:
        if not _suits(source):
            return otherwise(source, *rest)
        leaves, tree = jax.tree.flatten((source, *rest))

        def of_leaves(function: Function) -> Function:
            return lambda *leaves, **options: function(*jax.tree.unflatten(tree, leaves), **options)

        forced = source.implementation == "pallas"
        functions = {"kernel": of_leaves(kernel), "otherwise": of_leaves(otherwise)}
        return tuple(_scan.bind(*leaves, **functions, forced=forced))

    return chosen(source, *rest)


def _suits(source: Source) -> bool:
    """Whether kernels can look at logits, and by the compiler's estimates should."""
    logits = source.logits
    if 0 in logits.shape:
        return False
    *lead, vocab = logits.shape
    static = all(isinstance(size, int) for size in logits.shape)
    can = static and source.shards is None and logits.dtype != jnp.float16 and vocab <= MAX_VOCAB
    if source.implementation is None:
        return can and vocab >= MIN_VOCAB and math.prod(lead) % ROWS == 0
    if not can:
        raise ValueError(
            f"implementation='pallas' needs whole rows of float32 or bfloat16 logits, of a static "
            f"shape and at most {MAX_VOCAB} tokens, got {logits.dtype}{logits.shape}"
        )
    return True


def _impl(*rows: Array, otherwise: Function, **_: Any) -> tuple[Array, ...]:
    return otherwise(*rows)


def _abstract(*rows: Any, otherwise: Function, **_: Any) -> Any:
    return jax.make_jaxpr(otherwise)(*rows).out_avals


_scan.def_impl(_impl)
_scan.def_abstract_eval(_abstract)


def _lowered(
    ctx: Any, *rows: Any, tpu: bool, kernel: Function, otherwise: Function, forced: bool
) -> Any:
    function = otherwise
    if forced or (tpu and _is_alone(ctx.module_context.axis_context)):
        function = functools.partial(kernel, interpret=not tpu)
    return mlir.lower_fun(function, multiple_results=True)(ctx, *rows)


mlir.register_lowering(_scan, functools.partial(_lowered, tpu=False))
mlir.register_lowering(_scan, functools.partial(_lowered, tpu=True), platform="tpu")


def _is_alone(axes: Any) -> bool:
    """Whether each device runs the program on its own."""
    if isinstance(axes, mlir.ShardingContext):
        return bool(axes.num_devices == 1)
    if isinstance(axes, mlir.SPMDAxisContext):
        manual = axes.manual_axes | set(axes.mesh.manual_axes)
        return manual == set(axes.mesh.axis_names)
    return False
