"""Rejection samplers of vLLM and tpu-inference in NumPy, by their published rules.

Both follow arXiv 2211.17192: a draft d is accepted if p(d) / q(d) >= u, the first rejected draft is
replaced by a draw from max(p - q, 0), and after the last draft a bonus token is drawn from p. vLLM
draws the replacement as the largest of max(p - q, 0) over exponential noise, tpu-inference as the
largest of its logarithm plus Gumbel noise. The functions integrate over the noise and return the
law of the output.
"""

import itertools
from collections.abc import Callable

import numpy as np

Law = dict[tuple[int, ...], float]


def vllm(p: np.ndarray, q: np.ndarray) -> Law:
    """Returns the probability of each output; targets `[n + 1, vocab]`, drafters `[n, vocab]`."""
    return _law(p, q, lambda rates: rates / rates.sum())


def tpu_inference(p: np.ndarray, q: np.ndarray) -> Law:
    """Returns the same for tpu-inference."""

    def softmax_of_logs(rates: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            logits = np.log(rates)
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    return _law(p, q, softmax_of_logs)


def _law(p: np.ndarray, q: np.ndarray, replacement: Callable[[np.ndarray], np.ndarray]) -> Law:
    number, vocab = q.shape
    law: Law = {}
    for drafts in itertools.product(range(vocab), repeat=number):
        reached = np.prod([q[i, d] for i, d in enumerate(drafts)])
        for i, d in enumerate(drafts):
            accepted = min(1.0, p[i, d] / q[i, d])
            if accepted < 1:
                again = replacement(np.maximum(p[i] - q[i], 0))
                _add(law, drafts[:i], again * reached * (1 - accepted))
            reached *= accepted
        _add(law, drafts, p[number] * reached)
    return law


def _add(law: Law, accepted: tuple[int, ...], chances: np.ndarray) -> None:
    for token, chance in enumerate(chances):
        law[*accepted, token] = law.get((*accepted, token), 0.0) + chance
