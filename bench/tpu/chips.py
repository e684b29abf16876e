"""The chips that are compiled for, as far as they decide how fast memory is."""

from typing import NamedTuple


class Chip(NamedTuple):
    """One TensorCore, which is what a program runs on; a TPU7x chip has two.

    Attributes:
      topology: its name for the compiler.
      bandwidth: bytes a second of HBM.
      peak: bfloat16 operations a second.
      mxu_size: the sides of its matrix units.
      mxus: how many of them there are.
    """

    topology: str
    bandwidth: float
    peak: float
    mxu_size: int
    mxus: int = 4

    @property
    def clock(self) -> float:
        """Cycles a second: a matrix unit does a multiplication and an addition a cell a cycle."""
        return self.peak / (2 * self.mxu_size**2 * self.mxus)

    @property
    def bytes_a_cycle(self) -> float:
        """What HBM reads or writes while a bundle runs."""
        return self.bandwidth / self.clock


CHIPS = {
    "v5e": Chip("v5e:2x2", 819e9, 197e12, 128),
    "v6e": Chip("v6e:2x2", 1640e9, 918e12, 256),
    "tpu7x": Chip("tpu7x:2x2x1", 7380e9 / 2, 2307e12 / 2, 256),
}
"""Bandwidths and peaks are those of https://cloud.google.com/tpu/docs, a core's share."""
