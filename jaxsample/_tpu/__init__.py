"""Pallas kernels for TPU that replace parts of the scan and of the search of the rows.

`_core/_kernels.py` selects the programs that use them. The definitions are the XLA versions in
`_core/_scan.py` and `_core/_search.py`; tests compare both bit for bit.
"""
