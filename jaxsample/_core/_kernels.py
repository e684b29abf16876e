"""The choice between kernels and XLA, made at lowering by the platform of the program.

A compiler that shards a program over devices cannot look into a kernel: it would gather the logits
for it. So the programs of one TPU get kernels, and those inside `shard_map`, where each device
runs on its own. Those of a GPU get them only where they are asked for: no GPU has timed them.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.backend import get_default_device

from jaxsample._core._lowering import Function, at_lowering
from jaxsample._core._source import CHUNK, Source
from jaxsample._core._vmap import rowwise
from jaxsample._tpu.rows import MAX_VOCAB, MIN_VOCAB, ROWS

_MIN_VOCAB_ON_GPU = 16 * CHUNK
"""A tile of the scan."""


def choose(
    otherwise: Function,
    source: Source,
    *rest: Any,
    tpu: Function,
    cuda: Function | None = None,
    like: tuple[Array, ...] | None = None,
) -> tuple[Array, ...]:
    """Calls `kernel(source, *rest, interpret=...)` where a kernel is chosen, else `otherwise`.

    Of both nothing has a gradient. The rest leads with the axes of the rows, too.

    Args:
      otherwise: the definition, `otherwise(source, *rest)`.
      source: the logits.
      *rest: pytrees of arrays.
      tpu: the kernel of a TPU.
      cuda: that of an NVIDIA GPU, or None: it has none.
      like: as in `at_lowering`.
    """
    if source.implementation == "xla":
        return otherwise(source, *rest)

    forced = source.implementation == "pallas"

    @rowwise
    def scanned(source: Source, like: Any, *rest: Any) -> tuple[Array, ...]:
        if not _suits(source):
            return otherwise(source, *rest)

        def chosen(platform: str, is_alone: bool) -> Function | None:
            if platform == "cuda":
                on_gpu = forced and is_alone and suits_gpu(source) and _compute_capability() >= 9
                return functools.partial(cuda, interpret=False) if cuda and on_gpu else None
            on_tpu = platform == "tpu"
            if forced or (on_tpu and is_alone):
                return functools.partial(tpu, interpret=not on_tpu)
            return None

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


def suits_gpu(source: Source) -> bool:
    """Whether the kernels of a GPU can look at logits; XLA does where they cannot."""
    whole_tiles = source.logits.shape[-1] >= _MIN_VOCAB_ON_GPU
    return whole_tiles and source.mask is None and jax.__version_info__ >= (0, 11)


def _compute_capability() -> float:
    """Returns that of the GPU that a program is compiled for, as Mosaic GPU does."""
    return float(getattr(get_default_device(), "compute_capability", "9.0"))
