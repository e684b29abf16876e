"""The compiled functions: our samplers, and what a TPU code base would call without them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from bench import requests
from bench.baselines import argmax
from bench.works import Case, Work
from jaxsample import (
    SamplingParams,
    bitmask_logits,
    categorical_sample,
    greedy_sample,
    replay_logprobs,
    sample,
    scaled_logits,
    top_k_logits,
    top_p_logits,
)

WEIGHED = {"top-p .95", "top-p .95, XLA", "top_p_logits"}
"""The programs that need the mass of whole rows even if the candidates settle them."""

Programs = dict[str, tuple[Callable[..., Any], Callable[["Given"], tuple[Any, ...]]]]


class Given(NamedTuple):
    """The source of the arguments."""

    logits: Array
    key: Array
    keys: Array
    k: Array
    p: Array
    joint: SamplingParams
    words: Array


def program(name: str, case: Case) -> Work:
    """Returns a function by its name and the shapes of its arguments, without making an array."""
    function, arguments = (OURS | THEIRS)[name]
    return Work(function, jax.eval_shape(lambda: arguments(_given(case))))


def _given(case: Case) -> Given:
    return Given(
        jnp.zeros((case.batch, case.vocab), case.dtype),
        jax.random.key(0),
        requests.keys(case.batch),
        jnp.full(case.batch, 64),
        jnp.full(case.batch, 0.95),
        requests.joint(case.batch, *requests.JOINT),
        jnp.zeros((case.batch, -(-case.vocab // 32)), jnp.int32),
    )


def top_k_mask(logits: Array, k: Array) -> Array:
    """Masks the logits below the k-th largest; all equal to it are kept."""
    keys = _keys(logits.astype(jnp.float32))
    least = _threshold(keys, lambda kept: jnp.sum(kept, axis=-1, dtype=jnp.int32) >= k)
    return jnp.where(keys >= least[:, None], logits, -jnp.inf)


def threshold_sample(
    key: Array, logits: Array, temperature: Array, k: Array, p: Array, min_p: Array
) -> Array:
    """Draws a token as TPU code bases do: a bisection for top-k, and one for top-p."""
    x = top_k_mask(logits.astype(jnp.float32) / temperature[:, None], k)
    most = jnp.max(x, axis=-1, keepdims=True)
    weights = jnp.exp(x - most)
    target = p * jnp.sum(weights, axis=-1)
    keys = _keys(x)
    least = _threshold(keys, lambda kept: jnp.sum(jnp.where(kept, weights, 0), axis=-1) >= target)
    kept = (keys >= least[:, None]) & (x >= most + jnp.log(min_p)[:, None])
    return jax.random.categorical(key, jnp.where(kept, x, -jnp.inf))


def _keys(x: Array) -> Array:
    """Returns unsigned integers in the order of the floats."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(keys: Array, enough: Callable[[Array], Array]) -> Array:
    """Returns the largest key from which enough is kept: one bit per pass, from the highest."""

    def turn(number: Array, least: Array) -> Array:
        bit = jnp.uint32(1) << (31 - number).astype(jnp.uint32)
        more = least | bit
        return jnp.where(enough(keys >= more[:, None]), more, least)

    return lax.fori_loop(0, 32, turn, jnp.zeros(keys.shape[:1], jnp.uint32))


def _without_kernels(programs: Programs) -> Programs:
    return {
        f"{name}, XLA": (functools.partial(function, implementation="xla"), arguments)
        for name, (function, arguments) in programs.items()
    }


_SAMPLERS: Programs = {
    "greedy": (greedy_sample, lambda of: (of.logits,)),
    "categorical": (categorical_sample, lambda of: (of.keys, of.logits)),
    "T .8": (sample, lambda of: (of.keys, of.logits, SamplingParams(temperature=of.p))),
    "top-k 64": (sample, lambda of: (of.keys, of.logits, SamplingParams(top_k=of.k))),
    "top-p .95": (sample, lambda of: (of.keys, of.logits, SamplingParams(top_p=of.p))),
    "T .8, k 50, p .95, min-p .02": (sample, lambda of: (of.keys, of.logits, of.joint)),
    "bitmask, T .8": (
        sample,
        lambda of: (of.keys, of.logits, SamplingParams(temperature=of.p, bitmask=of.words)),
    ),
    "bitmask, T .8, k 50, p .95, min-p .02": (
        sample,
        lambda of: (of.keys, of.logits, dataclasses.replace(of.joint, bitmask=of.words)),
    ),
}

_LOGITS: Programs = {
    "scaled_logits": (scaled_logits, lambda of: (of.logits, of.p)),
    "top_k_logits": (top_k_logits, lambda of: (of.logits, of.k)),
    "top_p_logits": (top_p_logits, lambda of: (of.logits, of.p)),
    "bitmask_logits": (bitmask_logits, lambda of: (of.logits, of.words)),
    "replay_logprobs": (replay_logprobs, lambda of: (of.logits, of.k, of.words)),
}

OURS = _SAMPLERS | _LOGITS | _without_kernels(_SAMPLERS)

THEIRS: Programs = {
    "jnp.argmax": (argmax, lambda of: (of.logits,)),
    "random.categorical": (jax.random.categorical, lambda of: (of.key, of.logits)),
    "32-pass top-k mask": (top_k_mask, lambda of: (of.logits, of.k)),
    "32-pass T, k, p, min-p, draw": (
        threshold_sample,
        lambda of: (of.key, of.logits, of.p, of.k, of.p, of.p),
    ),
}
