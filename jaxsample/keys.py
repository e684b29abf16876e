"""PRNG keys of requests, derived from seeds and positions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _checks
from jaxsample._core._public import public


def _words(name: str, seeds: Any) -> tuple[Any, Any]:
    """Returns the two words of each seed, and which seeds are below 0; None for unsigned seeds."""
    if getattr(seeds, "dtype", None) == np.uint32:
        if seeds.shape[-1:] != (2,):
            raise ValueError(
                f"{name} of uint32 must have shape [..., 2], two words a seed, got {seeds.shape}"
            )
        return seeds, None
    if not isinstance(seeds, Array):
        return _host_words(seeds)
    if _checks.kind(seeds) not in "iu":
        raise TypeError(f"{name} must hold integers, got {seeds.dtype}")
    high = (seeds >> 16) >> 16 if seeds.dtype.itemsize > 2 else jnp.where(seeds < 0, -1, 0)
    return jnp.stack([high.astype(jnp.uint32), seeds.astype(jnp.uint32)], axis=-1), seeds < 0


def _host_words(seeds: Any) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(seeds, object)
    for seed in array.flat:
        if not isinstance(seed, int | np.integer) or isinstance(seed, bool):
            raise TypeError(f"seeds must hold integers, got {seed!r}")
        if seed >= 2**64:
            raise ValueError(f"seeds must be below 2**64, got {seed}")
    words = [divmod(int(seed) % 2**64, 2**32) for seed in array.flat]
    negative = [seed < 0 for seed in array.flat]
    return (
        np.array(words, np.uint32).reshape(*array.shape, 2),
        np.array(negative, bool).reshape(array.shape),
    )


def _unseeded(name: str, value: Any, seeds: tuple[Any, Any]) -> Any:
    negative = seeds[1]
    if value is None and isinstance(negative, np.ndarray) and negative.any():
        raise ValueError(f"{name} must be given if seeds are below 0, got {negative.sum()}")
    return value


@public(
    first="seeds",
    convert_first=_words,
    static=(),
    positions=lambda name, value, _: _checks.integers(name, value),
    unseeded=_unseeded,
)
def request_keys(seeds: Any, positions: ArrayLike, *, unseeded: ArrayLike | None = None) -> Array:
    """Returns the key of each request at a position: `fold_in(key of the seed, position)`.

    The key depends on all 64 bits of the seed. (`jax.random.key` drops the upper half unless
    `jax_enable_x64` is set; for seeds of 32 bits both return the same key.)

    Args:
      seeds: integers `[...]` below 2**64: Python or NumPy integers on the host, or a JAX array of
        signed integers. A seed below 0 means that the request has no seed. For seeds of 64 bits in
        traced code, uint32 `[..., 2]`: two words a seed, the upper one first, from `seed_words`.
      positions: integers `[...]`, at least 0, broadcast with the seeds: the number of tokens before
        the one to be drawn.
      unseeded: the keys of requests without a seed: one key, split over the requests, or an array
        of keys `[...]`, one each. Seeds given as two words are never below 0; for these, select
        keys with `jnp.where`.

    Returns:
      Typed threefry keys `[...]`, for `sample`. Each depends only on the seed and position of its
      request.

    Raises:
      TypeError: a wrong dtype; the message names the argument.
      ValueError: a wrong shape, a seed of more than 64 bits, or on the host a seed below 0 if
        `unseeded` is None. (A traced one is then the seed `seed + 2**64`.)

    >>> import jax
    >>> keys = request_keys([7, 7, 2**32 + 7, -1], [0, 1, 0, 0], unseeded=jax.random.key(0))
    >>> print(keys.shape, keys[0] == jax.random.fold_in(jax.random.key(7), 0))
    (4,) True
    """
    words, negative = seeds
    try:
        shape = jnp.broadcast_shapes(words.shape[:-1], jnp.shape(positions))
    except ValueError:
        raise ValueError(
            f"positions must broadcast with one seed a request, of shape {words.shape[:-1]}, got "
            f"shape {jnp.shape(positions)}"
        ) from None
    keys = jnp.broadcast_to(jax.random.wrap_key_data(words, impl="threefry2x32"), shape)
    if unseeded is not None:
        others = _checks.keys("unseeded", unseeded, jnp.empty((*shape, 1)))
        keys = keys if negative is None else jnp.where(negative, others, keys)
    each = jnp.broadcast_to(positions, shape).astype(jnp.uint32)
    return jnp.vectorize(jax.random.fold_in)(keys, each)


def seed_words(seeds: Any) -> np.ndarray:
    """Returns seeds of up to 64 bits as two words of 32 bits, for use in traced code.

    Args:
      seeds: Python or NumPy integers `[...]` in [0, 2**64), on the host.

    Returns:
      NumPy uint32 `[..., 2]`, the upper word first, for `request_keys`.

    Raises:
      TypeError: seeds that are not integers.
      ValueError: a seed outside its range; the message names the seeds.

    >>> print(seed_words([1, 2**32 + 1]))
    [[0 1]
     [1 1]]
    """
    words, negative = _host_words(seeds)
    if negative.any():
        raise ValueError(f"seeds must be at least 0, got {seeds}")
    return words
