"""tunix: `sample_top_p` of its sampler, whose parameters are Python numbers and compiled in."""

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
    (sample_top_p,) = borrow(
        "google-tunix", "tunix/generate/sampler.py", "sample_top_p", jax=jax, jnp=jnp
    )
    return lambda key, x: sample_top_p(x[:, None], key, T, P, K)[0]
