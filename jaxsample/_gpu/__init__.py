"""Pallas kernels for NVIDIA GPUs (Mosaic GPU), which replace parts of the scan and of the search.

A block of 128 threads reads a row from end to end, in tiles of whole chunks (`tiles`). `rows` has
the kernel of the scan, `search` those of the search. The definitions are the XLA versions in
`_core/_scan.py` and `_core/_search.py`; tests compare both bit for bit.
"""
