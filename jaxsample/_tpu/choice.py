"""The choice between kernels and XLA, made at lowering by the platform of the program.

A compiler that shards a program over devices cannot look into a kernel: it would gather the logits
for it. So the programs of one TPU get kernels, and those inside `shard_map`, where each device
runs on its own.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxsample._core._lowering import Function, at_lowering
from jaxsample._core._source import Source
from jaxsample._core._vmap import rowwise
from jaxsample._tpu.rows import MAX_VOCAB, MIN_VOCAB, ROWS


def choose(
    kernel: Function,
    otherwise: Function,
    source: Source,
    *rest: Any,
    like: tuple[Array, ...] | None = None,
) -> tuple[Array, ...]:
    """Calls `kernel(source, *rest, interpret=...)` where a kernel is chosen, else `otherwise`.

    Of both nothing has a gradient. The rest leads with the axes of the rows, too. `like` is that of
    `at_lowering`.
    """
    if source.implementation == "xla":
        return otherwise(source, *rest)

    forced = source.implementation == "pallas"

    def chosen(platform: str, is_alone: bool) -> Function | None:
        on_tpu = platform == "tpu"
        if forced or (on_tpu and is_alone):
            return functools.partial(kernel, interpret=not on_tpu)
        return None

    @rowwise
    def scanned(source: Source, like: Any, *rest: Any) -> tuple[Array, ...]:
        if not _suits(source):
            return otherwise(source, *rest)
        return at_lowering(chosen, otherwise, source, *rest, like=like)

    return scanned(source, like, *rest)


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
