"""Log-sum-exp with a value from exact masses and the softmax as its gradient."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxsample._core import _mass, _shards
from jaxsample._core._mass import Mass
from jaxsample._core._rows import Rows
from jaxsample._core._shards import Shards


def logprobs(rows: Rows, mass: Mass, kept: Array, chosen: Array) -> Array:
    """Returns log-probabilities of chosen logits under the softmax of the kept ones.

    Args:
      rows: the logits, scanned.
      mass: `[...]`, of the kept tokens.
      kept: the logits, -inf for tokens that are not kept, read only for the gradient.
      chosen: `[..., n]`, the logits to normalise.

    Returns:
      float32 `[..., n]`; NaN on a bad row.
    """
    row_max, bad = rows.row_max[..., None], rows.bad[..., None]
    # Bad rows are masked before differentiation: even unused, they would make gradients NaN.
    kept, chosen = (jnp.where(bad, 0, x).astype(jnp.float32) for x in (kept, chosen))
    normalizer = _log_sum_exp(
        kept - row_max, jnp.where(rows.bad, 0, _mass.log(mass)), rows.source.shards
    )
    return jnp.where(bad, jnp.nan, chosen - row_max - normalizer[..., None])


@jax.custom_jvp
def _log_sum_exp(x: Array, value: Array, shards: Shards | None) -> Array:
    """Returns `log(sum(exp(x)))` over the last axis, given its value."""
    del x, shards
    return value


@_log_sum_exp.defjvp
def _log_sum_exp_jvp(
    primals: tuple[Array, Array, Shards | None], tangents: tuple[Array, Array, Shards | None]
) -> tuple[Array, Array]:
    x, value, shards = primals
    value = _log_sum_exp(*primals)
    softmax = jnp.exp(x - value[..., None])
    return value, _shards.total(jnp.sum(softmax * tangents[0], axis=-1), shards)
