"""Rows of logits of every kind."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ON_GPU = jax.default_backend() == "gpu"

several_devices = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")


def slow(*values):
    """Marks a case that only continuous integration runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def exhaustive(*values):
    """Marks a case covered by others, which runs before a release instead of for each change."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


def traces(function):
    """Returns the number of traces of a public function."""
    return inspect.getclosurevars(function).nonlocals["program"]._cache_size()


SHORT_TURN = 32
"""The vectors of a kernel step under `short_turns`: compile time on a CPU grows with the step."""

DTYPES = ("float32", "bfloat16", slow("float16"))
KINDS = ("normal", "flat", "peaked", "ties", "equal", "masked", "one", "offset", "zeros")
# Odd lengths, one chunk more or less, more and fewer tokens than candidates, and the blocks that
# the ranking uses only above 4096 tokens: each in some dtype.
SIZES = (
    slow(1, "float32"),
    slow(64, "float16"),
    exhaustive(65, "bfloat16"),
    exhaustive(256, "float32"),
    (257, "float16"),
    exhaustive(4096, "bfloat16"),
    slow(5003, "float32"),
    slow(5003, "bfloat16"),
)


def make(kind: str, batch: int, vocab: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, KINDS.index(kind), vocab])
    x = rng.normal(size=(batch, vocab))
    if kind == "normal":
        x *= 3
    elif kind == "flat":
        x *= 0.01
    elif kind == "peaked":
        x[np.arange(batch), rng.integers(vocab, size=batch)] += 25
    elif kind == "ties":
        x = np.round(x)
    elif kind == "equal":
        x[:] = x[:, :1]
    elif kind == "masked":
        x = np.where(rng.random(x.shape) < 0.7, -np.inf, x)
        x[np.arange(batch), rng.integers(vocab, size=batch)] = 1
    elif kind == "one":
        x[:] = -np.inf
        x[np.arange(batch), rng.integers(vocab, size=batch)] = rng.normal(size=batch)
    elif kind == "offset":
        x = x * 3 - 1000
    elif kind == "zeros":  # 0 and -0 are equal logits
        x = rng.choice([0.0, -0.0, -1.0], size=x.shape)
    return np.asarray(x.astype(jnp.dtype(dtype)))


def every_kind(batch: int, vocab: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Returns rows of all kinds, stacked."""
    return np.concatenate([make(kind, batch, vocab, dtype, seed) for kind in KINDS])
