import os

# The suite proves semantics on the CPU unless a platform is asked for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # for tests/test_sharding.py
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def short_turns(monkeypatch):
    from rows import SHORT_TURN  # which asks for the devices

    from jaxsample._kernels import rows as kernels

    monkeypatch.setattr(kernels, "_VECTORS", SHORT_TURN)
    monkeypatch.setattr(kernels, "TURN", SHORT_TURN * kernels.LANES)


@pytest.fixture(scope="module", autouse=True)
def _drop_compiled():
    """Every compiled program holds a few memory mappings, of which Linux grants a process 65,530:
    beyond them the compiler crashes, and the whole suite in one process comes near."""
    yield
    jax.clear_caches()
