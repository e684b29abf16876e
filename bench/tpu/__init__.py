"""What the TPU compiler makes of the samplers, on a machine without a TPU.

`programs` says what is compiled, `compiler` compiles it and keeps the schedule, `bundles` and `hlo`
read what the compiler wrote, `estimate` adds it up, `chips` holds what is published of the chips.
"""
