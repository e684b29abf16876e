"""The temporaries of the programs of `sample`, relative to the logits."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench import requests
from bench.bars import full_call
from bench.sizes import Sizes
from bench.timing import compiled
from bench.works import Work
from jaxsample import sample

LIMIT = 0.25
"""The limit of the temporaries as a share of the logits."""


class Temporaries(NamedTuple):
    """The peak memory of a program without its arguments and results."""

    work: str
    dtype: str
    bytes: int
    of_logits: float


def memory(sizes: Sizes) -> list[Temporaries]:
    """Returns the temporaries of `sample` for each set of rules and each dtype of the logits."""
    return [
        _temporaries(name, work, jnp.dtype(dtype))
        for dtype in ("float32", "bfloat16")
        for name, work in _works(sizes, dtype).items()
    ]


def _temporaries(name: str, work: Work, dtype: Any) -> Temporaries:
    analysis: Any = compiled(work).memory_analysis()
    size = analysis.temp_size_in_bytes
    return Temporaries(name, dtype.name, size, size / (work.arguments[1].size * dtype.itemsize))


def _works(sizes: Sizes, dtype: str) -> dict[str, Work]:
    shape = (sizes.batch, sizes.vocab)
    x = jax.ShapeDtypeStruct(shape, dtype)
    keys, full, state = jax.eval_shape(
        lambda: (requests.keys(sizes.batch), requests.full(*shape), requests.state(*shape))
    )
    nothing = {"logit_bias_token_ids": None, "logit_bias": None, "bitmask": None}
    penalties = dataclasses.replace(full, **nothing)
    joint = jax.eval_shape(lambda: requests.joint(sizes.batch, *requests.JOINT))
    return {
        "temperature, k, p, min-p": Work(sample, (keys, x, joint)),
        "and three penalties": Work(sample, (keys, x, penalties, state)),
        "and bias, mask, top-20 log-probs": Work(full_call, (keys, x, full, state)),
    }
