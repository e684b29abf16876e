"""Exact masses of tokens of a row, and the kernel for the mass of all its tokens.

Logits are compared as sortable integers. A search then needs no casts between the bits of integers
and floats, which Mosaic GPU does not support for scalars.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxsample._core import _mass, _ranking
from jaxsample._core._elementary import product
from jaxsample._core._mass import Mass
from jaxsample._core._ranking import Cut
from jaxsample._core._sortable import from_sortable, to_sortable
from jaxsample._gpu import tiles
from jaxsample._gpu.tiles import Row, Tile

PIVOTS = 8
"""The number of sums of a pass, for which a search takes the fewest operations (bench/NOTES.md)."""

_TOGETHER = 8
"""The number of chunks of a tile; 16 would need too many registers."""

MOST = np.int32(np.iinfo(np.int32).max)
LEAST = np.float32(-np.inf).view(np.int32) ^ MOST
"""The sortable integer of -inf."""


class Inputs(NamedTuple):
    """The rows and their parameters.

    Attributes:
      logits: `[rows, vocab]`.
      shifts: int32 `[rows, chunks]`, the shifts of the weights.
      needed: bool `[rows]`, the rows to process; the results of other rows are undefined.
      row_max: float32 `[rows]`, the largest logit, multiplied by beta.
      beta: float32 `[rows]`, the inverse temperature, or None.
      k: int32 `[rows]`, the number of tokens to keep; the size of the vocabulary is neutral.
      p: float32 `[rows]`, the share of the mass to keep; 1 is neutral.
      floor: float32 `[rows]`, the least logit to keep; -inf is neutral.
    """

    logits: Array
    shifts: Array
    needed: Array
    row_max: Array
    beta: Array | None
    k: Array | None = None
    p: Array | None = None
    floor: Array | None = None


def row_masses(inputs: Inputs, *, interpret: bool) -> Mass:
    """Returns the masses `[rows]` of all tokens."""

    def body(tokens: "Tokens", high_ref: Any, low_ref: Any) -> None:
        (mass,) = tokens.masses(up_to(tokens.everything()))
        high_ref[tokens.row.number], low_ref[tokens.row.number] = mass

    return Mass(*call("row_masses", body, inputs, [((), jnp.uint32)] * 2, interpret))


Tests = Callable[[Array, Array], list[Array]]
"""Takes the sortable logits and the ids of tokens, returns which tokens pass each test."""


class Tokens(NamedTuple):
    """The tokens of a row.

    Attributes:
      row: the row.
      sums: int32 `[PIVOTS, chunks]`, padded, in shared memory.
      shifts: int32 `[chunks]`, the shifts of the weights, padded, in shared memory.
      given: the parameters of the row by their names in `Inputs`; the floor is a sortable integer.
      counting: whether each token weighs one unit.
    """

    row: Row
    sums: Any
    shifts: Any
    given: dict[str, Array]
    counting: bool = False

    def everything(self) -> Cut:
        """Returns the cut after the last token."""
        return Cut(jnp.int32(LEAST), jnp.int32(self.row.vocab))

    def each(self, visit: Callable[[Tile, Array], None]) -> None:
        """Calls a function with each scaled tile of the row and the weights of its tokens."""

        def scaled(tile: Tile) -> None:
            if "beta" in self.given:
                tile = tile._replace(x=product(tile.x, self.given["beta"]))
            if self.counting:
                visit(tile, (tile.x > -jnp.inf).astype(jnp.int32))
            else:
                visit(tile, tile.weights(self.given["row_max"], self.shifts[tile.chunks]))

        self.row.each(scaled)

    def masses(self, tests: Tests, number: int = 1) -> list[Mass]:
        """Returns the masses of the tokens that pass each test."""

        def add_up(tile: Tile, weights: Array) -> None:
            for place, passed in enumerate(tests(sortable(tile.x), tile.ids)):
                self.sums[place, tile.chunks] = tiles.total(jnp.where(passed, weights, 0))

        self.each(add_up)
        shifts = tiles.load_all(self.shifts)
        shifts = jnp.full_like(shifts, _mass.NO_SHIFT) if self.counting else shifts
        found = []
        for place in range(number):
            limbs = _mass.limbs(_mass.place(tiles.load_all(self.sums.at[place]), shifts))
            found.append(_mass.carried([jnp.sum(limb, dtype=jnp.uint32) for limb in limbs]))
        return found

    def least(self, number: Array) -> Mass:
        """Returns a lower bound of the mass of a token, by its sortable logit."""
        if self.counting:
            return Mass(jnp.uint32(0), jnp.uint32(1))
        x = from_sortable(tiles.filled(number))
        nothing = tiles.filled(jnp.int32(0))
        least = _mass.least(tiles.weights(x, nothing, self.given["row_max"], nothing))
        return Mass(*map(jnp.max, least))


def up_to(cut: Cut) -> Tests:
    """Returns the test of the tokens up to a cut, whose logit is a sortable integer."""
    return lambda x, ids: [is_kept(x, ids, cut)]


def is_kept(x: Array, ids: Array, cut: Cut) -> Array:
    """As `_ranking.is_kept`, with a scalar cut instead of one for each row."""
    return (x > cut.logit) | ((x == cut.logit) & (ids <= cut.token))


def sortable(x: Array) -> Array:
    """Returns `to_sortable` of logits that are not NaN; -0 and 0 are equal."""
    bits = lax.bitcast_convert_type(_ranking.unsigned_zero(x), jnp.int32)
    return bits ^ ((bits >> 31) & MOST)


def call(
    name: str, body: Callable[..., None], inputs: Inputs, outputs: list[Any], interpret: bool
) -> tuple[Array, ...]:
    """Runs a body for the needed rows, with their tokens and the references to the outputs."""
    chunks = inputs.shifts.shape[1]
    size = tiles.padded(chunks)
    given = inputs._asdict()
    logits, needed = given.pop("logits"), given.pop("needed").astype(jnp.int32)
    padded = jnp.pad(given.pop("shifts"), [(0, 0), (0, size - chunks)])
    if inputs.floor is not None:
        given["floor"] = to_sortable(_ranking.unsigned_zero(inputs.floor))
    given = {name: x for name, x in given.items() if x is not None}

    def run(row: Row, refs: list[Any], output_refs: list[Any], sums: Any, shifts: Any) -> None:
        needed_ref, shifts_ref, *given_refs = refs

        @pl.when(needed_ref[row.number] > 0)
        def _() -> None:
            sums[...] = jnp.zeros(sums.shape, jnp.int32)
            shifts[...] = tiles.load_all(shifts_ref.at[row.number])
            of_row = {name: ref[row.number] for name, ref in zip(given, given_refs, strict=True)}
            body(Tokens(row, sums, shifts, of_row), *output_refs)

    return tiles.call(
        name,
        run,
        logits,
        [needed, padded, *given.values()],
        outputs,
        {"sums": plgpu.SMEM((PIVOTS, size), jnp.int32), "shifts": plgpu.SMEM((size,), jnp.int32)},
        together=_TOGETHER,
        interpret=interpret,
    )
