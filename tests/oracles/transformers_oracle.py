"""Hugging Face transformers: its logits processors on NumPy rows."""

import types

import numpy as np
import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import logits_process as hf
from transformers.utils import ModelOutput


def process(processor: hf.LogitsProcessor, logits: np.ndarray, ids=None) -> np.ndarray:
    """Returns new logits `[rows, vocab]`; `ids [rows, length]` is the text so far."""
    if ids is None:
        ids = np.zeros((len(logits), 1))
    scores = processor(torch.as_tensor(np.asarray(ids), dtype=torch.long), torch.tensor(logits))
    return scores.numpy()


def kept(processor: hf.LogitsProcessor, logits: np.ndarray) -> np.ndarray:
    return process(processor, logits) > -np.inf


KEPT = {
    "top_k": lambda x, k: kept(hf.TopKLogitsWarper(k), x),
    "top_p": lambda x, p: kept(hf.TopPLogitsWarper(p), x),
    "min_p": lambda x, p: kept(hf.MinPLogitsWarper(p), x),
    "typical_p": lambda x, p: kept(hf.TypicalLogitsWarper(p), x),
    "epsilon": lambda x, e: kept(hf.EpsilonLogitsWarper(e), x),
    "eta": lambda x, e: kept(hf.EtaLogitsWarper(e), x),
    "top_h": lambda x, h: kept(hf.TopHLogitsWarper(h), x),
}


def each(make, logits: np.ndarray, texts: list[np.ndarray]) -> np.ndarray:
    """Returns new logits of rows with texts of any lengths; `make(row)` returns a processor."""
    return np.concatenate(
        [process(make(i), logits[i : i + 1], [text]) for i, text in enumerate(texts)]
    )


def bias(token_ids: np.ndarray, bias: np.ndarray) -> hf.LogitsProcessor:
    pairs = zip(token_ids.tolist(), bias.tolist(), strict=True)
    return hf.SequenceBiasLogitsProcessor({(token,): value for token, value in pairs})


def bad_words(words: list[list[int]]) -> hf.LogitsProcessor:
    return hf.NoBadWordsLogitsProcessor(words)


def guidance(conditional: np.ndarray, unconditional: np.ndarray, scale: float) -> np.ndarray:
    said = ModelOutput(logits=torch.tensor(unconditional)[:, None])
    processor = hf.UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, lambda *_, **__: said)
    return process(processor, conditional)


def synthid(logits: np.ndarray, g_values: np.ndarray) -> np.ndarray:
    """Runs the tournament over `g_values [rows, vocab, depth]`, in float64."""
    processor = hf.SynthIDTextWatermarkLogitsProcessor(5, [0], 2, 0, 1, torch.device("cpu"))
    scores = torch.tensor(logits, dtype=torch.float64)
    return processor.update_scores(scores, torch.tensor(g_values, dtype=torch.float64)).numpy()


def pipeline(row: np.ndarray, values: dict, text: np.ndarray, prompt: int) -> np.ndarray:
    """Returns new logits of a row by the processors of `generate`, in its order."""
    config = GenerationConfig(do_sample=True, num_beams=1)
    config.update(**_settings(values))
    config._eos_token_tensor = torch.tensor(values["stop_token_ids"])
    processors = _Model(values["unconditional_logits"])._get_logits_processor(
        config,
        int(prompt),
        prefix_allowed_tokens_fn=lambda *_: np.flatnonzero(values["allowed"]).tolist(),
        device="cpu",
    )
    ids = torch.tensor(text, dtype=torch.long)[None]
    return processors(ids, torch.tensor(row)[None])[0].numpy()


def _settings(values: dict) -> dict:
    lengths = zip(values["bad_words"].tolist(), values["bad_word_lengths"], strict=True)
    words = [word[:length] for word, length in lengths if length]
    bias = zip(values["logit_bias_token_ids"].tolist(), values["logit_bias"].tolist(), strict=True)
    suppressed = values["suppressed_token_ids"]
    plain = (
        "temperature", "repetition_penalty", "guidance_scale", "top_p", "min_p", "typical_p",
    )  # fmt: skip
    return {name: float(values[name]) for name in plain} | {
        "no_repeat_ngram_size": int(values["no_repeat_ngram_size"]),
        "min_new_tokens": int(values["min_tokens"]),
        "bad_words_ids": words or None,
        "sequence_bias": {(token,): value for token, value in bias},
        "suppress_tokens": suppressed.tolist() if suppressed[0] >= 0 else None,
        "top_h": float(values["top_h"]) if values["top_h"] < 1 else None,
        "top_k": int(values["top_k"]),
        "epsilon_cutoff": float(values["epsilon_cutoff"]),
        "eta_cutoff": float(values["eta_cutoff"]),
    }


class _Model(GenerationMixin):
    """A model with constant logits, which guidance takes as the unconditional ones."""

    config = types.SimpleNamespace(is_encoder_decoder=False)

    def __init__(self, logits: np.ndarray):
        self.logits = torch.tensor(logits, dtype=torch.float32)

    def __call__(self, *_, **__):
        return ModelOutput(logits=self.logits[None, None])
