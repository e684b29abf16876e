"""maxtext: its "composite" sampling, whose parameters are Python numbers and compiled in."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from bench.peers import K, P, T
from bench.peers.borrowed import borrow
from bench.works import Work


def sampler(x: Array) -> Work:
    """Returns a function that draws a token of each row."""
    return Work(_draw(), (jax.random.key(0), x))


@functools.cache
def _draw() -> Callable[[Array, Array], Array]:
    (sampling,) = borrow(
        "maxtext", "maxtext/inference/inference_utils.py", "sampling", jax=jax, jnp=jnp
    )
    return lambda key, x: sampling(x, key, "composite", topk=K, nucleus_topp=P, temperature=T)
