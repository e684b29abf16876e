"""Scanned rows: their logits at a temperature, and the largest of them."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core._checks import to_elements
from jaxsample._core._elementary import product
from jaxsample._core._sortable import from_sortable
from jaxsample._core._source import Source


class Rows(NamedTuple):
    """Logits that were scanned once.

    Attributes:
      source: the logits. With a sharded vocabulary, all other fields are of the whole row.
      beta: float32 `[...]`, the inverse temperature, by which logits are multiplied; None is 1.
      cut_beta: the beta of truncation; None if the temperature is applied after the cut.
      maxima: `[..., blocks]`, the largest logit of each block as a sortable integer. Without a
        ranking (`_scan.scan_and_weigh`) the blocks are chunks.
      raw_max: float32 `[...]`, the largest logit of the row; 0 on a bad row.
      row_max: float32 `[...]`, beta times `raw_max`.
      bad: bool `[...]`, rows with a NaN, with +inf or without a finite logit.
      overflows: bool `[...]`, rows for which beta times the largest logit overflows float32: their
        beta is 1, and they are greedy.
    """

    source: Source
    beta: Array | None
    cut_beta: Array | None
    maxima: Array
    raw_max: Array
    row_max: Array
    bad: Array
    overflows: Array

    @property
    def dtype(self) -> Any:
        """The dtype of the raw values."""
        return self.source.logits.dtype

    @property
    def vocab(self) -> int:
        return self.source.vocab

    @property
    def block_max(self) -> Array:
        """Beta times the largest logit of each block, float32 `[..., blocks]`."""
        return self.read(from_sortable(self.maxima, self.dtype))

    @property
    def ids(self) -> Array:
        """The ids of the tokens, int32 `[..., vocab]`."""
        return self.source.ids

    def read(self, raw: Array) -> Array:
        """Returns the scaled float32 logits of raw values `[..., *]`."""
        return _read(raw, self.beta)

    def read_to_cut(self, raw: Array) -> Array:
        """Returns the float32 logits of raw values at the temperature of the cut."""
        return _read(raw, self.cut_beta)

    def divided_by(self, divisor: Array | None) -> "Rows":
        """Returns the rows with beta computed from a divisor, differentiable in the divisor."""
        if divisor is None:
            return self
        return self._replace(beta=1 / jnp.where(self.overflows, 1, divisor))

    def read_from_cut(self, logits: Array) -> Array:
        """Returns the scaled logits, from logits at the temperature of the cut."""
        return self.read(logits.astype(self.dtype)) if self.cut_beta is None else logits


def scanned(
    source: Source, sortable: Array, beta: Array | None = None, largest: Array | None = None
) -> Rows:
    """Returns the rows of a source, given their sortable block maxima and `largest` of each row."""
    dtype = source.logits.dtype
    if largest is None:
        # A maximum of integers, since one of floats over several devices may drop a NaN.
        largest = jnp.max(sortable, axis=-1)
    raw_max = from_sortable(largest, dtype).astype(jnp.float32)
    bad = ~jnp.isfinite(raw_max)
    raw_max = jnp.where(bad, 0, raw_max)
    overflows = jnp.zeros_like(bad)
    if beta is not None:
        beta, overflows = bounded_beta(beta, raw_max)
    # Rounding is monotone, so the largest logit remains the largest.
    row_max = _read(raw_max, beta)
    return Rows(source, beta, beta, sortable, raw_max, row_max, bad, overflows)


def scaled_after(rows: Rows, beta: Array) -> Rows:
    """Returns scanned rows with a temperature that is applied after truncation."""
    return scanned(rows.source, rows.maxima, beta)._replace(cut_beta=None)


def bounded_beta(beta: Array, raw_max: Array) -> tuple[Array, Array]:
    """Returns beta, or 1 where its product with the largest logit overflows, and these rows."""
    overflows = ~(jnp.abs(raw_max * beta) < jnp.inf)
    return jnp.where(overflows, 1, beta), overflows


def read_again(rows: Rows, after: Any) -> tuple[Rows, Any]:
    """Keeps XLA from materialising an intermediate that two passes over the rows share.

    XLA would compute a common subexpression of two passes, or of all iterations of a loop, once and
    write it to memory, which is a copy of the logits. A barrier makes the rows depend on `after`, a
    result of the previous pass.
    """
    if rows.source.shards is not None:
        # An array in one barrier with the logits would vary over the same mesh axes.
        return rows._replace(source=lax.optimization_barrier((rows.source, after))[0]), after
    read = (rows.source, rows.beta, rows.cut_beta)
    (source, beta, cut_beta), after = lax.optimization_barrier((read, after))
    return rows._replace(source=source, beta=beta, cut_beta=cut_beta), after


def read_again_unless_fused(rows: Rows, after: Array, *, tested: bool) -> tuple[Rows, Array]:
    """As `read_again`, but not on TPU and CUDA, where XLA fuses two independent passes into one.

    If both passes test which tokens to include (`tested`), there is a barrier on CUDA as well: XLA
    would materialise the shared test.
    """
    if rows.source.shards is not None:
        return rows, after  # the barrier would make a replicated mask vary over the devices

    def tied(rows: Rows, after: Array) -> tuple[Rows, Array]:
        return read_again(rows, after)

    def loose(rows: Rows, after: Array) -> tuple[Rows, Array]:
        return rows, after

    cuda = tied if tested else loose
    return lax.platform_dependent(rows, after, tpu=loose, cuda=cuda, default=tied)


def _read(raw: Array, beta: Array | None) -> Array:
    x = raw.astype(jnp.float32)
    return x if beta is None else product(x, to_elements(beta, x))
