"""Token sampling for JAX decoding loops: pure functions over logits `[..., vocab]`."""

from jaxsample.adaptive_p import AdaptivePParams, AdaptivePState, adaptive_p_sample, init_adaptive_p
from jaxsample.beams import (
    BeamState,
    Hypotheses,
    beam_step,
    finalize_beams,
    init_beams,
    take_beams,
)
from jaxsample.constraints import (
    allowed_logits,
    biased_logits,
    bitmask_logits,
    forced_logits,
    guided_logits,
    min_tokens_logits,
    packed_bitmask,
    suppressed_logits,
)
from jaxsample.drafting import nearest_draws
from jaxsample.keys import request_keys, seed_words
from jaxsample.logprobs import (
    TopLogprobs,
    replay_logprobs,
    token_logprobs,
    token_ranks,
    top_logprobs,
)
from jaxsample.mirostat import (
    MirostatParams,
    MirostatState,
    init_mirostat,
    mirostat_v1_sample,
    mirostat_v2_sample,
)
from jaxsample.orders import (
    DEFAULT_ORDER,
    HF_ORDER,
    LLAMA_CPP_ORDER,
    MAXTEXT_ORDER,
    ORDERS,
    SGLANG_JAX_ORDER,
    VLLM_ORDER,
    Order,
    Rule,
)
from jaxsample.outputs import SampleOutput
from jaxsample.params import NEUTRAL, SamplingParams, set_rows
from jaxsample.penalties import (
    dry_penalized_logits,
    frequency_penalized_logits,
    no_repeat_ngram_logits,
    presence_penalized_logits,
    repetition_penalized_logits,
)
from jaxsample.rejection import rejection_sample
from jaxsample.reranking import BestOf, best_of
from jaxsample.sampler import process_logits, sample
from jaxsample.sampling import categorical_sample, greedy_sample
from jaxsample.scaling import entropy_scaled_logits, scaled_logits, smoothed_logits
from jaxsample.sequences import bad_words_logits, sequence_biased_logits
from jaxsample.speculation import (
    AcceptedDrafts,
    SpeculativeOutput,
    accept_drafts,
    speculative_sample,
)
from jaxsample.state import SamplerState, init_state, reset_rows, update_state
from jaxsample.stochastic_beams import (
    StochasticBeamState,
    init_stochastic_beams,
    stochastic_beam_step,
)
from jaxsample.stopping import StopReason, stop_reason
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
from jaxsample.watermarks import (
    GreenListDetection,
    ScoreDetection,
    context_repeated,
    detect_green_list,
    detect_gumbel,
    detect_synthid,
    green_list_logits,
    gumbel_watermark_sample,
    last_tokens,
    synthid_logits,
)
from jaxsample.without_replacement import WithoutReplacement, without_replacement_sample

__version__ = "0.2.0"

__all__ = [
    "DEFAULT_ORDER",
    "HF_ORDER",
    "LLAMA_CPP_ORDER",
    "MAXTEXT_ORDER",
    "NEUTRAL",
    "ORDERS",
    "SGLANG_JAX_ORDER",
    "VLLM_ORDER",
    "AcceptedDrafts",
    "AdaptivePParams",
    "AdaptivePState",
    "BeamState",
    "BestOf",
    "GreenListDetection",
    "Hypotheses",
    "MirostatParams",
    "MirostatState",
    "Order",
    "Rule",
    "SampleOutput",
    "SamplerState",
    "SamplingParams",
    "ScoreDetection",
    "SpeculativeOutput",
    "StochasticBeamState",
    "StopReason",
    "TopLogprobs",
    "WithoutReplacement",
    "accept_drafts",
    "adaptive_p_sample",
    "allowed_logits",
    "bad_words_logits",
    "beam_step",
    "best_of",
    "biased_logits",
    "bitmask_logits",
    "categorical_sample",
    "context_repeated",
    "detect_green_list",
    "detect_gumbel",
    "detect_synthid",
    "dry_penalized_logits",
    "entropy_scaled_logits",
    "epsilon_logits",
    "eta_logits",
    "finalize_beams",
    "forced_logits",
    "frequency_penalized_logits",
    "greedy_sample",
    "green_list_logits",
    "guided_logits",
    "gumbel_watermark_sample",
    "init_adaptive_p",
    "init_beams",
    "init_mirostat",
    "init_state",
    "init_stochastic_beams",
    "last_tokens",
    "min_p_logits",
    "min_tokens_logits",
    "mirostat_v1_sample",
    "mirostat_v2_sample",
    "nearest_draws",
    "no_repeat_ngram_logits",
    "p_less_logits",
    "packed_bitmask",
    "presence_penalized_logits",
    "process_logits",
    "rejection_sample",
    "repetition_penalized_logits",
    "replay_logprobs",
    "request_keys",
    "reset_rows",
    "sample",
    "scaled_logits",
    "seed_words",
    "sequence_biased_logits",
    "set_rows",
    "smoothed_logits",
    "speculative_sample",
    "stochastic_beam_step",
    "stop_reason",
    "suppressed_logits",
    "synthid_logits",
    "tail_free_logits",
    "take_beams",
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
    "without_replacement_sample",
    "xtc_logits",
]
