"""FlashInfer: its kernels as vLLM calls them, through PyTorch, on the GPU that JAX uses."""

from typing import Any

import flashinfer
import numpy as np
import torch
from jax import Array

from bench.peers import K, P, T
from bench.works import Call


def sampler(x: Array) -> Call:
    """Returns a function that draws a token of each row and copies the tokens to the host."""
    scores = torch.from_numpy(np.array(x)).cuda()
    temperature = torch.full((len(x), 1), T, device="cuda")
    k = torch.full((len(x),), K, dtype=torch.int32, device="cuda")
    p = torch.full((len(x),), P, device="cuda")

    def draw() -> Any:
        drawn = flashinfer.sampling.top_k_top_p_sampling_from_logits(scores / temperature, k, p)
        return drawn.cpu()

    return Call(draw)
