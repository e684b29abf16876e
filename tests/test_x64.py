"""64-bit mode: every function returns the same bits and dtypes, for inputs of any width."""

import catalogue
import jax
import numpy as np
import pytest
from composed import a_state, every_param
from rows import every_kind, exhaustive

import jaxsample as js

pytestmark = pytest.mark.slow


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


NAMES = [name for name in catalogue.NAMES if "sample," not in name]
"""Calls of `sample` with other fields are tested below."""


@pytest.mark.parametrize("name", [n if n in catalogue.VARIED else exhaustive(n) for n in NAMES])
def test_every_function(name):
    """Parameters are float64 and int64 in this mode."""
    x = every_kind(1, 300)
    function, arguments = catalogue.calls(x)[name]
    want = function(*arguments)
    with jax.enable_x64(True):
        function, arguments = catalogue.calls(x)[name]
        assert_same(function(*arguments), want)


@pytest.mark.exhaustive
def test_every_field_of_sample():
    x = every_kind(3, 300)
    keys = jax.vmap(jax.random.key)(np.arange(len(x), dtype=np.int32))
    given = {"num_logprobs": 5, "return_kept": True}
    want = js.sample(keys, x, every_param(len(x)), a_state(len(x)), **given)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype("f8") if a.dtype == "f4" else a, every_param(len(x)))
        assert wide.temperature.dtype == np.float64
        assert wide.suppressed_token_ids.dtype == np.int64
        assert_same(js.sample(keys, x, wide, a_state(len(x)), **given), want)
        wide.validate()
