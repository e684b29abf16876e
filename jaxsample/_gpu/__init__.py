"""Pallas kernels for NVIDIA GPUs (Mosaic GPU) that replace parts of the scan and of the search.

A block of 128 threads reads a row from end to end, in tiles of whole chunks. `_core/_kernels.py`
selects the programs that use them. The definitions are the XLA versions in `_core/_scan.py` and
`_core/_search.py`; tests compare both bit for bit.
"""
