"""Hugging Face transformers: its warpers in the order of `generate`, then PyTorch's draw."""

import os
from typing import Any

import numpy as np
import torch
from jax import Array
from transformers.generation import logits_process as hf

from bench.peers import MIN_P, K, P, T
from bench.works import Call


def sampler(x: Array) -> Call:
    """Returns a function that draws a token of each row, on all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    scores, ids = torch.from_numpy(np.array(x)), torch.zeros((len(x), 1), dtype=torch.long)
    warpers = hf.LogitsProcessorList(
        [
            hf.TemperatureLogitsWarper(T),
            hf.TopKLogitsWarper(K),
            hf.TopPLogitsWarper(P),
            hf.MinPLogitsWarper(MIN_P),
        ]
    )

    def draw() -> Any:
        with torch.no_grad():
            probabilities = torch.nn.functional.softmax(warpers(ids, scores), dim=-1)
            return torch.multinomial(probabilities, num_samples=1)[:, 0]

    return Call(draw)
