"""Every public function that takes logits of one position per row, with arguments for one shape."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from rows import exhaustive

import jaxsample as js
from bench import requests
from jaxsample import SamplingParams

# Together they cover every code path of the library.
VARIED = (
    *("greedy_sample", "categorical_sample", "token_logprobs", "top_p_logits", "top_logprobs"),
    *("sample", "sample, full call", "sample, masks", "without_replacement_sample"),
    *("typical_p_logits", "top_h_logits", "xtc_logits", "tail_free_logits", "dry_penalized_logits"),
    *("biased_logits", "mirostat_v1_sample", "gumbel_watermark_sample", "synthid_logits"),
)


COMPUTING = {
    *("scaled_logits", "entropy_scaled_logits", "smoothed_logits", "guided_logits"),
    *("repetition_penalized_logits", "presence_penalized_logits", "frequency_penalized_logits"),
    *("dry_penalized_logits", "biased_logits", "sequence_biased_logits"),
    *("green_list_logits", "synthid_logits"),
}
"""The rules that compute new logits, float32 for every dtype; the other rules mask."""


def every():
    """Returns all names; those whose code paths others cover are tested only before a release."""
    return [name if name in VARIED else exhaustive(name) for name in NAMES]


def with_token_ids(keys, x, params, ids, **options):
    return js.sample(keys, x, params, logprob_token_ids=ids, **options)


def calls(x, scalars=False):
    """Returns a function and its arguments by name; arguments of rows begin with the axis of the
    rows.

    With `scalars`, all rows share each parameter.
    """
    rows, vocab = x.shape[:-1], x.shape[-1]
    keys = jax.vmap(jax.random.key)(jnp.arange(rows[0], dtype=jnp.int32))
    each = () if scalars else rows
    real, integer, token = jnp.full(each, 0.9), jnp.full(each, 100), jnp.full(rows, 100)
    params = SamplingParams(temperature=real, top_k=integer, top_p=real, min_p=real * 0.01)
    cut = dataclasses.replace(params, temperature=None)
    few = jnp.arange(20, dtype=jnp.int32)
    history = jnp.tile(few, (rows[0], 5))
    counts = jnp.zeros(x.shape, jnp.int32)
    words = jnp.full((*rows, -(-vocab // 32)), -1, jnp.int32)
    mirostat, adaptive_p = js.MirostatParams(tau=real), js.AdaptivePParams(target=real)
    return {
        "scaled_logits": (js.scaled_logits, (x, real)),
        "top_k_logits": (js.top_k_logits, (x, integer)),
        "top_p_logits": (js.top_p_logits, (x, real)),
        "min_p_logits": (js.min_p_logits, (x, real)),
        "greedy_sample": (js.greedy_sample, (x,)),
        "categorical_sample": (js.categorical_sample, (keys, x)),
        "nearest_draws": (functools.partial(js.nearest_draws, num=3), (keys, x)),
        "without_replacement_sample": (
            functools.partial(js.without_replacement_sample, num=5),
            (keys, x),
        ),
        "process_logits": (js.process_logits, (x, cut)),
        "token_logprobs": (js.token_logprobs, (x, token)),
        "token_ranks": (js.token_ranks, (x, token)),
        "top_logprobs": (functools.partial(js.top_logprobs, num=20), (x,)),
        "sample": (js.sample, (keys, x, params)),
        "sample, temperature": (js.sample, (keys, x, SamplingParams(temperature=real))),
        "sample, full call": (
            functools.partial(js.sample, num_logprobs=20, return_kept=True),
            (keys, x, requests.full(rows[0], vocab), requests.state(rows[0], vocab)),
        ),
        "entropy_scaled_logits": (js.entropy_scaled_logits, (x, real, real, real)),
        "smoothed_logits": (js.smoothed_logits, (x, real, jnp.ones(each))),
        "typical_p_logits": (js.typical_p_logits, (x, real)),
        "epsilon_logits": (js.epsilon_logits, (x, real * 0.01)),
        "eta_logits": (js.eta_logits, (x, real * 0.01)),
        "top_a_logits": (js.top_a_logits, (x, real)),
        "top_n_sigma_logits": (js.top_n_sigma_logits, (x, real)),
        "tail_free_logits": (js.tail_free_logits, (x, real)),
        "top_h_logits": (js.top_h_logits, (x, real)),
        "p_less_logits": (js.p_less_logits, (x,)),
        "xtc_logits": (js.xtc_logits, (keys, x, real, real * 0.1)),
        "repetition_penalized_logits": (js.repetition_penalized_logits, (x, counts > 0, real)),
        "presence_penalized_logits": (js.presence_penalized_logits, (x, counts, real)),
        "frequency_penalized_logits": (js.frequency_penalized_logits, (x, counts, real)),
        "dry_penalized_logits": (
            js.dry_penalized_logits,
            (x, history, integer, real, real + 1, integer, few),
        ),
        "no_repeat_ngram_logits": (js.no_repeat_ngram_logits, (x, history, integer, integer)),
        "biased_logits": (js.biased_logits, (x, few, few.astype(jnp.float32))),
        "allowed_logits": (js.allowed_logits, (x, counts == 0)),
        "bitmask_logits": (js.bitmask_logits, (x, words)),
        "packed_bitmask": (js.packed_bitmask, (counts == 0,)),
        "suppressed_logits": (js.suppressed_logits, (x, few)),
        "bad_words_logits": (
            js.bad_words_logits,
            (x, history, integer, few.reshape(10, 2), few[:10] % 3),
        ),
        "sequence_biased_logits": (
            js.sequence_biased_logits,
            (x, history, integer, few.reshape(10, 2), few[:10] % 3, few[:10].astype(jnp.float32)),
        ),
        "forced_logits": (js.forced_logits, (x, integer)),
        "min_tokens_logits": (js.min_tokens_logits, (x, few, integer, integer + 1)),
        "guided_logits": (js.guided_logits, (x, x, real)),
        "replay_logprobs": (js.replay_logprobs, (x, token, words)),
        "green_list_logits": (js.green_list_logits, (keys, x, history[:, :4])),
        "synthid_logits": (js.synthid_logits, (keys, x, history[:, :4])),
        "gumbel_watermark_sample": (js.gumbel_watermark_sample, (keys, x, history[:, :4])),
        "mirostat_v1_sample": (
            js.mirostat_v1_sample,
            (keys, x, mirostat, js.init_mirostat(mirostat, rows)),
        ),
        "mirostat_v2_sample": (
            js.mirostat_v2_sample,
            (keys, x, mirostat, js.init_mirostat(mirostat, rows)),
        ),
        "adaptive_p_sample": (
            js.adaptive_p_sample,
            (keys, x, adaptive_p, js.init_adaptive_p(adaptive_p, rows)),
        ),
        "beam_step": (_beam_step, (js.init_beams(1, 4, rows), few, real, real, x)),
        "stochastic_beam_step": (
            _stochastic_beam_step,
            (keys, js.init_stochastic_beams(1, 4, rows), few, x),
        ),
        "sample, masks": (
            js.sample,
            (keys, x, dataclasses.replace(params, bitmask=words, suppressed_token_ids=few)),
        ),
        "sample, outputs": (
            functools.partial(
                with_token_ids, num_kept_ids=3, return_kept_mass=True, return_entropy=True
            ),
            (keys, x, params, few),
        ),
    }


def _beam_step(state, stops, length_penalty, diversity_penalty, x, **options):
    """Takes each row as a search with one beam."""
    return js.beam_step(
        state,
        x[..., None, :],
        stop_token_ids=stops,
        length_penalty=length_penalty,
        diversity_penalty=diversity_penalty,
        **options,
    )


def _stochastic_beam_step(keys, state, stops, x, **options):
    x = x[..., None, :]
    return js.stochastic_beam_step(keys, state, x, stop_token_ids=stops, **options)


def shapes(name, x, scalars=False):
    """Returns a function and the shapes of its arguments, without making an array."""
    found = []

    def arguments(x):
        function, arguments = calls(x, scalars)[name]
        found.append(function)
        return arguments

    arguments = jax.eval_shape(arguments, x)
    return found[0], arguments


NAMES = tuple(calls(jnp.zeros((1, 2))))
