"""xgrammar: its token bitmask on NumPy rows."""

import numpy as np
import torch
import xgrammar


def bitmask(logits: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Returns new logits `[rows, vocab]` for packed masks `[rows, ceil(vocab / 32)]`."""
    scores = torch.tensor(logits)
    xgrammar.apply_token_bitmask_inplace(scores, torch.tensor(words), vocab_size=logits.shape[-1])
    return scores.numpy()
