"""The integers of all sums: exact, and close to the probabilities that they represent."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsample._core import _mass
from jaxsample._core._mass import Mass, Scale


def to_int(mass):
    return np.asarray(mass.high).astype(object) * 2**32 + np.asarray(mass.low).astype(object)


def to_mass(values):
    return Mass(*(jnp.array([v >> s & 0xFFFFFFFF for v in values], jnp.uint32) for s in (32, 0)))


def random_integers(bits, number, seed=0):
    rng = np.random.default_rng(seed)
    return [int(rng.integers(2**63)) >> int(rng.integers(63 - bits, 63)) for _ in range(number)]


def test_sums_are_exact():
    values = random_integers(50, 5000)
    assert to_int(_mass.total(to_mass(values))) == sum(values)
    want = np.cumsum(np.array(values, object))
    assert (to_int(_mass.cumulative(to_mass(values))) == want).all()
    a, b = values[:2500], values[2500:]
    both = to_int(_mass.add(to_mass(a), to_mass(b)))
    assert (both == np.array(a, object) + np.array(b, object)).all()


def test_comparison_is_exact():
    values = random_integers(50, 1000)
    values += [v + d for v in values[:50] for d in (0, 1, 2)]
    a, b = to_mass(values), to_mass(values[::-1])
    want = [x >= y for x, y in zip(values, values[::-1], strict=True)]
    np.testing.assert_array_equal(_mass.reaches(a, b), want)


@pytest.mark.parametrize("shift", [0, 1, 7, 18, 19])
def test_placing_shifts_into_two_words(shift):
    sums = np.array([0, 1, 12345, 2**31 - 1, 2**31, 2**32 - 1], np.uint32)
    placed = _mass.place(jnp.asarray(sums.view(np.int32)), jnp.full(6, shift))
    want = sums.astype(object) << (_mass.NO_SHIFT - shift)
    assert (to_int(placed) == want).all()


def test_a_fraction_lies_between_one_unit_and_all():
    values = random_integers(62, 200)
    for p in (0.0, 1e-9, 0.3, 0.95, 1 - 2**-24, 1.0):
        got = to_int(_mass.fraction(to_mass(values), jnp.full(200, p, jnp.float32)))
        for part, whole in zip(got, values, strict=True):
            assert min(1, whole) <= part <= whole
            assert abs(part - whole * float(np.float32(p))) <= whole * 2e-7 + 1


def test_weights_are_probabilities_to_23_bits():
    gaps = np.linspace(0, 28, 20_000, dtype=np.float32)
    x, row_max = jnp.asarray(1 - gaps), jnp.float32(1)
    shift = _mass.shifts(x, row_max)
    weights = Scale(shift, row_max).weights(x, jnp.arange(20_000) % 256, shift)
    got = np.asarray(weights, np.float64) * 2.0 ** -(23 + np.asarray(shift, np.float64))
    # The last shift applies from 13 nats below the maximum, where the unit is 2**-42.
    bound = np.maximum(2.0**-22, 2.0**-42 / np.exp(-gaps.astype(np.float64)))
    np.testing.assert_array_less(np.abs(got / np.exp(-gaps.astype(np.float64)) - 1), bound * 5)


def test_the_most_likely_token_weighs_one_and_masked_ones_zero():
    x = jnp.array([3.0, -jnp.inf])
    for place in range(256):
        shift = jnp.zeros(2, jnp.int32)
        weights = Scale(shift, jnp.float32(3)).weights(x, jnp.full(2, place), shift)
        np.testing.assert_array_equal(weights, [2**23, 0])


def test_rounding_errors_of_equal_weights_cancel():
    """Rounding 256 equal weights in one direction would cause an error of 128 units."""
    for gap in np.linspace(0.01, 0.6, 50):
        x = jnp.full(256, -gap, jnp.float32)
        shift = jnp.zeros(256, jnp.int32)
        weights = Scale(shift, jnp.float32(0)).weights(x - 3, jnp.arange(256), shift)
        exact = 256 * np.exp(np.float64(np.float32(-gap) - np.float32(3))) * 2**23
        assert abs(int(weights.sum()) - exact) < 20 + exact * 3e-7
