"""Kernels for TPU, written in Pallas, in place of parts of the first look at the rows.

`rows` holds the kernels, `choice` says which programs get them. What they compute is defined by
XLA's way in `_scan`, to which they are held bit for bit.
"""
