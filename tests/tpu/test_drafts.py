"""Programs of the TPU compiler for the functions of drafts."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from rows import exhaustive
from topologies import compiled, devices, settled

import jaxsample as js
from jaxsample import SamplingParams

pytestmark = pytest.mark.tpu_aot

BATCH, DRAFTS, VOCAB = 32, 8, 128256  # more than vector memory holds


class Bounds(NamedTuple):
    """Bounds of a program, as multiples of the target's logits.

    Attributes:
      read, written: the HBM traffic if the candidates settle every row.
      temporaries: the memory in every case.
    """

    read: float
    written: float
    temporaries: float


BOUNDS = {
    "equality": Bounds(1.2, 0.1, 0.15),
    "penalties": Bounds(2.4, 1.2, 1.2),
    "chain": Bounds(2.3, 0.1, 0.15),
    "block": Bounds(2.3, 0.1, 2.1),
}
"""Penalised logits are written once. Block copies logits to sum whole rows, since the two models
may order them differently.
"""


def call(name):
    """Returns a function and its arguments."""
    x, drafts = jnp.zeros((BATCH, DRAFTS + 1, VOCAB)), jnp.zeros((BATCH, DRAFTS), jnp.int32)
    keys = js.request_keys(np.arange(BATCH)[:, None], np.arange(DRAFTS + 1)[None])
    each = jnp.full(BATCH, 0.9)
    params = SamplingParams(temperature=each, top_k=jnp.full(BATCH, 40), top_p=each)
    if name == "equality":
        return js.speculative_sample, (keys, x, drafts, params)
    if name == "penalties":
        params = dataclasses.replace(params, frequency_penalty=each, repetition_penalty=each)
        state = js.init_state(jnp.zeros((BATCH, 8), jnp.int32), 8, VOCAB, 64)
        return js.speculative_sample, (keys, x, drafts, params, state)
    function = functools.partial(js.rejection_sample, method=name)
    return function, (keys[:, 0], x, drafts, x[:, :-1], params)


def program_of(name, topology):
    found = []

    def arguments():  # evaluated for shapes only
        function, arguments = call(name)
        found.append(function)
        return arguments

    shapes = jax.eval_shape(arguments)
    place = SingleDeviceSharding(devices(topology)[0])
    return compiled(found[0], shapes, lambda _: place)


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        ("equality", "v5e:2x2"),
        ("penalties", "v5e:2x2"),
        ("block", "v5e:2x2"),
        *(exhaustive(name, "v6e:2x2") for name in BOUNDS),
        exhaustive("chain", "v5e:2x2"),
    ],
)
def test_logits_are_not_copied(name, topology):
    """Although the nine positions of a text do not fit into tiles of eight rows."""
    program, bounds = program_of(name, topology), BOUNDS[name]
    logits = 4 * BATCH * (DRAFTS + 1) * VOCAB
    costs = settled(program, topology)
    read, written = (sum(getattr(cost, of) for cost in costs) / logits for of in bounds._fields[:2])
    temporaries = program.memory_analysis().temp_size_in_bytes / logits
    print(f"{name}: {read:.2f} read, {written:.2f} written, temporaries of {temporaries:.2f}")
    assert 1 <= read < bounds.read
    assert written < bounds.written
    assert temporaries < bounds.temporaries
