"""The choice between kernels and XLA, made at lowering by the platform of the program.

XLA cannot shard a kernel over devices: it would gather the logits for it. So kernels are used in
programs for one device and inside `shard_map`, where each device runs independently. On a TPU they
are the default for shapes for which the compiler estimates that they are faster. On a GPU, where
they have not been timed, `implementation="pallas"` selects them.
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
"""The number of tokens of a tile of the scan."""


def choose(
    otherwise: Function,
    source: Source,
    *rest: Any,
    tpu: Function,
    cuda: Function | None = None,
    like: tuple[Array, ...] | None = None,
) -> tuple[Array, ...]:
    """Calls `kernel(source, *rest, interpret=...)` if a kernel is chosen, else `otherwise`.

    The results are not differentiable.

    Args:
      otherwise: the definition, `otherwise(source, *rest)`.
      source: the logits.
      *rest: pytrees of arrays whose leading axes are those of the rows.
      tpu: the kernel for TPUs.
      cuda: the kernel for NVIDIA GPUs, or None.
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
    """Whether kernels support the logits and, by default, are estimated to be faster on a TPU."""
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
    """Whether the kernels for GPUs support the logits."""
    whole_tiles = source.logits.shape[-1] >= _MIN_VOCAB_ON_GPU
    return whole_tiles and source.mask is None and jax.__version_info__ >= (0, 11)


def _compute_capability() -> float:
    """Returns the compute capability of the target GPU, found in the same way as by Mosaic GPU."""
    return float(getattr(get_default_device(), "compute_capability", "9.0"))
