"""The rules that drop tokens: our functions, their margins, and the compared parameters."""

from collections.abc import Callable
from typing import NamedTuple

import cases
import compare
import jax
import margins
import numpy as np

import jaxsample


class Rule(NamedTuple):
    """A rule as `(logits [rows, vocab], parameters [rows]) -> logits`."""

    ours: Callable
    margins: Callable
    draw: cases.Draw


def _xtc(logits: np.ndarray, threshold: np.ndarray) -> jax.Array:
    return jaxsample.xtc_logits(jax.random.key(0), logits, 1.0, threshold)


RULES = {
    "top_k": Rule(jaxsample.top_k_logits, margins.top_k, cases.integers(1, 256)),
    "top_p": Rule(jaxsample.top_p_logits, margins.top_p, cases.uniform(0.01, 0.999)),
    "min_p": Rule(jaxsample.min_p_logits, margins.min_p, cases.log_uniform(1e-4, 1)),
    "typical_p": Rule(jaxsample.typical_p_logits, margins.typical_p, cases.uniform(0.05, 0.99)),
    "epsilon": Rule(jaxsample.epsilon_logits, margins.epsilon, cases.log_uniform(1e-5, 0.9)),
    "eta": Rule(jaxsample.eta_logits, margins.eta, cases.log_uniform(1e-5, 0.9)),
    "top_n_sigma": Rule(jaxsample.top_n_sigma_logits, margins.top_n_sigma, cases.uniform(0.1, 4)),
    "top_h": Rule(jaxsample.top_h_logits, margins.top_h, cases.uniform(0.05, 0.95)),
    "xtc": Rule(_xtc, margins.xtc, cases.uniform(0.001, 0.5)),
}


def check(
    name: str,
    theirs: Callable,
    record: Callable,
    *,
    keeps_ties: bool,
    tolerance: float = 1e-5,
    tolerance_per_token: float = 0.0,
    least_decided: float = 0.98,
    prepare: Callable = lambda x: x,
    sizes=cases.SIZES,
) -> None:
    """Compares a rule with `theirs(logits [rows, vocab] float32, parameter) -> kept`."""
    rule = RULES[name]
    seen = []
    for logits, values in cases.groups(rule.draw, sizes):
        logits = prepare(logits)
        rows = logits.reshape(-1, logits.shape[-1])
        each = np.repeat(values, logits.shape[1])
        ours = np.asarray(rule.ours(rows, each)).astype(np.float32) > -np.inf
        x = logits.astype(np.float32)
        kept = np.concatenate(
            [theirs(batch, v) for batch, v in zip(x, values.tolist(), strict=True)]
        )
        x = rows.astype(np.float64)
        ranked = -np.sort(-x, axis=-1)
        seen.append(
            compare.assert_same_kept(
                x,
                ours,
                kept,
                rule.margins(ranked, each.astype(np.float64)),
                keeps_ties=keeps_ties,
                tolerance=tolerance + tolerance_per_token * x.shape[-1],
                least_decided=least_decided,
            )
        )
    total, unlike = sum(c.rows for c in seen), sum(c.unlike for c in seen)
    record("compared", f"{name}: {total} rows, {unlike} of them unlike by rounding")
