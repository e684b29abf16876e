"""Many draws of one row, and a chi-square test of their law."""

import jax
import numpy as np
from scipy import stats

from jaxsample import SamplingParams, categorical_sample, sample

ERROR_RATE = 1e-4


def draw(x, number, seed=0, batch=2000, **params):
    """Draws many tokens of one row, each with its own key."""
    keys = jax.random.split(jax.random.key(seed), number)
    if params:
        given = SamplingParams(**params)
        one = lambda key: sample(key, x, given).tokens  # noqa: E731
    else:
        one = lambda key: categorical_sample(key, x)  # noqa: E731
    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=batch))(keys))


def assert_follows(tokens, p, bins=100, error_rate=ERROR_RATE):
    """Tests with chi-square over bins of tokens of similar probability."""
    assert (p[tokens] > 0).all()
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    group = np.empty(p.size, int)
    group[order] = np.minimum(before * bins, bins - 1).astype(int)
    observed = np.bincount(group[tokens], minlength=bins)
    expected = np.bincount(group, weights=p, minlength=bins) * tokens.size
    large = expected >= 10  # rarer tokens share a bin, whose count is a Poisson variable
    rare, expected_rare = observed[~large].sum(), expected[~large].sum()
    assert stats.poisson.sf(rare - 1, expected_rare) > error_rate
    assert stats.poisson.cdf(rare, expected_rare) > error_rate
    observed, expected = observed[large], expected[large]
    if expected.size > 1:
        statistic = np.sum(
            (observed - expected * (observed.sum() / expected.sum())) ** 2 / expected
        )
        assert stats.chi2.sf(statistic, expected.size - 1) > error_rate
