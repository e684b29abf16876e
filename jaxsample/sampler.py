"""`sample`: the stages of the params in order, then the draw, in one program."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _checks
from jaxsample._core._checks import MAX_VOCAB
from jaxsample._core._parameters import IDS
from jaxsample._core._public import public, static_integer
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, opened
from jaxsample.drawing import processed_rows
from jaxsample.orders import DEFAULT_ORDER, Order
from jaxsample.outputs import OPTION_CONVERTERS, Options, SampleOutput, sample_rows
from jaxsample.params import SamplingParams, converted
from jaxsample.state import SamplerState


def checked_state(name: str, value: Any, shape: tuple[int, ...]) -> SamplerState | None:
    """Returns the state of logits of a shape, or None."""
    if not isinstance(value, SamplerState | None):
        raise TypeError(f"{name} must be a SamplerState or None, got {type(value).__name__}")
    if value is not None and value.counts.shape != shape:
        raise ValueError(f"{name} must be of logits of shape {value.counts.shape}, got {shape}")
    return value


def state_of_rows(name: str, value: Any, logits: Array) -> SamplerState | None:
    """Returns the state of logits, or None."""
    return checked_state(name, value, logits.shape)


def token_ids_of_rows(name: str, value: Any, logits: Array) -> Array | None:
    """Returns the token ids `[..., n]` of rows, or None."""
    return None if value is None else IDS(name, value, logits)


@public(
    static=("order", *OPTION_CONVERTERS, "bad_token", "axis_name", "implementation"),
    key=_checks.keys,
    params=converted,
    state=state_of_rows,
    logprob_token_ids=token_ids_of_rows,
    bad_token=static_integer(-1, MAX_VOCAB),
    **OPTION_CONVERTERS,
)
def sample(
    key: ArrayLike,
    logits: ArrayLike,
    params: SamplingParams,
    state: SamplerState | None = None,
    *,
    order: Order = DEFAULT_ORDER,
    num_logprobs: int = 0,
    logprobs_mode: str | tuple[str, ...] = "processed_logprobs",
    logprob_token_ids: ArrayLike | None = None,
    return_kept: bool = False,
    num_kept_ids: int = 0,
    return_kept_mass: bool = False,
    return_entropy: bool = False,
    return_logits: bool = False,
    bad_token: int = -1,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> SampleOutput:
    """Applies the rules of the params, in order, and draws a token of each row.

    Returns the same tokens as the composition of the functions of its stages, bit for bit.
    Temperature, top-k, top-p and min-p at the end of the order, and the masks directly before them
    (`allowed`, `bitmask`, `suppressed`, `bad_words`, `min_tokens`), are fused with the draw, which
    takes fewer passes over the logits and writes no intermediate logits:

        categorical_sample(key, min_p_logits(top_p_logits(top_k_logits(
            scaled_logits(logits, temperature), top_k), top_p), min_p))

    (`xtc` draws with `fold_in(key, 1)` of the key of each row.) A token depends only on the key,
    logits, params and state of its row.

    Args:
      key: one key, split over the rows, or an array of keys `[...]`, one a row: typed
        (`jax.random.key`) or raw uint32. In a decoding loop, use `request_keys(seeds, positions)`.
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked. They are read in their
        own dtype and all computation is in float32.
      params: the parameters of the rules. A rule whose fields are None is not compiled.
      state: the text so far of each row, for rules that depend on it.
      order: static, the names of the stages, as `DEFAULT_ORDER`, or a name of `ORDERS`: "vllm",
        "hf", "llama_cpp", "maxtext", "sglang_jax". The stages of a nested tuple are applied to the
        same distribution. A `Rule` is a user-defined rule.
      num_logprobs: static, in [0, vocab]: also return the likeliest tokens and the rank of the
        drawn token.
      logprobs_mode: static, "processed_logprobs" for the distribution of the draw, "raw_logprobs"
        for the logits as given, or "scaled_logprobs" for the logits after all rules but those that
        drop tokens by their distribution, with greedy rows at temperature 1, as needed to train a
        policy. A tuple returns several.
      logprob_token_ids: integers `[..., n]`, one list for all rows or one a row: also return the
        log-probabilities of these tokens, in the same modes. -1 is padding.
      return_kept: static, also return the kept tokens, which the draw chose from, as a packed mask.
      num_kept_ids: static, in [0, vocab]: also return the first kept tokens as a list of ids.
      return_kept_mass: static, also return the log of the probability of the kept tokens before
        truncation, under the distribution of "scaled_logprobs". The log-probability in that mode
        minus this value is the one in mode "processed_logprobs", unless `dynatemp`, `smoothing` or
        a user-defined rule follows a truncation, on whose result it depends.
      return_entropy: static, also return the entropy of the distribution of the draw.
      return_logits: static, also return the logits of `process_logits`, which are then written.
      bad_token: static, in [-1, vocab), the token of bad rows, such as a padding id for a loop that
        does not handle -1. Do not append it to the text. The log-probability of a bad row is still
        NaN, and `num_kept` 0.

    Returns:
      `SampleOutput`. A bad row (a NaN, +inf or no finite logit, no token left by the rules, a
      parameter outside its range) gets `bad_token` and log-probability NaN. It does not affect
      other rows.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or order, or a field without the field or the
        state that it requires; the message names the argument.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    >>> keys = jax.vmap(jax.random.key)(jnp.array([1, 2]))
    >>> params = SamplingParams(temperature=jnp.array([1.0, 0.0]), top_p=0.7)
    >>> out = sample(keys, logits, params, num_kept_ids=2, return_kept_mass=True)
    >>> print(out.num_kept, out.tokens[1], out.logprobs[1])
    [2 1] 2 0.0
    >>> print(out.kept_ids[0], jnp.exp(out.log_kept_mass[0]))
    [0 1] 0.8
    """
    x = opened(logits, axis_name, implementation)
    bad_token = _checks.static_integer("bad_token", bad_token, -1, x.vocab - 1)
    asked = (return_kept, num_kept_ids, return_kept_mass, return_entropy, return_logits)
    options = Options(order, num_logprobs, logprobs_mode, *asked)
    token_ids: Any = logprob_token_ids
    out = sample_rows(jnp.asarray(key), x, params, state, options, token_ids)
    if bad_token < 0:
        return out
    return out._replace(tokens=jnp.where(out.tokens < 0, bad_token, out.tokens))


@public(
    static=("order", "axis_name", "implementation"),
    params=converted,
    state=state_of_rows,
    key=lambda name, value, logits: None if value is None else _checks.keys(name, value, logits),
)
def process_logits(
    logits: ArrayLike,
    params: SamplingParams,
    state: SamplerState | None = None,
    *,
    key: ArrayLike | None = None,
    order: Order = DEFAULT_ORDER,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> Array:
    """Applies the rules of the params, in order, without a draw.

    Returns the logits that `sample` draws from: with the same keys,
    `categorical_sample(key, process_logits(logits, params, state))` returns its tokens and
    `token_logprobs` its log-probabilities, bit for bit. `sample` is faster because it writes no
    intermediate logits.

    Args:
      logits: `[..., vocab]`, float32, bfloat16 or float16; -inf is masked.
      params: the parameters of the rules. A rule whose fields are None is not compiled.
      state: the text so far of each row, for rules that depend on it.
      key: as in `sample`; required by `xtc`, the only rule that draws, else None.
      order: static, as in `sample`.

    Returns:
      `[..., vocab]`, -inf for masked tokens; float32 if a rule computes new logits, else in the
      dtype of the logits. Differentiable in the logits. A bad row holds a NaN or no finite logit.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or order, or a field without the field, the state
        or the key that it requires; the message names the argument.

    >>> import jax, jax.numpy as jnp
    >>> params = SamplingParams(temperature=0.5, top_k=2)
    >>> print(process_logits(jnp.array([1.0, 3.0, 2.0]), params))
    [-inf 6. 4.]
    """
    x = opened(logits, axis_name, implementation)
    keys = None if key is None else jnp.asarray(key)
    return processed_rows(keys, x, params, state, order)
