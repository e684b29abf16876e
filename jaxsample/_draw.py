"""Law 2: a token is a function of the key of its row and the kept logits, and of nothing else.

The draw goes in two steps: a chunk in proportion to its mass, then a token of the chunk in
proportion to its exponential. Each is a race, won by the least exponential time over its rate; the
second runs on logarithms, which is Gumbel-max. An exact draw from the softmax, for the noise of
`vocab / 256 + 256` numbers a row.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.random import threefry_2x32

from jaxsample import _elementary, _mass, _ranking
from jaxsample._chunks import CHUNK, Rows, first_true, take_chunk, to_key
from jaxsample._mass import Scale
from jaxsample._ranking import Cut


def draw(keys: Array, rows: Rows, scale: Scale, sums: Array, cut: Cut) -> Array:
    """Draws a token of each row from the softmax of its kept logits.

    Args:
      keys: threefry keys `[...]`, one a row.
      rows: the logits.
      scale: the scale of `sums`.
      sums: int32 `[..., chunks]`, the weights of the kept tokens, added up by chunk.
      cut: `[...]`, the last of the kept tokens.

    Returns:
      int32 `[...]`; anything on a bad row.
    """
    rates = _mass.rates(sums, scale.shifts)
    # A uniform whose small values are precise makes exponentials whose small values are.
    noise = uniforms(keys, rates.shape[-1], CHUNK)
    chunk_times, token_times = (-_elementary.log1m(uniform) for uniform in noise)
    chunk = _first_least(chunk_times / rates)
    raw, ids = take_chunk(rows, chunk)
    # Below the maximum, where float32 is finest: far from 0 it would swallow the noise.
    below = rows.read(raw) - rows.row_max[..., None]
    below = jnp.where(_ranking.is_kept(rows.read_to_cut(raw), ids, cut), below, -jnp.inf)
    return chunk * CHUNK + _first_least(_elementary.log(token_times) - below)


def uniforms(keys: Array, *numbers: int) -> list[Array]:
    """Streams of uniform noise in [0, 1), float32 `[..., number]` each.

    Noise i of a stream depends on the key, i and the stream's place alone. It has 64 random bits,
    one block of the hash: 32 give nothing below 1e-10, and tokens far below the others need less
    to be drawn as often as they should.
    """
    index = jnp.concatenate([jnp.arange(n, dtype=jnp.uint32) for n in numbers])
    stream = jnp.concatenate([jnp.full(n, i, jnp.uint32) for i, n in enumerate(numbers)])
    counter = jnp.concatenate([index, stream])
    # Split once, so that JAX's checker of key reuse sees that the key is spent.
    spent = jax.vmap(lambda key: jax.random.split(key, 1))(keys.reshape(-1))[:, 0]
    bits = jax.vmap(lambda key: threefry_2x32(key, counter))(jax.random.key_data(spent))
    high, low = jnp.split(bits.astype(jnp.float32), 2, axis=-1)
    uniform = high * 2.0**-32 + (low + 0.5) * 2.0**-64
    uniform = jnp.minimum(uniform, np.float32(1 - 2.0**-24)).reshape(*keys.shape, sum(numbers))
    return jnp.split(uniform, np.cumsum(numbers)[:-1], axis=-1)


def _first_least(x: Array) -> Array:
    """The lowest index of each row's least value, which `argmin` takes longer to find."""
    # As integers: a minimum of floats may go to a library, with the sums and products in front of
    # it, which rounds them in its own way. Then none would be equal to the minimum.
    keys = to_key(x)
    return first_true(keys == jnp.min(keys, axis=-1, keepdims=True))
