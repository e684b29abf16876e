"""Options of a compiler that does not optimise machine code, which takes half the time.

Tests compile with them unless `--optimised` is given. Continuous integration gives it where tests
run longer than they compile, and for the default suite, the golden results, the other systems and
the compiler for TPU.
"""

import functools

import jax

LEVEL = {"xla_backend_optimization_level": 0}

# Where a CPU multiplies and adds in one operation, it rounds once in programs that it splits in one
# way, and twice in others. Where it cannot, code rounds alike however little it is optimised.
OPTIONS = {"xla_cpu_max_isa": "AVX", **LEVEL}

# For tests without `--optimised`: the options of one program alone leave some fusion on.
compiled = functools.partial(jax.jit, compiler_options=OPTIONS)


def to_read(jitted, arguments):
    """A program to read and not to run."""
    return jitted.lower(*arguments).compile(LEVEL)
