"""The measured functions and their arguments.

All take logits in the dtype under test, as a model returns them. The parameters are arrays of one
value per row, since the requests of a batch differ. The functions of jaxsample take one key per row
and return the complete output; the baselines take a single key and return less.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bench import logits, requests
from bench.baselines import argmax, sort_stack, top_k_64
from jaxsample import SamplingParams, categorical_sample, greedy_sample, sample


class Case(NamedTuple):
    """The sizes of one table."""

    batch: int
    vocab: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.batch} x {self.vocab} {self.dtype}"


class Work(NamedTuple):
    """A function to compile, and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Call(NamedTuple):
    """A function to call without compiling it, and one to call before each measurement."""

    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


BASELINES = ("jnp.argmax", "random.categorical", "lax.top_k 64", "sort stack")
"""The names of the baselines.

They are measured on peaked rows only: flat rows take the same time, or slightly more in bfloat16.
"""


def works(case: Case) -> dict[str, Work]:
    """Returns the samplers of jaxsample and the baselines, by their names in the tables."""
    peaked, flat = logits.peaked(*case), logits.flat(*case)
    text, one_flat = logits.text(*case), logits.one_flat(*case)
    key, keys = jax.random.key(0), requests.keys(case.batch)

    def per_row(value: float) -> Array:
        return jnp.full(case.batch, value)

    p, joint = per_row(0.95), requests.joint(case.batch, *requests.JOINT)
    return {
        "greedy": Work(greedy_sample, (peaked,)),
        "categorical": Work(categorical_sample, (keys, peaked)),
        "top-k 64": Work(sample, (keys, peaked, SamplingParams(top_k=per_row(64)))),
        "top-p .95, rows like text": Work(sample, (keys, text, SamplingParams(top_p=p))),
        "top-p .95, one row flat": Work(sample, (keys, one_flat, SamplingParams(top_p=p))),
        "top-p .95, peaked rows": Work(sample, (keys, peaked, SamplingParams(top_p=p))),
        "top-p .95, flat rows": Work(sample, (keys, flat, SamplingParams(top_p=p))),
        "T .8, k 50, p .95, min-p .02": Work(sample, (keys, peaked, joint)),
        "jnp.argmax": Work(argmax, (peaked,)),
        "random.categorical": Work(jax.random.categorical, (key, peaked)),
        "lax.top_k 64": Work(top_k_64, (peaked,)),
        "sort stack": Work(sort_stack, (key, peaked, *map(per_row, requests.JOINT))),
    }
