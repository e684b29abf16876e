"""llama.cpp's sampler chain through its C library: one row at a time, on one thread."""

import ctypes
import functools
from typing import Any

import llama_cpp
import numpy as np
from jax import Array

from bench.peers import MIN_P, K, P, T
from bench.works import Call


class Candidates:
    """The array that a chain works on, with an id, a logit and a probability for each token."""

    def __init__(self, vocab: int) -> None:
        self.fresh = np.zeros((vocab, 3), np.int32)
        self.fresh[:, 0] = np.arange(vocab)
        self.tokens = np.empty_like(self.fresh)
        self.start = self.tokens.ctypes.data_as(llama_cpp.llama_token_data_p)
        self.array = llama_cpp.llama_token_data_array()

    def fill(self, row: np.ndarray) -> None:
        """Restores all tokens, since a chain sorts and truncates the array."""
        np.copyto(self.tokens, self.fresh)
        self.tokens.view(np.float32)[:, 1] = row
        self.array.data, self.array.size = self.start, len(row)
        self.array.selected, self.array.sorted = -1, False

    def draw(self) -> int:
        """Returns the token that the chain selects."""
        llama_cpp.llama_sampler_apply(_chain(), ctypes.byref(self.array))
        return self.array.data[self.array.selected].id


def chain(x: Array) -> Call:
    """Returns the chain alone, on arrays that are filled outside of the measurement."""
    rows = np.asarray(x)
    candidates = [Candidates(rows.shape[1]) for _ in rows]

    def fill() -> None:
        for one, row in zip(candidates, rows, strict=True):
            one.fill(row)

    return Call(lambda: np.array([one.draw() for one in candidates]), fill)


def fill_and_chain(x: Array) -> Call:
    """Returns the chain, including the filling of the array of each row."""
    rows = np.asarray(x)
    candidates = Candidates(rows.shape[1])

    def draw(row: np.ndarray) -> int:
        candidates.fill(row)
        return candidates.draw()

    return Call(lambda: np.array([draw(row) for row in rows]))


@functools.cache
def _chain() -> Any:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in (
        llama_cpp.llama_sampler_init_top_k(K),
        llama_cpp.llama_sampler_init_top_p(P, 1),
        llama_cpp.llama_sampler_init_min_p(MIN_P, 1),
        llama_cpp.llama_sampler_init_temp(T),
        llama_cpp.llama_sampler_init_dist(0),
    ):
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    return chain
