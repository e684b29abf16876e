"""Static analysis of the programs that the TPU compiler makes, on a machine without a TPU.

`programs` lists the functions, `compiler` compiles them and keeps the schedule, `bundles` and `hlo`
parse the output, `estimate` adds it up, and `chips` contains the published data of the chips.
"""
