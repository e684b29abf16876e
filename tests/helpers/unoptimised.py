"""Compiler options without optimisation of machine code, which halve the compile time.

Tests compile with them unless `--optimised` is given. Continuous integration gives it for tests
that run longer than they compile, and for the default suite, the golden results, the other systems
and the TPU compiler.
"""

import functools

import jax

LEVEL = {"xla_backend_optimization_level": 0}

# A CPU with fused multiply-add rounds a product and its sum once or twice, depending on how XLA
# splits the program. A CPU without it rounds in the same way at every optimisation level.
OPTIONS = {"xla_cpu_max_isa": "AVX", **LEVEL}

# For tests without `--optimised`: the options of a single program do not disable all fusion.
compiled = functools.partial(jax.jit, compiler_options=OPTIONS)


def to_read(jitted, arguments):
    """Compiles a program that is inspected and not run."""
    return jitted.lower(*arguments).compile(LEVEL)
