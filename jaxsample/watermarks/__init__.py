"""Watermarks: a keyed mark on generated text, which the holder of the secret key can detect.

A mark is a keyed pseudo-random function of the secret key, the last few tokens (the context) and
the candidate token. Use a key that is not used for anything else. Detectors need the text and the
key, but neither the model nor the prompt.

A p-value is the probability, over keys, that unmarked text scores as high. Repeated n-grams are
scored once, since their scores are not independent. For the same reason, texts with common n-grams
have correlated scores under one key, the more so the narrower the context. float32 can represent
p-values down to 1e-38.
"""

from jaxsample.watermarks._scoring import ScoreDetection
from jaxsample.watermarks.context import context_repeated, last_tokens
from jaxsample.watermarks.green_list import (
    GreenListDetection,
    detect_green_list,
    green_list_logits,
)
from jaxsample.watermarks.gumbel import detect_gumbel, gumbel_watermark_sample
from jaxsample.watermarks.synthid import detect_synthid, synthid_logits

__all__ = [
    "GreenListDetection",
    "ScoreDetection",
    "context_repeated",
    "detect_green_list",
    "detect_gumbel",
    "detect_synthid",
    "green_list_logits",
    "gumbel_watermark_sample",
    "last_tokens",
    "synthid_logits",
]
