"""Token sampling for JAX decoding loops: pure functions over logits `[..., vocab]`."""

from jaxsample.constraints import (
    allowed_logits,
    bad_words_logits,
    biased_logits,
    bitmask_logits,
    guided_logits,
    min_tokens_logits,
    packed_bitmask,
    suppressed_logits,
)
from jaxsample.logprobs import (
    TopLogprobs,
    replay_logprobs,
    token_logprobs,
    token_ranks,
    top_logprobs,
)
from jaxsample.params import SamplingParams
from jaxsample.penalties import (
    dry_penalized_logits,
    frequency_penalized_logits,
    no_repeat_ngram_logits,
    presence_penalized_logits,
    repetition_penalized_logits,
)
from jaxsample.sampler import SampleOutput, sample
from jaxsample.sampling import categorical_sample, greedy_sample
from jaxsample.scaling import entropy_scaled_logits, scaled_logits, smoothed_logits
from jaxsample.stages import DEFAULT_ORDER, HF_ORDER, LLAMA_CPP_ORDER, VLLM_ORDER, Order
from jaxsample.state import SamplerState, init_state, reset_rows, update_state
from jaxsample.truncation import (
    epsilon_logits,
    eta_logits,
    min_p_logits,
    p_less_logits,
    tail_free_logits,
    top_a_logits,
    top_h_logits,
    top_k_logits,
    top_n_sigma_logits,
    top_p_logits,
    typical_p_logits,
    xtc_logits,
)

__version__ = "0.2.0"

__all__ = [
    "DEFAULT_ORDER",
    "HF_ORDER",
    "LLAMA_CPP_ORDER",
    "VLLM_ORDER",
    "Order",
    "SampleOutput",
    "SamplerState",
    "SamplingParams",
    "TopLogprobs",
    "allowed_logits",
    "bad_words_logits",
    "biased_logits",
    "bitmask_logits",
    "categorical_sample",
    "dry_penalized_logits",
    "entropy_scaled_logits",
    "epsilon_logits",
    "eta_logits",
    "frequency_penalized_logits",
    "greedy_sample",
    "guided_logits",
    "init_state",
    "min_p_logits",
    "min_tokens_logits",
    "no_repeat_ngram_logits",
    "p_less_logits",
    "packed_bitmask",
    "presence_penalized_logits",
    "repetition_penalized_logits",
    "replay_logprobs",
    "reset_rows",
    "sample",
    "scaled_logits",
    "smoothed_logits",
    "suppressed_logits",
    "tail_free_logits",
    "token_logprobs",
    "token_ranks",
    "top_a_logits",
    "top_h_logits",
    "top_k_logits",
    "top_logprobs",
    "top_n_sigma_logits",
    "top_p_logits",
    "typical_p_logits",
    "update_state",
    "xtc_logits",
]
