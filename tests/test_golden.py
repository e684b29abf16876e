"""The golden results are the same on every version of JAX, with and without fused multiply-add."""

import functools
import itertools

import golden_cases
import jax
import numpy as np
import pytest

import jaxsample as js

pytestmark = pytest.mark.slow

ROUNDED = (
    *("detect_green_list", "detect_synthid", "detect_gumbel", "synthid_logits"),
    *("without_replacement_sample", "stochastic_beam_step"),
)
"""Results with a larger tolerance: XLA's special functions do not guarantee the last bit, and the
rounding errors of a tournament of 30 layers or of the arrival times of one chunk add up.
"""


@functools.cache
def cases(group):
    return golden_cases.GROUPS[group]()


@functools.cache
def golden(group):
    with np.load(golden_cases.FOLDER / f"{group}.npz") as file:
        return dict(file)


def names():
    return [(group, name) for group in golden_cases.GROUPS for name in cases(group)]


@pytest.mark.parametrize(("group", "name"), names())
def test_a_result_is_the_golden_one(group, name):
    """Bit for bit, except for numbers computed from sums of weights, which may differ by one unit.

    Fusing a product and a sum changes the last bit of a weight.
    """
    got = golden_cases.results(cases(group)[name]())
    want = {
        path.removeprefix(f"{name}/"): array
        for path, array in golden(group).items()
        if path.startswith(f"{name}/")
    }
    assert got.keys() == want.keys()
    for place, array in want.items():
        assert got[place].dtype == array.dtype
        if array.dtype != np.float32:
            np.testing.assert_array_equal(got[place], array, err_msg=place)
        elif name in ROUNDED:
            np.testing.assert_allclose(got[place], array, rtol=1e-5, atol=1e-5)
        else:
            assert_within_a_unit(got[place], array)


def assert_within_a_unit(got, want):
    """Asserts equality up to the last place; NaN and infinities are equal."""
    clear = np.isfinite(want)
    np.testing.assert_array_equal(got[~clear], want[~clear])
    assert (np.abs(got[clear] - want[clear]) <= np.spacing(np.abs(want[clear]))).all()


def test_every_public_function_has_a_golden_result():
    public = {name for name in js.__all__ if name.islower()}
    tested = set(itertools.chain(*map(cases, golden_cases.GROUPS)))
    # The cases of `sample` are named by their contents; the other functions copy or compare
    # integers.
    assert public - tested == {"sample", "set_rows", "stop_reason"}
    for group in golden_cases.GROUPS:
        held = {path.split("/")[0] for path in golden(group)}
        assert held == set(cases(group))


def test_the_inputs_match_the_golden_results():
    """Compares checksums of their bits, so that they do not depend on the version of NumPy."""
    rows = [golden_cases.logits(300, dtype).view(np.uint8) for dtype in golden_cases.DTYPES]
    assert [int(x.astype(np.int64).sum()) for x in rows] == [1499989, 989330, 873841]
    assert jax.random.key_data(golden_cases.keys())[7].tolist() == [0, 7]
