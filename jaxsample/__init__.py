"""Token sampling for JAX decoding loops: pure functions over logits `[..., vocab]`."""

from jaxsample.logprobs import TopLogprobs, token_logprobs, token_ranks, top_logprobs
from jaxsample.sampler import SampleOutput, SamplingParams, sample
from jaxsample.sampling import categorical_sample, greedy_sample
from jaxsample.scaling import scaled_logits
from jaxsample.truncation import min_p_logits, top_k_logits, top_p_logits

__version__ = "0.1.0"

__all__ = [
    "SampleOutput",
    "SamplingParams",
    "TopLogprobs",
    "categorical_sample",
    "greedy_sample",
    "min_p_logits",
    "sample",
    "scaled_logits",
    "token_logprobs",
    "token_ranks",
    "top_k_logits",
    "top_logprobs",
    "top_p_logits",
]
