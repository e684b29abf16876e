"""TPUs that need not be present: the compiler gets only their description."""

import functools
import os

import jax
import pytest

from bench.tpu.chips import CHIPS
from bench.tpu.compiler import Compiled
from bench.tpu.estimate import cheapest

# A machine with a TPU would be queried for these.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@functools.cache
def devices(topology):
    """Returns the devices of a topology, such as v5e:2x4."""
    pytest.importorskip("libtpu", reason="the extra tpu is not installed")
    os.environ.update(ENVIRONMENT)
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def compiled(function, arguments, place):
    """Compiles for arguments, or their shapes, with the sharding `place` of each."""

    def shape(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf))

    traced = jax.jit(function).trace(*jax.tree.map(shape, arguments))
    return traced.lower(lowering_platforms=("tpu",)).compile()


def settled(program, topology):
    """Returns the operations of a program, with the cheapest branch of each conditional."""
    return cheapest(Compiled(program.as_text(), {}), CHIPS[topology.partition(":")[0]]).costs
