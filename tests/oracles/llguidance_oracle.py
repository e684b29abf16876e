"""llguidance: its token bitmask on NumPy rows."""

import llguidance.numpy
import numpy as np


def bitmask(logits: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Returns new logits `[rows, vocab]` for packed masks `[rows, ceil(vocab / 32)]`."""
    scores = logits.copy()
    llguidance.numpy.apply_token_bitmask_inplace(scores, words)
    return scores
