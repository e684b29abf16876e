"""Every rule against its definition in float64, on any row and with any parameters.

The check of a rule takes a row in float64, its parameters and the result of the rule. It asserts
that the kept tokens are between those of the definition with slightly stricter and slightly looser
parameters, or that new logits equal those of the definition up to rounding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import fuzz_inputs as inputs
import jax
import numpy as np
import reference
import reference_constraints
import reference_penalties
from catalogue import COMPUTING

import jaxsample as js

SLACK = 4e-6
TINY = np.finfo(np.float32).tiny
MOST = float(np.finfo(np.float32).max)


class Rule(NamedTuple):
    """The inputs and the check of a rule.

    Attributes:
      arguments: makes the arguments after the logits, with one value per row, from a random
        generator and the logits.
      check: asserts that a result is right, given a row, its arguments and the result.
      outside: returns whether an argument of a row is out of range, given these and the vocabulary.
      keyed: whether the function takes keys before the logits.
    """

    arguments: Callable[[np.random.Generator, np.ndarray], tuple[Any, ...]]
    check: Callable[..., None]
    outside: Callable[..., bool] = lambda *_: False
    keyed: bool = False


def _near(row):
    """Returns the largest rounding error of the logits of a row."""
    finite = row[np.isfinite(row)]
    return 3e-6 * (1 + np.abs(finite).max(initial=0))


def _kept(y):
    return np.asarray(y, np.float64) > -np.inf


def _between(low, y, high):
    kept = _kept(y)
    assert (kept >= low).all(), f"dropped {np.flatnonzero(low & ~kept)[:5]}"
    assert (kept <= high).all(), f"kept {np.flatnonzero(kept & ~high)[:5]}"


def _close(y, want, rtol, atol=0.0):
    """Asserts equality up to rounding; logits below float32 are masked, above it a row is bad."""
    y = np.asarray(y, np.float64)
    margin = rtol * np.abs(np.where(np.isfinite(want), want, 0)) + atol
    if (want > MOST * (1 + rtol)).any():
        assert np.isnan(y[want > MOST * (1 + rtol)]).all()
        return
    masked = want < -MOST * (1 + rtol)
    assert (y[masked] == -np.inf).all()
    unclear = np.abs(want) > MOST * (1 - rtol)
    small = np.abs(want) < 2 * TINY  # may be flushed to 0
    wrong = ~masked & ~unclear & ~(np.abs(y - want) <= margin + np.where(small, 2 * TINY, 0))
    assert not wrong.any(), f"{y[wrong][:3]} for {want[wrong][:3]} at {np.flatnonzero(wrong)[:3]}"


def _share_outside(p, *_):
    return not 0 <= p <= 1


def _top_k(row, k, y):
    want = reference.top_k(row, max(k, 0))
    _between(want, y, want)


def _top_p(row, p, y):
    shares = (1, 1) if p == 1 else (p * (1 - SLACK), p * (1 + SLACK))
    low, high = (reference.top_p(row, share) for share in shares)
    _between(low, y, high)


def _min_p(row, p, y):
    floor = row.max() + np.log(p) if p else -np.inf
    slack = _near(row) + (0 if np.isinf(floor) else 1e-6 * abs(floor))
    finite = row > -np.inf
    _between(
        ((row >= floor + slack) | (row == row.max())) & finite, y, (row >= floor - slack) & finite
    )


def _threshold(definition):
    def check(row, value, y):
        logprobs, floor = reference.logprobs(row), definition(row, value)
        slack = _near(row) + 3e-6 * abs(max(floor, -1e6)) + _spread_slack(definition, row, value)
        finite, best = row > -np.inf, row == row.max()
        sure, perhaps = (logprobs >= floor + s for s in (slack, -slack))
        _between(sure & finite, y, (perhaps | best) & finite)
        assert _kept(y)[best].any()

    return check


def _spread_slack(definition, row, n):
    """Returns the error of the deviation, which is measured in millionths of the spread."""
    if definition is not reference.top_n_sigma:
        return 0
    finite = row[np.isfinite(row)]
    return 3e-6 * abs(n) * (finite.max() - finite.min())


def _typical_p(row, p, y):
    finite = row > -np.inf
    if p == 1:
        return _between(finite, y, finite)
    slack = 2 * _near(row)
    away, last = reference.typical_p(row, p * (1 - SLACK))
    _, further = reference.typical_p(row, min(p * (1 + SLACK), 1))
    assert _kept(y).any()
    return _between((away < last - slack) & finite, y, (away <= further + slack) & finite)


def _prefix(definition, slack, clear):
    def check(row, value, y):
        length = int(_kept(y).sum())
        np.testing.assert_array_equal(_kept(y), reference.first(row, length))
        assert length
        if value == 1:
            assert length == (row > -np.inf).sum()
        elif clear(row):
            low, high = (definition(row, value + s) for s in (-slack, slack))
            _between(reference.first(row, low), y, reference.first(row, high))

    return check


def _bends(row):
    """Returns whether the sorted probabilities bend by more than their rounding."""
    finite = np.sort(reference.softmax(row)[row > -np.inf])
    return finite.size > 2 and np.abs(np.diff(finite, 2)).sum() > 1e-2


def _is_spread(row):
    return reference.entropy(row) > 0.05


def _xtc(row, p, threshold, y):
    finite = row > -np.inf
    options = [finite] if p < 1 else []
    if p > 0:
        slacks = (-2e-6, 0, 2e-6)
        options += [
            reference.xtc(row, threshold * (1 + s)) if threshold <= 0.5 else finite for s in slacks
        ]
        logprobs = reference.logprobs(row)
        near = np.abs(logprobs - np.log(max(threshold, 1e-300))) < _near(row)
        if near.sum() > 1:  # rounding decides which of them are likely
            return
    assert any((_kept(y) == option).all() for option in options)


def _scaled(row, temperature, y):
    if temperature < TINY or abs(row.max() / np.float64(temperature)) > MOST * (1 + 1e-6):
        return _greedy(row, y)
    if abs(row.max() / np.float64(temperature)) > MOST * (1 - 1e-6):
        return None
    return _close(y, row / np.float64(temperature), 3e-7)


def _greedy(row, y):
    best = reference.ranking(row)[0]
    want = np.full(row.size, -np.inf)
    want[best] = row[best]
    _close(y, want, 0)


def _entropy_scaled(row, low, high, exponent, y):
    number = (row > -np.inf).sum()
    share = min(reference.entropy(row) / np.log(number), 1) if number > 1 else 0.0
    low, high, exponent = (np.float64(a) for a in (low, high, exponent))
    ends = [low + (high - low) * s**exponent for s in (max(share - 4e-6, 0), min(share + 4e-6, 1))]
    least, most = min(ends), max(ends)
    if least <= 4 * TINY or abs(row.max()) / least > MOST / 2 or most > 2 * least:
        return  # rounding decides whether the row is greedy
    middle = np.float64(low + (high - low) * share**exponent)
    _close(y, row / middle, 1e-6 + abs(most - least) / least)


def _smoothed(row, factor, curve, y):
    if factor == 0:
        return _close(y, row, 0)
    finite = row > -np.inf
    d = np.where(finite, row.max() - row, 0.0)
    factor, curve = np.float64(factor), np.float64(curve)
    with np.errstate(over="ignore"):
        terms = factor * (3 - curve) / 2 * d**2, factor * (curve - 1) / 2 * d**3
    size = abs(row.max()) + abs(terms[0]) + abs(terms[1]) + factor * d**2 * (3 + curve)
    if size.max() > 1e37:
        return None  # parts of it overflow
    want = np.where(finite, row.max() - terms[0] - terms[1], -np.inf)
    return _close(y, want, 0, 2e-6 * size + TINY)


def _penalised(definition):
    def check(row, data, penalty, y):
        want = definition(row, data, np.float64(penalty))
        size = np.where(np.isfinite(row), np.abs(row), 0) + np.where(
            np.isfinite(want), abs(want), 0
        )
        _close(y, want, 3e-7, 3e-7 * size)

    return check


def _dry(row, tokens, length, multiplier, base, allowed, breakers, y):
    breakers = tuple(int(i) for i in breakers if i >= 0)
    with np.errstate(over="ignore"):
        powers = min(np.float64(base) ** min(length, 200), 1e300)
    if np.float64(multiplier) * powers > MOST / 4:
        return  # the penalty saturates at the largest float
    want = reference_penalties.dry(
        row,
        tokens[:length].tolist(),
        np.float64(multiplier),
        np.float64(base),
        int(allowed),
        breakers,
    )
    size = np.where(np.isfinite(row), abs(row), 0) + np.where(np.isfinite(want), abs(want), 0)
    _close(y, want, 1e-5, 3e-7 * size)


def _biased(row, ids, bias, y):
    used = ids >= 0
    ids, bias = ids[used], bias[used].astype(np.float64)
    want, size = row.copy(), np.abs(np.where(np.isfinite(row), row, 0))
    np.add.at(want, ids, bias)
    np.add.at(size, ids, np.where(np.isfinite(bias), abs(bias), 0))
    if size.max() > MOST / 4:
        return
    _close(y, want, 3e-7, 1e-6 * size)


def _sequence_biased(row, tokens, length, words, lengths, bias, y):
    words, text = _words(words, lengths), _text(tokens, length)
    ends = [bool(w) and w[:-1] == text[max(length - len(w) + 1, 0) :] for w in words]
    lasts = np.array([word[-1] if end else -1 for word, end in zip(words, ends, strict=True)])
    _biased(row, lasts, bias, y)


def _masked(allowed):
    def check(row, *arguments):
        *data, y = arguments
        want = allowed(row, *data) & (row > -np.inf)
        _between(want, y, want)

    return check


def _text(tokens, length):
    return tokens[:length].tolist()


def _words(words, lengths):
    return [word[:n].tolist() for word, n in zip(words, lengths, strict=True)]


def _guided(row, other, scale, y):
    if scale == 1:
        return _close(y, row, 0)
    other = inputs.flushed(other)
    c, u = (reference.logprobs(x) for x in (row, other))
    masked = (row == -np.inf) | (other == -np.inf)
    scale = np.float64(scale)
    with np.errstate(invalid="ignore"):
        want = np.where(masked, -np.inf, u + scale * (c - u))
        size = np.where(masked, 0, abs(u) + abs(scale) * (abs(c) + abs(u)))
    margin = 2e-6 * size + (1 + 2 * abs(scale)) * (_near(row) + _near(other))
    return None if size.max() > MOST / 4 else _close(y, want, 0, margin)


RULES = {
    "scaled_logits": Rule(
        lambda rng, x: (inputs.temperature(rng),), _scaled, lambda t, _: not 0 <= t < np.inf
    ),
    "entropy_scaled_logits": Rule(
        lambda rng, x: (
            inputs.real(rng, (0.2, 2), (0, 1, 1e-38), (-1, *inputs.INFINITE)),
            inputs.real(rng, (0.2, 2), (0, 1, 1e-38), (-1, *inputs.INFINITE)),
            inputs.real(rng, (0, 3), (0, 1), (-1, *inputs.INFINITE)),
        ),
        _entropy_scaled,
        lambda low, high, e, _: not all(0 <= a < np.inf for a in (low, high, e)),
    ),
    "smoothed_logits": Rule(
        lambda rng, x: (
            inputs.real(rng, (0, 1), (0, 1e30), (-1, *inputs.INFINITE)),
            inputs.real(rng, (1, 4), (1,), (0.5, *inputs.INFINITE)),
        ),
        _smoothed,
        lambda f, c, _: not (0 <= f < np.inf and 1 <= c < np.inf),
    ),
    "top_k_logits": Rule(lambda rng, x: (inputs.top_k(rng),), _top_k, lambda k, _: k < -1),
    "top_p_logits": Rule(lambda rng, x: (inputs.share(rng),), _top_p, _share_outside),
    "min_p_logits": Rule(lambda rng, x: (inputs.share(rng),), _min_p, _share_outside),
    "typical_p_logits": Rule(lambda rng, x: (inputs.share(rng),), _typical_p, _share_outside),
    "epsilon_logits": Rule(
        lambda rng, x: (inputs.share(rng),), _threshold(reference.epsilon), _share_outside
    ),
    "eta_logits": Rule(
        lambda rng, x: (inputs.share(rng),), _threshold(reference.eta), _share_outside
    ),
    "top_a_logits": Rule(
        lambda rng, x: (inputs.share(rng),), _threshold(reference.top_a), _share_outside
    ),
    "top_n_sigma_logits": Rule(
        lambda rng, x: (inputs.real(rng, (0, 4), (0, -1), inputs.INFINITE),),
        _threshold(reference.top_n_sigma),
        lambda n, _: not np.isfinite(n),
    ),
    "tail_free_logits": Rule(
        lambda rng, x: (inputs.share(rng),),
        _prefix(reference.tail_free, 3e-4, _bends),
        _share_outside,
    ),
    "top_h_logits": Rule(
        lambda rng, x: (inputs.share(rng),),
        _prefix(reference.top_h, 1e-4, _is_spread),
        _share_outside,
    ),
    "p_less_logits": Rule(
        lambda rng, x: (), lambda row, y: _threshold(lambda r, _: reference.p_less(r))(row, 0, y)
    ),
    "xtc_logits": Rule(
        lambda rng, x: (inputs.share(rng), inputs.share(rng) / 2),
        _xtc,
        lambda p, t, _: _share_outside(p) or _share_outside(t),
        keyed=True,
    ),
    "repetition_penalized_logits": Rule(
        lambda rng, x: (
            rng.random(x.shape) < 0.3,
            inputs.real(rng, (0.5, 2), (1, 1e-30, 1e30), (0, -1, *inputs.INFINITE)),
        ),
        _penalised(reference_penalties.repetition),
        lambda _, r, __: not 0 < r < np.inf,
    ),
    "presence_penalized_logits": Rule(
        lambda rng, x: (
            rng.poisson(0.5, x.shape).astype(np.int32) - 1,
            inputs.real(rng, (-2, 2), (0, 1e38), inputs.INFINITE),
        ),
        _penalised(reference_penalties.presence),
        lambda _, p, __: not np.isfinite(p),
    ),
    "frequency_penalized_logits": Rule(
        lambda rng, x: (
            rng.poisson(0.5, x.shape).astype(np.int32) - 1,
            inputs.real(rng, (-2, 2), (0, 1e36), inputs.INFINITE),
        ),
        _penalised(reference_penalties.frequency),
        lambda _, p, __: not np.isfinite(p),
    ),
    "dry_penalized_logits": Rule(
        lambda rng, x: (
            *inputs.texts(rng, x.shape[-1]),
            inputs.real(rng, (0, 2), (0,), (-1, *inputs.INFINITE)),
            inputs.real(rng, (1, 3), (1, 1e38), (0.5, *inputs.INFINITE)),
            inputs.whole(rng, [1, 2, 5], [0, -1]),
            inputs.ids(rng, x.shape[-1], len(x), 2),
        ),
        _dry,
        lambda t, n, m, b, a, ids, v: (
            not (0 <= n <= inputs.ROOM and 0 <= m < np.inf and 1 <= b < np.inf and a >= 1)
            or (ids >= v).any()
        ),
    ),
    "no_repeat_ngram_logits": Rule(
        lambda rng, x: (*inputs.texts(rng, x.shape[-1]), inputs.whole(rng, [0, 1, 2, 3, 20], [-1])),
        _masked(lambda row, t, n, g: reference_penalties.no_repeat_ngram(row, _text(t, n), int(g))),
        lambda t, n, g, _: not (0 <= n <= inputs.ROOM and g >= 0),
    ),
    "biased_logits": Rule(
        lambda rng, x: (
            inputs.ids(rng, x.shape[-1], len(x), 4),
            inputs.real(rng, (-5, 5), (0, -np.inf, 1e30), (np.nan, np.inf), (len(x), 4)),
        ),
        _biased,
        lambda ids, bias, v: (ids >= v).any() or not (bias[ids >= 0] < np.inf).all(),
    ),
    "allowed_logits": Rule(
        lambda rng, x: (rng.random(x.shape) < 0.7,), _masked(lambda row, allowed: allowed)
    ),
    "bitmask_logits": Rule(
        lambda rng, x: (
            rng.integers(-(2**31), 2**31, (len(x), -(-x.shape[-1] // 32))).astype(np.int32),
        ),
        _masked(lambda row, words: reference_constraints.unpacked(words, row.size)),
    ),
    "suppressed_logits": Rule(
        lambda rng, x: (inputs.ids(rng, x.shape[-1], len(x), 9),),
        _masked(lambda row, ids: ~np.isin(np.arange(row.size), ids)),
        lambda ids, v: (ids >= v).any(),
    ),
    "min_tokens_logits": Rule(
        lambda rng, x: (
            inputs.ids(rng, x.shape[-1], len(x), 3),
            inputs.whole(rng, range(6), [-1]),
            inputs.whole(rng, range(6), [-1]),
        ),
        _masked(lambda row, ids, n, m: ~np.isin(np.arange(row.size), ids) | (n >= m)),
        lambda ids, n, m, v: (ids >= v).any() or n < 0 or m < 0,
    ),
    "bad_words_logits": Rule(
        lambda rng, x: (
            *inputs.texts(rng, x.shape[-1]),
            rng.integers(0, min(x.shape[-1], 4), (len(x), 5, 3)),
            inputs.whole(rng, range(4), [], (len(x), 5)),
        ),
        _masked(
            lambda row, t, n, words, lengths: reference_constraints.bad_words(
                row.size, _text(t, n), _words(words, lengths)
            )
        ),
        lambda t, n, words, lengths, _: not 0 <= n <= inputs.ROOM,
    ),
    "sequence_biased_logits": Rule(
        lambda rng, x: (
            *inputs.texts(rng, x.shape[-1]),
            rng.integers(0, min(x.shape[-1], 4), (len(x), 5, 3)),
            inputs.whole(rng, range(4), [], (len(x), 5)),
            inputs.real(rng, (-5, 5), (0, -np.inf, 1e30), (np.nan, np.inf), (len(x), 5)),
        ),
        _sequence_biased,
        lambda t, n, words, lengths, bias, _: (
            not 0 <= n <= inputs.ROOM or not (bias[lengths > 0] < np.inf).all()
        ),
    ),
    "forced_logits": Rule(
        lambda rng, x: (inputs.whole(rng, [-1, 0, x.shape[-1] - 1], [-2, x.shape[-1]]),),
        lambda row, token, y: _close(y, reference_constraints.forced(row, token), 0),
        lambda token, v: not -1 <= token < v,
    ),
    "guided_logits": Rule(
        lambda rng, x: (
            inputs.rows(rng, x.shape[-1], "float32", len(x)),
            inputs.real(rng, (-1, 3), (0, 1), inputs.INFINITE),
        ),
        _guided,
        lambda other, s, _: not np.isfinite(s) or (s != 1 and inputs.is_bad(other)),
    ),
}

IDENTITY = {"guided_logits": lambda other, scale: scale == 1}
"""Whether arguments make a rule the identity, even for bad rows."""

STAYS = {
    *("repetition_penalized_logits", "presence_penalized_logits", "frequency_penalized_logits"),
    *("dry_penalized_logits", "no_repeat_ngram_logits", "biased_logits", "allowed_logits"),
    *("bitmask_logits", "suppressed_logits", "min_tokens_logits", "bad_words_logits"),
    *("sequence_biased_logits", "forced_logits"),
}
"""Rules that keep the NaN and +inf of a row at their positions."""


def check(name, rng, vocab, dtype):
    """Applies a rule to random rows and checks each against the definition."""
    rule = RULES[name]
    x = inputs.rows(rng, vocab, dtype)
    arguments = rule.arguments(rng, x)
    keys = (jax.random.split(jax.random.key(int(rng.integers(2**31))), len(x)),) * rule.keyed
    y = np.asarray(getattr(js, name)(*keys, x, *arguments))
    for i, row in enumerate(x):
        given = [argument[i] for argument in arguments]
        with np.errstate(all="ignore"):
            _check_row(name, rule, row, given, y[i])


def _check_row(name, rule, row, given, y):
    if IDENTITY.get(name, lambda *_: False)(*given):
        np.testing.assert_array_equal(y.astype(np.float64), row.astype(np.float64))
    elif rule.outside(*given, row.size):
        assert np.isnan(y.astype(np.float64)).all(), f"a bad parameter: {given}, {y}"
    elif not inputs.is_bad(row):
        rule.check(inputs.flushed(row), *given, y)
        if name not in COMPUTING:
            kept = _kept(y) & _kept(row)  # a forced token may have been masked
            np.testing.assert_array_equal(y[kept].view(np.uint8), row[kept].view(np.uint8))
    elif name in STAYS:
        lost = np.isnan(row.astype(np.float64)) | (row.astype(np.float64) == np.inf)
        assert not np.isfinite(y[lost].astype(np.float64)).any()
        assert not (y[lost].astype(np.float64) == -np.inf).any()
    else:
        assert np.isnan(y.astype(np.float64)).all(), f"a bad row: {y}"
