"""Times each rule alone: a call of its function, as a ratio to `jnp.argmax`.

Rules that depend on the whole distribution get flat rows, on which they keep many tokens and need
the search, and values with which no rule is neutral. Histories follow Zipf's law.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsample as js
from bench import logits, requests
from bench.baselines import argmax
from bench.requests import HISTORY, IDS
from bench.works import Case, Work


def rules(case: Case) -> dict[str, Work]:
    """Returns the works of all rules and of `jnp.argmax` by name."""
    x = logits.flat(*case)
    rng = np.random.default_rng(logits.SEED)
    keys = requests.keys(case.batch)

    def each(value: float) -> jax.Array:
        return jnp.full(case.batch, value)

    def ids(*shape: int) -> jax.Array:
        return jnp.asarray(rng.integers(0, case.vocab, (case.batch, *shape)), jnp.int32)

    state = requests.state(case.batch, case.vocab)
    text, length, n = state.tokens[:, :HISTORY], each(HISTORY), each(3)
    allowed = jnp.asarray(rng.random((case.batch, case.vocab)) < 0.5)
    context = text[:, -4:]
    calls: dict[str, tuple[Any, ...]] = {
        "scaled_logits": (js.scaled_logits, x, each(0.8)),
        "entropy_scaled_logits": (js.entropy_scaled_logits, x, each(0.5), each(1.5)),
        "smoothed_logits": (js.smoothed_logits, x, each(0.3)),
        "top_k_logits, 50": (js.top_k_logits, x, each(50)),
        "top_k_logits, 5000": (js.top_k_logits, x, each(5000)),
        "top_p_logits": (js.top_p_logits, x, each(0.9)),
        "min_p_logits": (js.min_p_logits, x, each(0.05)),
        "typical_p_logits": (js.typical_p_logits, x, each(0.9)),
        "epsilon_logits": (js.epsilon_logits, x, each(1e-5)),
        "eta_logits": (js.eta_logits, x, each(1e-5)),
        "top_a_logits": (js.top_a_logits, x, each(0.2)),
        "top_n_sigma_logits": (js.top_n_sigma_logits, x, each(1.0)),
        "tail_free_logits": (js.tail_free_logits, x, each(0.95)),
        "top_h_logits": (js.top_h_logits, x, each(0.5)),
        "p_less_logits": (js.p_less_logits, x),
        "xtc_logits": (js.xtc_logits, keys, x, each(0.5), each(1e-5)),
        "repetition_penalized_logits": (
            js.repetition_penalized_logits,
            x,
            state.counts > 0,
            each(1.2),
        ),
        "presence_penalized_logits": (js.presence_penalized_logits, x, state.counts, each(0.5)),
        "frequency_penalized_logits": (js.frequency_penalized_logits, x, state.counts, each(0.5)),
        "dry_penalized_logits": (js.dry_penalized_logits, x, text, length, each(0.8)),
        "no_repeat_ngram_logits": (js.no_repeat_ngram_logits, x, text, length, n),
        "biased_logits": (js.biased_logits, x, ids(IDS), jnp.ones((case.batch, IDS))),
        "allowed_logits": (js.allowed_logits, x, allowed),
        "bitmask_logits": (js.bitmask_logits, x, js.packed_bitmask(allowed)),
        "suppressed_logits": (js.suppressed_logits, x, ids(IDS)),
        "bad_words_logits": (js.bad_words_logits, x, text, length, ids(IDS, 3), ids(IDS) % 4),
        "sequence_biased_logits": (
            *(js.sequence_biased_logits, x, text, length, ids(IDS, 3), ids(IDS) % 4),
            jnp.ones((case.batch, IDS)),
        ),
        "forced_logits": (js.forced_logits, x, jnp.full(case.batch, 100)),
        "min_tokens_logits": (js.min_tokens_logits, x, ids(2), each(3), each(9)),
        "guided_logits": (js.guided_logits, x, jnp.flip(x, -1), each(1.5)),
        "green_list_logits": (js.green_list_logits, jax.random.key(0), x, context),
        "synthid_logits": (js.synthid_logits, jax.random.key(0), x, context),
        "gumbel_watermark_sample": (js.gumbel_watermark_sample, jax.random.key(0), x, context),
        "mirostat_v1_sample": (js.mirostat_v1_sample, keys, x, *_mirostat()),
        "mirostat_v2_sample": (js.mirostat_v2_sample, keys, x, *_mirostat()),
        "adaptive_p_sample": (js.adaptive_p_sample, keys, x, *_adaptive_p()),
        "sample, three penalties": (js.sample, keys, x, _penalties(case), state),
    }
    works = {
        name: Work(function, tuple(arguments)) for name, (function, *arguments) in calls.items()
    }
    return works | {"jnp.argmax": Work(argmax, (x,))}


def _mirostat() -> tuple[js.MirostatParams, js.MirostatState]:
    params = js.MirostatParams()
    return params, js.init_mirostat(params)


def _adaptive_p() -> tuple[js.AdaptivePParams, js.AdaptivePState]:
    params = js.AdaptivePParams(target=0.3)
    return params, js.init_adaptive_p(params)


def _penalties(case: Case) -> js.SamplingParams:
    one, some = jnp.full(case.batch, 1.2), jnp.full(case.batch, 0.5)
    return js.SamplingParams(repetition_penalty=one, presence_penalty=some, frequency_penalty=some)
