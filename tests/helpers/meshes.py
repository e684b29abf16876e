"""Meshes of simulated devices, rows sharded over them, and functions inside `shard_map`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from rows import every_kind

import jaxsample as js

VOCAB = 8192


MESHES = {"vocab": (1, 8), "both": (2, 4), "two": (1, 2), "four": (1, 4), "batch": (2, 1)}


MOST_BYTES_A_ROW = 64 * 1024


def rows_of(vocab):
    x = every_kind(2, vocab)
    x[1, 3] = np.nan
    return jnp.asarray(x)  # 18 rows


def mesh_of(batch, vocab, axis_type=AxisType.Auto):
    devices = np.array(jax.devices()[: batch * vocab]).reshape(batch, vocab)
    return jax.sharding.Mesh(devices, ("batch", "vocab"), axis_types=(axis_type,) * 2)


def spec_of(x, leaf, batch="batch", vocab="vocab"):
    """Returns the axes of an argument or a result, sharded like the logits."""
    axes = [None] * leaf.ndim
    if leaf.shape[:1] == x.shape[:1]:
        axes[0] = batch
    if leaf.shape[-1:] in (x.shape[-1:], (x.shape[-1] // 32,)):
        axes[-1] = vocab
    return P(*axes)


def sharded_map(function, x, arguments, mesh, **spec):
    """Wraps the function in a `shard_map`; arrays without rows and vocabulary are replicated."""

    def specs(tree):
        return jax.tree.map(lambda leaf: spec_of(x, leaf, **spec), tree)

    return jax.shard_map(
        told(function, spec.get("vocab", "vocab")),
        mesh=mesh,
        in_specs=specs(arguments),
        out_specs=specs(jax.eval_shape(function, *arguments)),
    )


def told(function, axis_name):
    """Binds the mesh axis of the vocabulary as `axis_name`."""
    if function is js.packed_bitmask:  # its tokens are independent of each other
        return function
    return functools.partial(function, axis_name=axis_name)
