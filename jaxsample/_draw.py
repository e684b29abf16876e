"""Law 2: a token is a function of the key of its row and the kept logits, and of nothing else.

The Gumbel-max of all tokens, in two steps: the chunk whose log-sum-exp and noise are the largest
sum, then the token of that chunk likewise. An exact draw from the softmax, for the noise of
`vocab / 256 + 256` numbers a row.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsample import _mass, _ranking
from jaxsample._chunks import CHUNK, Rows, take_chunk
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
    chunk_keys, token_keys = _split(keys)
    log_sums = _mass.log_sums(sums, scale.shifts)
    chunk = jnp.argmax(log_sums + gumbel(chunk_keys, log_sums.shape[-1]), axis=-1).astype(jnp.int32)
    x, ids = take_chunk(rows, chunk)
    x = jnp.where(_ranking.is_kept(x, ids, cut), x, -jnp.inf)
    lane = jnp.argmax(x + gumbel(token_keys, CHUNK), axis=-1).astype(jnp.int32)
    return chunk * CHUNK + lane


def gumbel(keys: Array, number: int) -> Array:
    """Standard Gumbel noise for each key, float32 `[..., number]`.

    Noise i does not depend on the number. It has 64 random bits: 32 give no noise above 22, and
    tokens far below the others need more to be drawn as often as they should.
    """

    def bits(key: Array) -> Array:
        return jax.random.bits(key, (number, 2), jnp.uint32)

    words = jax.vmap(bits)(keys.reshape(-1)).reshape(*keys.shape, number, 2).astype(jnp.float32)
    # A uniform whose small values are the precise ones, since small exponentials are large noise.
    uniform = words[..., 0] * 2.0**-32 + (words[..., 1] + 0.5) * 2.0**-64
    exponential = -jnp.log1p(-jnp.minimum(uniform, np.float32(1 - 2.0**-24)))
    return -jnp.log(exponential)


def _split(keys: Array) -> tuple[Array, Array]:
    pairs = jax.vmap(jax.random.split)(keys.reshape(-1)).reshape(*keys.shape, 2)
    return pairs[..., 0], pairs[..., 1]
