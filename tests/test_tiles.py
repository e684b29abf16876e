"""Rows in the order of TPU tiles are converted without changes."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsample._core import _bits, _tiles

VOCAB = 512
LEADS = [(8, 3), (8, 16), (3, 8), (2, 8, 9), (5,), ()]


def rows(lead):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 1000, (*lead, VOCAB)).astype(np.float32))


@pytest.mark.parametrize("lead", LEADS)
def test_rows_of_one_axis_and_of_several_are_converted(lead):
    x = rows(lead)
    flat = _tiles.flat(x, len(lead))
    assert flat.shape == (np.prod(lead, dtype=int), VOCAB)
    np.testing.assert_array_equal(_tiles.unflat(flat, lead), x)
    np.testing.assert_array_equal(_tiles.joined(_tiles.split(x), lead), x)


def test_a_few_positions_are_outermost():
    """Each tile contains one position of all 8 texts of 9 positions."""
    x = jnp.arange(72).reshape(8, 9)
    np.testing.assert_array_equal(_tiles.flat(x, 2)[:8], x[:, 0])
    np.testing.assert_array_equal(_tiles.flat(x.reshape(9, 8), 2), x.reshape(-1))


@pytest.mark.parametrize("lead", LEADS[:3])
@pytest.mark.parametrize("size", [64, 256])
def test_blocks_by_index(lead, size):
    x, rng = rows(lead), np.random.default_rng(1)
    blocks = jnp.asarray(rng.integers(0, VOCAB // size, (*lead, 3)), jnp.int32)
    want = np.take_along_axis(x.reshape(*lead, -1, size), np.asarray(blocks)[..., None], -2)
    np.testing.assert_array_equal(_tiles.take_blocks(x, blocks, size), want)


@pytest.mark.slow
@pytest.mark.parametrize("lead", LEADS[:3])
def test_masks_unpacked_by_tile(lead):
    mask = rows(lead) > 500
    words = _bits.packed(mask)
    np.testing.assert_array_equal(_bits._by_tile(words, VOCAB), mask)
