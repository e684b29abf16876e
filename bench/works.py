"""What is measured: functions, and the arrays that they are called with.

All are given logits in the dtype under test, as a model hands them over. The parameters of sampling
are arrays of one value a row, since the requests of a batch differ. Ours take a key a row and
return all that a user gets; the baselines take the one key that they are made for and return less.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from bench import logits
from bench.baselines import sort_stack
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


BASELINES = ("jnp.argmax", "random.categorical", "lax.top_k 64", "sort stack")
"""The works that are not ours.

They are measured on peaked rows alone: flat ones take them as long, or a little longer in bfloat16.
"""


def works(case: Case) -> dict[str, Work]:
    """The samplers of jaxsample and the baselines, by their names in the tables."""
    peaked, flat = logits.peaked(*case), logits.flat(*case)
    key = jax.random.key(0)
    keys = jax.random.split(key, case.batch)

    def per_row(value: float) -> Array:
        return jnp.full(case.batch, value)

    t, k, p, min_p = per_row(0.8), per_row(50), per_row(0.95), per_row(0.02)
    joint = SamplingParams(temperature=t, top_k=k, top_p=p, min_p=min_p)
    return {
        "greedy": Work(greedy_sample, (peaked,)),
        "categorical": Work(categorical_sample, (keys, peaked)),
        "top-k 64": Work(sample, (keys, peaked, SamplingParams(top_k=per_row(64)))),
        "top-p .95, peaked rows": Work(sample, (keys, peaked, SamplingParams(top_p=p))),
        "top-p .95, flat rows": Work(sample, (keys, flat, SamplingParams(top_p=p))),
        "T .8, k 50, p .95, min-p .02": Work(sample, (keys, peaked, joint)),
        "jnp.argmax": Work(lambda x: jnp.argmax(x, axis=-1), (peaked,)),
        "random.categorical": Work(jax.random.categorical, (key, peaked)),
        "lax.top_k 64": Work(lambda x: lax.top_k(x, 64), (peaked,)),
        "sort stack": Work(sort_stack, (key, peaked, t, k, p, min_p)),
    }
