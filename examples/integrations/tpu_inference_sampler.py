"""jaxsample in tpu-inference: a replacement for its `sample`.

    python examples/integrations/tpu_inference_sampler.py

draws tokens of a batch described by a stand-in for its metadata: tpu-inference itself needs vLLM
and a TPU.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxsample
from jaxsample import SamplingParams, greedy_sample

LEAST_TEMPERATURE = 1e-5  # rows below it are greedy; padding rows have -1


@functools.partial(jax.jit, static_argnames=("mesh", "allow_distributed_sampling"))
def sample(rng, mesh, logits, tpu_sampling_metadata, allow_distributed_sampling=True):
    """Returns the tokens of all rows and their processed logits, as tpu-inference's `sample` does.

    If the vocabulary is sharded over the mesh, rows are never gathered, for any top-k and top-p.

    Args:
      rng: one key, split over the rows.
      mesh: the devices that hold the logits.
      logits: `[rows, vocab]`.
      tpu_sampling_metadata: temperature, top-k and top-p of the rows, traced, and whether any row
        samples, static.
      allow_distributed_sampling: of tpu-inference, where it changes the returned logits.
    """
    given = tpu_sampling_metadata
    if not given.do_sampling:
        tokens, processed = greedy_sample(logits), logits.astype(jnp.float32)
    else:
        greedy = given.temperature < LEAST_TEMPERATURE
        params = SamplingParams(
            temperature=jnp.where(greedy, 0, given.temperature),
            top_k=given.top_k,
            top_p=given.top_p,
        )
        output = jaxsample.sample(rng, logits, params, return_logits=True)
        # For greedy rows tpu-inference returns all logits, and jaxsample only the kept one.
        processed = jnp.where(greedy[:, None], logits, output.logits)
        tokens = output.tokens
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.lax.with_sharding_constraint(tokens, replicated), processed


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_k", "top_p"],
    meta_fields=["do_sampling"],
)
@dataclasses.dataclass
class Metadata:
    """A stand-in for `TPUSupportedSamplingMetadata`."""

    temperature: Any = None
    top_k: Any = None
    top_p: Any = None
    do_sampling: bool = False


def main():
    mesh = Mesh(np.array(jax.devices()[:1]), "model")
    logits = jax.random.normal(jax.random.key(0), (4, 32_000))
    rows = Metadata(
        temperature=jnp.array([0.7, 1.0, 0.0, -1.0]),  # the third is greedy, the last padding
        top_k=jnp.array([50, 0, 0, 0]),
        top_p=jnp.array([0.9, 0.95, 1.0, 1.0]),
        do_sampling=True,
    )
    tokens, processed = sample(jax.random.key(1), mesh, logits, rows)
    for token, kept in zip(tokens.tolist(), (processed > -jnp.inf).sum(-1).tolist(), strict=True):
        print(f"token {token}, of {kept}")


if __name__ == "__main__":
    main()
