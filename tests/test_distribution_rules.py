"""The truncations that depend on the whole row, compared with their definitions in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from rows import KINDS, every_kind, exhaustive, make, slow

import jaxsample as js

SIZES = (
    slow(1, "float32"),
    exhaustive(2, "float32"),
    (257, "float16"),
    slow(5003, "float32"),
    slow(4096, "bfloat16"),
)
SLACK = 2e-6
VALUES = {
    "typical_p_logits": (0.0, 0.2, 0.9, 0.999, 1.0),
    "epsilon_logits": (0.0, 3e-4, 0.1, 1.0),
    "eta_logits": (0.0, 3e-4, 0.1, 1.0),
    "top_a_logits": (0.0, 0.01, 0.3, 1.0),
    "top_n_sigma_logits": (-1.0, 0.0, 0.5, 3.0),
    "tail_free_logits": (0.0, 0.5, 0.95, 1.0),
    "top_h_logits": (0.0, 0.3, 0.9, 1.0),
}
FIELDS = {"epsilon_logits": "epsilon_cutoff", "eta_logits": "eta_cutoff"}
NEUTRAL = {rule: js.NEUTRAL[FIELDS.get(rule, rule.removesuffix("_logits"))] for rule in VALUES}
BAD = dict.fromkeys(VALUES, (-0.1, 1.1, np.nan)) | {"top_n_sigma_logits": (np.inf, np.nan)}


def kept(logits):
    return np.asarray(logits).astype(np.float32) > -np.inf


def assert_between(low, mask, high, message=""):
    assert (mask >= low).all(), message
    assert (mask <= high).all(), message


@functools.cache
def cases(vocab, dtype):
    return every_kind(2, vocab, dtype)


@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
@pytest.mark.parametrize("rule", ["epsilon", "eta", "top_a", "top_n_sigma"])
def test_thresholds(rule, vocab, dtype):
    x = cases(vocab, dtype)
    for value in VALUES[f"{rule}_logits"]:
        got = kept(getattr(js, f"{rule}_logits")(x, value))
        for row, mask in zip(x, got, strict=True):
            logprobs = reference.logprobs(row)
            floor = getattr(reference, rule)(row, value)
            slack = 3e-6 * (1 + np.abs(row[row > -np.inf]).max() + abs(max(floor, -99)))
            masked = row == -np.inf
            low = (logprobs >= floor + slack) | (row == row.max())
            assert_between(
                low & ~masked, mask, (low | (logprobs >= floor - slack)) & ~masked, value
            )


@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
def test_p_less(vocab, dtype):
    x = cases(vocab, dtype)
    for row, mask in zip(x, kept(js.p_less_logits(x)), strict=True):
        away = reference.logprobs(row) - reference.p_less(row)
        slack = 3e-6 * (1 + np.abs(row[row > -np.inf]).max())
        assert_between((away >= slack) | (row == row.max()), mask, away >= -slack)


@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
def test_typical_p(vocab, dtype):
    x = cases(vocab, dtype)
    for p in VALUES["typical_p_logits"]:
        for row, mask in zip(x, kept(js.typical_p_logits(x, p)), strict=True):
            if p == 1:
                np.testing.assert_array_equal(mask, row > -np.inf)
                continue
            slack = 3e-6 * (1 + np.abs(row[row > -np.inf]).max())
            away, last = reference.typical_p(row, p * (1 - SLACK))
            _, further = reference.typical_p(row, min(p * (1 + SLACK), 1))
            finite = row > -np.inf
            assert_between((away < last - slack) & finite, mask, (away <= further + slack) & finite)
            assert mask.any()


def test_typical_p_keeps_equal_tokens_by_lower_id_and_may_drop_the_most_likely():
    p = np.array([0.1, 0.4, 0.1, 0.3, 0.1])  # entropy 1.42, surprises .92, 1.20 and 2.30
    for share, want in ((0.3, [3]), (0.31, [1, 3]), (0.71, [0, 1, 3]), (0.81, [0, 1, 2, 3])):
        mask = kept(js.typical_p_logits(np.log(p).astype(np.float32), share))
        np.testing.assert_array_equal(np.flatnonzero(mask), want)


@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
@pytest.mark.parametrize("rule", ["tail_free", "top_h"])
def test_prefixes(rule, vocab, dtype):
    """Kept sets are prefixes whose lengths are between those of slightly different shares."""
    x = cases(vocab, dtype)
    slack = 1e-5 if rule == "top_h" else 3e-4  # tail-free sums 128k rounding errors of up to 2**-30
    for value in VALUES[f"{rule}_logits"]:
        got = kept(getattr(js, f"{rule}_logits")(x, value))
        for kind, row, mask in zip(np.repeat(KINDS, 2), x, got, strict=True):
            np.testing.assert_array_equal(mask, reference.first(row, mask.sum()))
            if kind in {"tail_free": ("flat", "equal", "zeros"), "top_h": ("peaked",)}[rule]:
                continue  # only rounding bends the row or gives it entropy
            shares = (value, value) if value == 1 else (value - slack, value + slack)
            lengths = [getattr(reference, rule)(row, share) for share in shares]
            low, high = (reference.first(row, length) for length in lengths)
            assert_between(low, mask, high, (kind, value))


@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
@pytest.mark.parametrize("threshold", [0.0, 0.004, 0.05, 0.3, 0.6])
def test_xtc_keeps_the_least_of_the_top_choices(vocab, dtype, threshold):
    x = cases(vocab, dtype)
    got = kept(js.xtc_logits(jax.random.key(0), x, 1.0, threshold))
    for row, mask in zip(x, got, strict=True):
        if threshold > 0.5 or (row > -np.inf).sum() == 1:
            np.testing.assert_array_equal(mask, row > -np.inf)
            continue
        wants = [reference.xtc(row, threshold * (1 + s * 1e-6)) for s in (-1, 0, 1)]
        assert any((mask == want).all() for want in wants)


def test_xtc_acts_with_the_given_probability():
    """10,000 rows at a quarter: within 4 standard deviations (error rate 6e-5)."""
    x = np.log(np.tile(np.array([0.5, 0.4, 0.1], np.float32), (10_000, 1)))
    dropped = ~kept(js.xtc_logits(jax.random.key(3), x, 0.25, 0.3))[:, 0]
    assert abs(dropped.mean() - 0.25) < 4 * (0.25 * 0.75 / 10_000) ** 0.5
    for probability in (0.0, 1.0):
        got = kept(js.xtc_logits(jax.random.key(3), x, probability, 0.3))[:, 0]
        assert (got == (probability == 0)).all()


@pytest.mark.slow
@pytest.mark.parametrize("rule", VALUES)
@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16"), slow("float16")])
def test_neutral_values_are_the_identity_and_kept_logits_do_not_change(rule, dtype):
    x = cases(257, dtype)
    same = np.asarray(getattr(js, rule)(x, NEUTRAL[rule]))
    np.testing.assert_array_equal(same.view(np.uint8), x.view(np.uint8))
    y = np.asarray(getattr(js, rule)(x, VALUES[rule][2]))
    mask = kept(y)
    np.testing.assert_array_equal(y[mask].view(np.uint8), x[mask].view(np.uint8))
    xtc = np.asarray(js.xtc_logits(jax.random.key(0), x, 0.0, 0.1))
    np.testing.assert_array_equal(xtc.view(np.uint8), x.view(np.uint8))


def everything(keys, x, values):
    out = {rule: getattr(js, rule)(x, values[..., i]) for i, rule in enumerate(VALUES)}
    out["p_less_logits"] = js.p_less_logits(x)
    out["xtc_logits"] = js.xtc_logits(keys, x, 0.5, 0.05)
    return out


@functools.cache
def batch():
    """Returns rows, keys, parameters and results."""
    x = cases(300, "float32")
    rng = np.random.default_rng(0)
    values = np.stack([rng.choice(VALUES[rule], len(x)) for rule in VALUES], -1).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), len(x))
    return keys, x, values, everything(keys, x, values)


def assert_same(got, want, rows=slice(None)):
    for rule, y in got.items():
        np.testing.assert_array_equal(y, np.asarray(want[rule])[rows], err_msg=rule)


@pytest.mark.slow
def test_vmap_does_not_matter():
    keys, x, values, want = batch()
    assert_same(jax.vmap(everything)(keys, jnp.asarray(x), jnp.asarray(values)), want)


@pytest.mark.exhaustive
def test_the_batch_does_not_matter():
    keys, x, values, want = batch()
    assert_same(everything(keys[:5], x[:5], values[:5]), want, slice(5))
    for i in range(3):
        assert_same(everything(keys[i], x[i], values[i]), want, i)


@pytest.mark.slow
def test_bad_rows_touch_no_other():
    keys, x, values, want = batch()
    x = x.copy()
    x[1, 7], x[2] = np.nan, -np.inf
    got = everything(keys, x, values)
    for rule, y in got.items():
        assert np.isnan(y[1:3]).all(), rule
        np.testing.assert_array_equal(y[3:], want[rule][3:], err_msg=rule)


@pytest.mark.slow
def test_bad_parameters_make_bad_rows():
    keys, x, values, want = batch()
    for i, rule in enumerate(VALUES):
        for bad in BAD[rule]:
            column = values[:, i].copy()
            column[1] = bad
            got = np.asarray(getattr(js, rule)(x, column))
            assert np.isnan(got[1]).all()
            np.testing.assert_array_equal(np.delete(got, 1, 0), np.delete(want[rule], 1, 0))
    half, other = np.full(len(x), 0.5, np.float32), np.full(len(x), 0.5, np.float32)
    other[1] = 2
    for probability, threshold in ((half, other), (other, half)):
        got = js.xtc_logits(keys, x, probability, threshold)
        np.testing.assert_array_equal(np.isnan(got).all(-1), np.arange(len(x)) == 1)


@pytest.mark.slow
def test_no_rows_and_no_batch():
    for rule in VALUES:
        assert getattr(js, rule)(jnp.zeros((0, 300)), 0.5).shape == (0, 300)
        assert getattr(js, rule)(jnp.zeros(300), 0.5).shape == (300,)
    assert js.xtc_logits(jax.random.key(0), jnp.zeros((0, 300)), 0.5, 0.1).shape == (0, 300)


@pytest.mark.slow
def test_only_kept_logits_have_gradients():
    keys, x, values, _ = batch()

    def total(x):
        out = everything(keys, x, values)
        return sum(jnp.sum(jnp.where(y > -jnp.inf, y, 0)) for y in out.values()), out

    grad, out = jax.grad(total, has_aux=True)(jnp.asarray(x))
    want = sum(kept(y).astype(np.float32) for y in out.values())
    np.testing.assert_array_equal(grad, want)


@pytest.mark.slow
def test_moments_match_float64():
    from jaxsample._core import _moments, _scan, _source

    for vocab, dtype in ((2, "float32"), (257, "float16"), (128256, "float32")):
        x = cases(vocab, dtype) if vocab < 10**4 else make("normal", 2, vocab)
        rows, scale, (sums,) = _scan.scan_and_weigh(_source.opened(x))
        entropy, log_sum = jax.jit(_moments.entropy)(rows, scale, sums)
        collision = jax.jit(_moments.log_collision)(rows, log_sum)
        deviation = jax.jit(_moments.deviation)(rows)
        want = np.array([reference.entropy(row) for row in x])
        np.testing.assert_allclose(entropy, want, rtol=3e-6, atol=3e-6)
        want = np.array([reference.p_less(row) for row in x])
        np.testing.assert_allclose(collision, want, rtol=3e-6, atol=3e-6)
        want = np.array([row[row > -np.inf].astype(np.float64).std() for row in x])
        np.testing.assert_allclose(deviation, want, rtol=3e-6, atol=1e-6)
