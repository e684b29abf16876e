"""Parameters and states for the rows of a batch, from the joint rules to every field."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bench.logits import SEED
from jaxsample import SamplerState, SamplingParams, init_state, packed_bitmask, update_state

HISTORY = 1024
WRITTEN = 32
IDS = 64

JOINT = (0.8, 50, 0.95, 0.02)
"""Temperature, k, p and min-p."""


def keys(batch: int) -> Array:
    """Returns a key for each row."""
    return jax.random.split(jax.random.key(0), batch)


def joint(batch: int, temperature: float, k: int, p: float, min_p: float) -> SamplingParams:
    """Returns temperature, top-k, top-p and min-p, each an array of one value per row."""
    temperatures, ks, ps, min_ps = (jnp.full(batch, value) for value in (temperature, k, p, min_p))
    return SamplingParams(temperature=temperatures, top_k=ks, top_p=ps, min_p=min_ps)


def full(batch: int, vocab: int) -> SamplingParams:
    """Returns a bias of 64 tokens, a packed grammar mask, three penalties and the joint rules."""
    rng = np.random.default_rng(SEED)
    return dataclasses.replace(
        joint(batch, *JOINT),
        logit_bias_token_ids=_ids(batch, vocab, IDS),
        logit_bias=jnp.ones((batch, IDS)),
        bitmask=packed_bitmask(rng.random((batch, vocab)) < 0.5),
        repetition_penalty=jnp.full(batch, 1.2),
        presence_penalty=jnp.full(batch, 0.5),
        frequency_penalty=jnp.full(batch, 0.5),
    )


def every_stage(batch: int, vocab: int) -> SamplingParams:
    """Returns params with every field."""

    def each(value: float) -> Array:
        return jnp.full(batch, value)

    return dataclasses.replace(
        full(batch, vocab),
        unconditional_logits=jnp.zeros((batch, vocab)),
        guidance_scale=each(1.5),
        allowed=jnp.ones((batch, vocab), bool),
        suppressed_token_ids=_ids(batch, vocab, IDS),
        bad_words=_ids(batch, vocab, IDS, 3),
        bad_word_lengths=_ids(batch, 4, IDS),
        stop_token_ids=_ids(batch, vocab, 2),
        min_tokens=each(9),
        no_repeat_ngram_size=each(3),
        penalty_window=each(256),
        exempt_token_ids=_ids(batch, vocab, 4),
        dry_multiplier=each(0.8),
        dry_base=each(1.75),
        dry_allowed_length=each(2),
        dry_sequence_breakers=_ids(batch, vocab, 4),
        sequence_bias_tokens=_ids(batch, vocab, IDS, 3),
        sequence_bias_lengths=_ids(batch, 4, IDS),
        sequence_bias=jnp.ones((batch, IDS)),
        forced_token_id=each(-1),
        dynatemp_low=each(0.5),
        dynatemp_high=each(1.5),
        dynatemp_exponent=each(1.0),
        smoothing_factor=each(0.3),
        smoothing_curve=each(1.5),
        typical_p=each(0.9),
        epsilon_cutoff=each(1e-5),
        eta_cutoff=each(1e-5),
        top_a=each(0.2),
        top_n_sigma=each(1.0),
        tail_free=each(0.95),
        top_h=each(0.5),
        p_less=jnp.ones(batch, bool),
        xtc_probability=each(0.5),
        xtc_threshold=each(0.1),
    )


def state(batch: int, vocab: int) -> SamplerState:
    """Returns states with Zipf prompts of 1,024 tokens, of which the rows wrote 32 again."""
    rng = np.random.default_rng(SEED)
    text = (np.minimum(rng.zipf(1.3, (batch, HISTORY)), vocab) - 1).astype(np.int32)
    state = init_state(text, HISTORY, vocab, 2 * HISTORY)
    for token in text.T[:WRITTEN]:
        state = update_state(state, token)
    return state


def _ids(batch: int, limit: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(SEED).integers(0, limit, (batch, *shape)), jnp.int32)
