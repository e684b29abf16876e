"""The chips that programs are compiled for, with the data that determines memory speed."""

from typing import NamedTuple


class Chip(NamedTuple):
    """One TensorCore, on which a program runs; a TPU7x chip has two.

    Attributes:
      topology: the name for the compiler.
      bandwidth: the bandwidth of HBM in bytes per second.
      peak: the number of bfloat16 operations per second.
      mxu_size: the side length of the matrix units.
      mxus: the number of matrix units.
    """

    topology: str
    bandwidth: float
    peak: float
    mxu_size: int
    mxus: int = 4

    @property
    def clock(self) -> float:
        """Returns cycles per second: each cell of a matrix unit does two operations per cycle."""
        return self.peak / (2 * self.mxu_size**2 * self.mxus)

    @property
    def bytes_a_cycle(self) -> float:
        """Returns the bytes that HBM transfers per cycle."""
        return self.bandwidth / self.clock


CHIPS = {
    "v5e": Chip("v5e:2x2", 819e9, 197e12, 128),
    "v6e": Chip("v6e:2x2", 1640e9, 918e12, 256),
    "tpu7x": Chip("tpu7x:2x2x1", 7380e9 / 2, 2307e12 / 2, 256),
}
"""Bandwidths and peaks are from https://cloud.google.com/tpu/docs, divided by the number of cores.
"""
