"""Pallas kernels for TPU that replace parts of the first scan of the rows.

`rows` and `merging` hold the kernels, `choice` selects the programs that use them. The definitions
are the XLA versions in `_core/_scan.py`; tests compare both bit for bit.
"""
