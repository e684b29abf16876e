"""mlx-lm: its sampler functions on NumPy rows."""

import mlx.core as mx
import numpy as np
from mlx_lm import sample_utils


def kept(transform, logits: np.ndarray, *args) -> np.ndarray:
    """Returns the tokens that a transform of log-probabilities keeps."""
    x = mx.array(logits)
    logprobs = x - mx.logsumexp(x, axis=-1, keepdims=True)
    return np.array(transform(logprobs, *args)) > -np.inf


KEPT = {
    "top_k": lambda x, k: kept(sample_utils.apply_top_k, x, k),
    "top_p": lambda x, p: kept(sample_utils.apply_top_p, x, p),
    "min_p": lambda x, p: kept(sample_utils.apply_min_p, x, p),
    "xtc": lambda x, t: xtc(x, t, []),
}


def xtc(logits: np.ndarray, threshold: float, exempt: list[int]) -> np.ndarray:
    return kept(sample_utils.apply_xtc, logits, 1.0, threshold, exempt)


def process(processor, logits: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Returns new logits of a row with a text."""
    return np.array(processor(mx.array(text), mx.array(logits[None])))[0]


def repetition(penalty: float, size: int):
    return sample_utils.make_repetition_penalty(penalty, size)


def presence(penalty: float, size: int):
    return sample_utils.make_presence_penalty(penalty, size)


def frequency(penalty: float, size: int):
    return sample_utils.make_frequency_penalty(penalty, size)


def bias(token_ids: np.ndarray, bias: np.ndarray):
    pairs = dict(zip(token_ids.tolist(), bias.tolist(), strict=True))
    (processor,) = sample_utils.make_logits_processors(logit_bias=pairs)
    return processor
