"""Draws without replacement by their definitions, in float64."""

import itertools

import numpy as np
from reference import softmax

from jaxsample._core import _draw

CHUNK = 256


def order_law(p, num):
    """Returns the probabilities of all orders of the first `num` tokens, and these `[n, num]`."""
    orders = np.array([*itertools.permutations(range(len(p)), num)])
    drawn = np.asarray(p, np.float64)[orders]
    left = 1 - np.cumsum(drawn, axis=-1) + drawn
    return np.prod(drawn / left, axis=-1), orders


class Clocks:
    """The exponential times of each row, of rate 1, by index and stream."""

    def __init__(self, keys, vocab, streams):
        index = np.arange(-vocab, vocab, dtype=np.int32)
        index, stream = (a.ravel() for a in np.meshgrid(index, np.arange(streams, dtype=np.int32)))
        noise = _draw.random_words(keys)
        shape = (len(keys), index.size)
        uniform = _draw.uniforms(noise, *(np.broadcast_to(a, shape) for a in (index, stream)))
        times = -np.log1p(-np.asarray(uniform, np.float64))
        self._times, self._vocab = times.reshape(len(keys), streams, 2 * vocab), vocab

    def __call__(self, row, index, stream):
        return self._times[row, stream, self._vocab + index]


def renewed_race(clocks, row, x, num):
    """Returns the tokens of a row and their arrival times, from the noise of the library."""
    p = softmax(x)
    chunk_of = np.arange(p.size) // CHUNK
    tokens, times = [], []
    with np.errstate(divide="ignore"):
        arrival = clocks(row, np.arange(chunk_of[-1] + 1), 0) / np.bincount(chunk_of, p)
        for step in range(num):
            chunk = arrival.argmin()
            times.append(arrival[chunk])
            if times[-1] == np.inf:
                tokens.append(-1)
                continue
            stream = 2 + sum(chunk_of[token] == chunk for token in tokens)
            ids = np.setdiff1d(np.flatnonzero((chunk_of == chunk) & (p > 0)), tokens)
            noise = clocks(row, ids, stream) if step else clocks(row, ids % CHUNK, 1)
            tokens.append(ids[(noise / p[ids]).argmin()])
            rest = p[ids[ids != tokens[-1]]].sum()
            arrival[chunk] += clocks(row, ~chunk, stream) / rest
    return np.array(tokens), np.array([*times, arrival.min()])
