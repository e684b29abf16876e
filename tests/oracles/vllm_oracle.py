"""vLLM, which cannot be installed here: its order and rules in NumPy float64, from its source.

First masks, bias and penalties (repetition over prompt and output, the others over the output),
then greedy rows take the largest logit. Other rows apply temperature, min-p, top-k and, to the
remaining tokens, top-p. Bad words are matched with prompt and output, where vLLM matches only the
output: see docs/differences.md.
"""

import numpy as np


def process(row: np.ndarray, values: dict, text: np.ndarray, prompt: int) -> np.ndarray:
    """Returns new logits of a row."""
    x = np.where(values["allowed"], row.astype(np.float64), -np.inf)
    for word, size in zip(values["bad_words"], values["bad_word_lengths"], strict=True):
        if 0 < size <= len(text) + 1 and (text[len(text) - size + 1 :] == word[: size - 1]).all():
            x[word[size - 1]] = -np.inf
    if len(text) - prompt < values["min_tokens"]:
        x[values["stop_token_ids"]] = -np.inf
    np.add.at(x, values["logit_bias_token_ids"], values["logit_bias"])

    seen = np.isin(np.arange(x.size), text)
    counts = np.bincount(text[prompt:], minlength=x.size)
    r = values["repetition_penalty"]
    x = np.where(seen, np.where(x > 0, x / r, x * r), x)
    x = x - values["frequency_penalty"] * counts - values["presence_penalty"] * (counts > 0)
    if values["temperature"] < 1e-5:
        return np.where(np.arange(x.size) == np.argmax(x), x, -np.inf)
    x = x / values["temperature"]
    p = _softmax(x)
    x = np.where(p < values["min_p"] * p.max(), -np.inf, x)
    if values["top_k"]:
        x = np.where(x < np.sort(x)[-values["top_k"]], -np.inf, x)
    order = np.argsort(x, kind="stable")
    dropped = np.cumsum(_softmax(x[order])) <= 1 - values["top_p"]
    dropped[-1] = False
    x[order[dropped]] = -np.inf
    return x


def _softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()
