"""TPUs that are not there: the compiler alone, told what to compile for."""

import functools
import os

import jax
import pytest

from bench.tpu.chips import CHIPS
from bench.tpu.compiler import Compiled
from bench.tpu.estimate import cheapest

# What a machine with a TPU would be asked for.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@functools.cache
def devices(topology):
    """The devices of a topology, such as v5e:2x4."""
    pytest.importorskip("libtpu", reason="the extra tpu is not installed")
    os.environ.update(ENVIRONMENT)
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def compiled(function, arguments, place):
    """The program for arguments, or their shapes, that lie where `place` of each says."""

    def shape(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf))

    traced = jax.jit(function).trace(*jax.tree.map(shape, arguments))
    return traced.lower(lowering_platforms=("tpu",)).compile()


def settled(program, topology):
    """The operations of a program, each conditional by its cheapest branch."""
    return cheapest(Compiled(program.as_text(), {}), CHIPS[topology.partition(":")[0]]).costs
