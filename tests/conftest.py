import dataclasses
import doctest
import inspect
import os

# The tests check semantics, so they run on the CPU unless another platform is requested.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Several processes share a GPU, and by default the first would allocate all memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # for tests/test_sharding.py
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


_from_module = doctest.DocTestFinder._from_module


def _unwrapped_from_module(self, module, object):
    """Finds the examples of public functions, which are wrappers defined in another module."""
    return _from_module(self, module, inspect.unwrap(object) if callable(object) else object)


doctest.DocTestFinder._from_module = _unwrapped_from_module


def pytest_addoption(parser):
    parser.addoption(
        "--optimised",
        action="store_true",
        help="compile as users do, with optimised machine code and fused multiply-add",
    )
    parser.addoption(
        "--interpret-kernels",
        action="store_true",
        help="use the TPU kernels, interpreted, wherever they support the logits",
    )


def pytest_configure(config):
    if os.environ["JAX_PLATFORMS"] == "cpu" and not config.getoption("--optimised"):
        from unoptimised import OPTIONS

        flags = (f"--{name}={value}" for name, value in OPTIONS.items())
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
    if config.getoption("--interpret-kernels"):
        _interpret_kernels(pytest.MonkeyPatch())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the code of the documentation pages as slow."""
    for item in items:
        if item.path.suffix == ".md" and "docs" in item.path.parts:
            item.add_marker("slow")


def _interpret_kernels(monkeypatch):
    from jaxsample._core import _scan, _search

    choose = _scan.choose

    def interpreted(otherwise, source, *rest, **kernels):
        forced = dataclasses.replace(source, implementation=source.implementation or "pallas")
        try:
            return choose(otherwise, forced, *rest, **kernels)
        except ValueError:  # for rows that it does not support
            return choose(otherwise, source, *rest, **kernels)

    monkeypatch.setattr(_scan, "choose", interpreted)
    monkeypatch.setattr(_search, "choose", interpreted)
    _shorten_turns(monkeypatch)


@pytest.fixture
def short_turns(monkeypatch):
    _shorten_turns(monkeypatch)


def _shorten_turns(monkeypatch):
    from rows import SHORT_TURN  # initialises the devices

    from jaxsample._tpu import blocks
    from jaxsample._tpu import rows as kernels

    monkeypatch.setattr(kernels, "_VECTORS", SHORT_TURN)
    monkeypatch.setattr(kernels, "TURN", SHORT_TURN * kernels.LANES)
    monkeypatch.setattr(blocks, "VECTORS", SHORT_TURN)
    monkeypatch.setattr(blocks, "STEP", SHORT_TURN * kernels.LANES)


@pytest.fixture(scope="module", autouse=True)
def _drop_compiled():
    """Each compiled program takes a few memory mappings, of which Linux allows a process 65,530. If
    they are exceeded, the compiler crashes, and the whole suite in one process comes close.
    """
    yield
    jax.clear_caches()
