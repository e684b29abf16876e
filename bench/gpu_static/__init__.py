"""The programs that XLA compiles for NVIDIA GPUs, on a machine without a GPU.

`python -m bench.gpu_static` prints the launches and the temporaries of each program.
"""
