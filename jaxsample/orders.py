"""The orders in which systems apply the stages of `sample`, and user-defined rules."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

from jaxsample.state import SamplerState


@dataclasses.dataclass(frozen=True)
class Rule:
    """A user-defined rule for an `order` of `sample`: a custom logits processor.

    The logits that it returns are written to memory once, and the next stages read them. The
    guarantees of `sample` hold (slot, batch size, `vmap` and sharding never change a token) if the
    function computes each row independently and in the same way in every program.

    Attributes:
      name: must differ from the names of the stages. `SamplingParams.custom` holds the parameters
        of the rule under this name.
      function: `function(logits, params, state)`, traced. It takes the logits `[..., vocab]` after
        the previous stages (float32 after a rule that computes new logits, else in the dtype that
        was given to `sample`), the parameters of the rule or None, and the `SamplerState` or None,
        of whose `tokens` only the first `lengths` are valid. It returns logits of the same shape,
        float32, bfloat16 or float16, with -inf for masked tokens; a NaN or +inf makes its row a bad
        row. Inside `shard_map` it gets the logits of one device. A rule is static: a new function
        object causes a recompilation, so define it once.

    >>> import jax, jax.numpy as jnp
    >>> from jaxsample import SamplingParams, sample
    >>> def favoured(logits, params, state):
    ...     return logits.at[..., params["token"]].add(params["boost"])
    >>> params = SamplingParams(temperature=0.5, custom={"favoured": {"token": 2, "boost": 9.0}})
    >>> order = (Rule("favoured", favoured), "temperature")
    >>> print(sample(jax.random.key(0), jnp.zeros(4), params, order=order).tokens)
    2
    """

    name: str
    function: Callable[[Array, Any, SamplerState | None], Array]


Stages = tuple[str | Rule | tuple[str, ...], ...]
"""Names of stages, and user-defined rules. The stages of a nested tuple are applied jointly: each
to the same distribution, and a token is kept if all of them keep it."""

Order = str | Stages
"""Stages, or a name of `ORDERS`."""

DEFAULT_ORDER: Stages = (
    "guidance",
    "allowed",
    "bitmask",
    "suppressed",
    "bad_words",
    "min_tokens",
    "no_repeat_ngram",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "dry",
    "logit_bias",
    "sequence_bias",
    "forced",
    "temperature",
    "dynatemp",
    "smoothing",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_a",
    "top_n_sigma",
    "tail_free",
    "top_h",
    "p_less",
    "xtc",
)
"""Constraints, penalties, bias, a forced token, temperature, top-k, top-p, min-p, then others."""

VLLM_ORDER: Stages = (
    "bitmask",
    "allowed",
    "bad_words",
    "min_tokens",
    "logit_bias",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "forced",
    "temperature",
    "min_p",
    "top_k",
    "top_p",
)
"""The stages of vLLM, in its order."""

HF_ORDER: Stages = (
    "guidance",
    "logit_bias",
    "sequence_bias",
    "repetition_penalty",
    "no_repeat_ngram",
    "bad_words",
    "min_tokens",
    "allowed",
    "suppressed",
    "forced",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
"""The stages of `generate` in Hugging Face transformers, in its order."""

LLAMA_CPP_ORDER: Stages = (
    "bitmask",
    "logit_bias",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "dry",
    "forced",
    "top_n_sigma",
    "top_k",
    "typical_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
    "dynatemp",
)
"""The stages of llama.cpp's default chain, in its order."""

MAXTEXT_ORDER: Stages = ("forced", "top_k", "top_p", "temperature")
"""The order of MaxText's composite and nucleus sampling: temperature comes after truncation."""

SGLANG_JAX_ORDER: Stages = (
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "bitmask",
    "forced",
    "temperature",
    ("top_k", "top_p"),
    "min_p",
)
"""The stages of sglang-jax with `use_sort_for_toppk_minp`, in its order: top-k and top-p apply
to the same distribution. Without that option, temperature comes after them."""

ORDERS: Mapping[str, Stages] = types.MappingProxyType(
    {
        "default": DEFAULT_ORDER,
        "vllm": VLLM_ORDER,
        "hf": HF_ORDER,
        "llama_cpp": LLAMA_CPP_ORDER,
        "maxtext": MAXTEXT_ORDER,
        "sglang_jax": SGLANG_JAX_ORDER,
    }
)
"""The orders by name, for the argument `order`.

Each also has the stage "forced", after all masks, penalties and biases."""


def stages_of(order: Order) -> Stages:
    """Returns the stages of an order, which may be a name."""
    if not isinstance(order, str):
        return order
    if order not in ORDERS:
        raise ValueError(f"order must be a tuple of stages or one of {[*ORDERS]}, got {order!r}")
    return ORDERS[order]
