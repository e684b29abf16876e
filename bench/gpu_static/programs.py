"""The functions that are compiled, with a key and parameters for each row."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from bench import requests
from bench.tpu import programs
from bench.works import Case, Work
from jaxsample import init_state, sample, speculative_sample

DRAFTS = 3
JOINT = "T .8, k 50, p .95, min-p .02"
BITMASK = f"bitmask, {JOINT}"
PENALTIES = f"penalties, {JOINT}"
SPECULATIVE = f"{DRAFTS} drafts, {JOINT}"
NAMES = (
    *("greedy", "categorical", "T .8", "top-k 64", "top-p .95"),
    *(JOINT, BITMASK, PENALTIES, SPECULATIVE),
)


def program(name: str, case: Case, implementation: str | None = None) -> Work:
    """Returns a function by its name and the shapes of its arguments, without making an array."""
    if name == PENALTIES:
        work = Work(sample, jax.eval_shape(lambda: _penalties(case)))
    elif name == SPECULATIVE:
        work = Work(speculative_sample, jax.eval_shape(lambda: _drafts(case)))
    else:
        work = programs.program(name, case)
    function = functools.partial(work.function, implementation=implementation)
    return work._replace(function=function)


def _penalties(case: Case) -> tuple[Any, ...]:
    logits, each = jnp.zeros((case.batch, case.vocab), case.dtype), jnp.full(case.batch, 1.2)
    params = dataclasses.replace(
        requests.joint(case.batch, *requests.JOINT),
        repetition_penalty=each,
        presence_penalty=each,
        frequency_penalty=each,
    )
    text = jnp.zeros((case.batch, requests.HISTORY), jnp.int32)
    state = init_state(text, 1, case.vocab, requests.HISTORY)
    return requests.keys(case.batch), logits, params, state


def _drafts(case: Case) -> tuple[Any, ...]:
    """Returns arguments with as many positions as the case has rows."""
    rows = case.batch // (DRAFTS + 1)
    logits = jnp.zeros((rows, DRAFTS + 1, case.vocab), case.dtype)
    keys = requests.keys(case.batch).reshape(logits.shape[:-1])
    drafts = jnp.zeros((rows, DRAFTS), jnp.int32)
    return keys, logits, drafts, requests.joint(rows, *requests.JOINT)
