"""Keys of a request: all 64 bits of its seed matter, and other requests do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsample import request_keys, seed_words

LARGE = [0, 1, 2**31 - 1, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]


def data(keys):
    return np.asarray(jax.random.key_data(keys)).tolist()


def folded(words, position):
    """Computes the definition."""
    key = jax.random.wrap_key_data(np.uint32(words), impl="threefry2x32")
    return data(jax.random.fold_in(key, position))


def test_every_bit_of_a_seed_counts():
    got = data(request_keys(LARGE, 3))
    assert got == [folded(divmod(seed, 2**32), 3) for seed in LARGE]
    assert len({tuple(words) for words in got}) == len(LARGE)


def test_seeds_of_32_bits_have_the_keys_of_jax():
    for seed in LARGE[:4]:
        assert data(request_keys(seed, 7)) == data(jax.random.fold_in(jax.random.key(seed), 7))


@pytest.mark.parametrize(
    "seeds",
    [
        [5, 2**31 - 1],
        np.array([5, 2**31 - 1]),
        np.array([5, 2**31 - 1], np.uint64),
        (np.int64(5), np.uint32(2**31 - 1)),
        jnp.array([5, 2**31 - 1], jnp.int32),
        seed_words([5, 2**31 - 1]),
        jnp.asarray(seed_words([5, 2**31 - 1])),
    ],
)
def test_seeds_of_every_kind(seeds):
    want = [folded((0, 5), 2), folded((0, 2**31 - 1), 9)]
    assert data(request_keys(seeds, np.array([2, 9]))) == want
    if not isinstance(seeds, list | tuple):  # jit would convert lists and tuples to pytrees
        narrow = seeds if seeds.dtype.itemsize < 8 else seeds.astype(np.int32)
        assert data(jax.jit(request_keys)(narrow, jnp.array([2, 9]))) == want


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "uint16"])
def test_jax_integers_of_any_width(dtype):
    assert data(request_keys(jnp.array([100], dtype), 1)) == [folded((0, 100), 1)]


def test_64_bit_mode():
    with jax.enable_x64(True):
        for seeds in (LARGE[:6], jnp.array(LARGE[:6]), jnp.array(LARGE, jnp.uint64)[:6]):
            assert data(request_keys(seeds, 3)) == [folded(divmod(s, 2**32), 3) for s in LARGE[:6]]
        assert data(request_keys(jnp.array(LARGE, jnp.uint64), 3)) == data(request_keys(LARGE, 3))


def test_requests_without_a_seed_take_another_key():
    other = jax.random.split(jax.random.key(9), 3)
    for seeds in ([4, -1, -(2**40)], np.array([4, -1, -7]), jnp.array([4, -1, -7])):
        keys = request_keys(seeds, [1, 2, 3], unseeded=other)
        want = [folded((0, 4), 1), *(data(jax.random.fold_in(other[i], 1 + i)) for i in (1, 2))]
        assert data(keys) == want
        one = request_keys(seeds, [1, 2, 3], unseeded=jax.random.key(9))  # split over the rows
        assert data(one) == want


def test_a_request_has_its_keys_in_any_slot_and_shape():
    seeds, positions = np.arange(6).reshape(2, 3), np.array([4, 0, 2])
    keys = request_keys(seeds, positions)
    assert keys.shape == (2, 3)
    assert data(keys[1, 2]) == data(request_keys(5, 2))
    mapped = jax.vmap(request_keys, (0, None))(jnp.asarray(seeds), jnp.asarray(positions))
    assert data(mapped) == data(keys)


def test_seeds_become_words():
    np.testing.assert_array_equal(seed_words(2**33 + 5), [2, 5])
    assert seed_words([[1], [2]]).shape == (2, 1, 2)
    assert seed_words([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: request_keys([3, -1], 0), ValueError, "unseeded must be given if seeds are"),
        (lambda: request_keys(2**64, 0), ValueError, r"seeds must be below 2\*\*64, got 1844"),
        (lambda: request_keys(0.5, 0), TypeError, "seeds must hold integers, got 0.5"),
        (lambda: request_keys([True], 0), TypeError, "seeds must hold integers, got True"),
        (lambda: request_keys(jnp.ones(2), 0), TypeError, "seeds must hold integers, got float32"),
        (lambda: request_keys(np.zeros(3, np.uint32), 0), ValueError, r"seeds of uint32 must have"),
        (lambda: request_keys([1, 2], [1, 2, 3]), ValueError, "positions must broadcast with one"),
        (lambda: request_keys(1, 0.5), TypeError, "positions must hold integers"),
        (lambda: request_keys(-1, 0, unseeded=3), TypeError, "unseeded must be a jax.random.key"),
        (
            lambda: request_keys([1], 0, unseeded=jax.random.split(jax.random.key(0))),
            ValueError,
            "unseeded must be one key, or keys of shape",
        ),
        (lambda: seed_words(-1), ValueError, "seeds must be at least 0, got -1"),
    ],
)
def test_errors_name_invalid_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
