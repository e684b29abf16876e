"""tpu-inference: `sample`, on a mesh of one device and with default settings."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bench.peers import K, P, T
from bench.peers.borrowed import borrow
from bench.works import Work

PACKAGE = "tpu-inference"


def sampler(x: Array) -> Work:
    """Returns a function that draws a token of each row."""
    sample, metadata = _functions()
    values = metadata(
        temperature=jnp.full(len(x), T),
        top_k=jnp.full(len(x), K),
        top_p=jnp.full(len(x), P),
        do_sampling=True,
    )
    return Work(sample, (jax.random.key(0), x, values))


@functools.cache
def _functions() -> tuple[Callable[..., Array], Any]:
    topk_mask, topp_mask = borrow(
        PACKAGE,
        "tpu_inference/layers/common/binary_bisection.py",
        "topk_mask",
        "topp_mask",
        jax=jax,
        jnp=jnp,
        lax=lax,
    )
    (metadata,) = borrow(
        PACKAGE,
        "tpu_inference/layers/jax/sample/sampling_metadata.py",
        "TPUSupportedSamplingMetadata",
        functools=functools,
        dataclass=dataclasses.dataclass,
        jax=jax,
    )
    (sample,) = borrow(
        PACKAGE,
        "tpu_inference/layers/jax/sample/sampling.py",
        "sample",
        jax=jax,
        jnp=jnp,
        lax=lax,
        replace=dataclasses.replace,
        Layout=Layout,
        with_layout_constraint=with_layout_constraint,
        NamedSharding=NamedSharding,
        P=PartitionSpec,
        topk_mask=topk_mask,
        topp_mask=topp_mask,
        ShardingAxisName=types.SimpleNamespace(MLP_TENSOR="model", ATTN_DATA="data"),
        envs=types.SimpleNamespace(DISTRIBUTED_SAMPLING_MAX_TOP_K=64, SAMPLING_MICROBATCH_SIZE=0),
        get_sampling_compiler_options=dict,  # its options are for TPU only
    )
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    return lambda key, x, values: sample(key, mesh, x, values)[0], metadata
