"""The definition of `sample`: the public functions of its stages in sequence."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxsample as js
from jaxsample import SamplingParams
from jaxsample.stages import STAGES

VOCAB, LENGTH = 300, 12


FIELDS = {name: (*stage.fields, *stage.optional) for name, stage in STAGES.items()}


def every_param(batch, seed=0, vocab=VOCAB):
    """Returns params whose rows use different rules; about half of the values are neutral."""
    rng = np.random.default_rng(seed)

    def pick(*values):
        return rng.choice(np.asarray(values, np.float32), batch)

    def count(*values):
        return rng.choice(np.asarray(values, np.int32), batch)

    return SamplingParams(
        unconditional_logits=rng.normal(size=(batch, vocab)).astype(np.float32),
        guidance_scale=pick(1, 1, 1.5),
        allowed=rng.random((batch, vocab)) < 0.9,
        bitmask=rng.integers(-(2**31), 2**31, (batch, -(-vocab // 32))).astype(np.int32) | 0x5555,
        suppressed_token_ids=rng.integers(-1, vocab, (batch, 3)),
        bad_words=rng.integers(0, 4, (batch, 3, 2)),
        bad_word_lengths=rng.integers(0, 3, (batch, 3)),
        stop_token_ids=rng.integers(-1, vocab, (batch, 2)),
        min_tokens=count(0, 0, 9),
        no_repeat_ngram_size=count(0, 0, 1, 2),
        repetition_penalty=pick(1, 1, 1.3, 0.8),
        presence_penalty=pick(0, 0, 0.7),
        frequency_penalty=pick(0, 0, 0.4, -0.3),
        dry_multiplier=pick(0, 0, 0.8),
        dry_base=pick(1.75, 1.2),
        dry_allowed_length=count(1, 2),
        dry_sequence_breakers=rng.integers(-1, 4, (batch, 1)),
        logit_bias_token_ids=rng.integers(-1, vocab, (batch, 4)),
        logit_bias=rng.normal(size=(batch, 4)).astype(np.float32),
        sequence_bias_tokens=rng.integers(0, 4, (batch, 3, 2)),
        sequence_bias_lengths=rng.integers(0, 3, (batch, 3)),
        sequence_bias=rng.normal(size=(batch, 3)).astype(np.float32),
        forced_token_id=np.where(rng.random(batch) < 0.1, rng.integers(0, vocab, batch), -1),
        temperature=pick(0, 0.7, 1, 1.4),
        dynatemp_low=pick(1, 0.5),
        dynatemp_high=pick(1, 1.5),
        dynatemp_exponent=pick(1, 2),
        smoothing_factor=pick(0, 0, 0.2),
        smoothing_curve=pick(1, 1.5),
        top_k=count(0, 0, 5, 100),
        top_p=pick(1, 1, 0.9, 0.5),
        min_p=pick(0, 0, 0.02),
        typical_p=pick(1, 1, 0.8),
        epsilon_cutoff=pick(0, 0, 1e-3),
        eta_cutoff=pick(0, 0, 1e-2),
        top_a=pick(0, 0, 0.2),
        top_n_sigma=pick(0, 0, 2),
        tail_free=pick(1, 1, 0.95),
        top_h=pick(1, 1, 0.6),
        p_less=rng.random(batch) < 0.3,
        xtc_probability=pick(0, 0, 0.7),
        xtc_threshold=pick(0.05, 0.1),
    )


def a_state(batch, seed=0, vocab=VOCAB):
    rng = np.random.default_rng(seed)
    state = js.init_state(rng.integers(0, 4, (batch, 5)), rng.integers(0, 6, batch), vocab, LENGTH)
    for _ in range(3):
        state = js.update_state(state, rng.integers(0, 4, batch))
    return state


def only(params, stages):
    """Returns the params of some stages, with None for all others."""
    names = itertools.chain(*(FIELDS[stage] for stage in stages))
    return SamplingParams(**{name: getattr(params, name) for name in names})


def apply(stage, key, x, p, s):
    """Applies the public function of a stage."""
    unpacked = js.bitmask_logits(jnp.zeros(x.shape), s.prompt_mask) == 0
    calls = {
        "guidance": lambda: js.guided_logits(x, p.unconditional_logits, p.guidance_scale),
        "allowed": lambda: js.allowed_logits(x, p.allowed),
        "bitmask": lambda: js.bitmask_logits(x, p.bitmask),
        "suppressed": lambda: js.suppressed_logits(x, p.suppressed_token_ids),
        "bad_words": lambda: js.bad_words_logits(
            x, s.tokens, s.lengths, p.bad_words, p.bad_word_lengths
        ),
        "min_tokens": lambda: js.min_tokens_logits(
            x, p.stop_token_ids, s.lengths - s.prompt_lengths, p.min_tokens
        ),
        "no_repeat_ngram": lambda: js.no_repeat_ngram_logits(
            x, s.tokens, s.lengths, p.no_repeat_ngram_size
        ),
        "repetition_penalty": lambda: js.repetition_penalized_logits(
            x, unpacked | (s.counts > 0), p.repetition_penalty
        ),
        "frequency_penalty": lambda: js.frequency_penalized_logits(
            x, s.counts, p.frequency_penalty
        ),
        "presence_penalty": lambda: js.presence_penalized_logits(x, s.counts, p.presence_penalty),
        "dry": lambda: js.dry_penalized_logits(
            x,
            s.tokens,
            s.lengths,
            p.dry_multiplier,
            p.dry_base,
            p.dry_allowed_length,
            p.dry_sequence_breakers,
        ),
        "logit_bias": lambda: js.biased_logits(x, p.logit_bias_token_ids, p.logit_bias),
        "sequence_bias": lambda: js.sequence_biased_logits(
            *(x, s.tokens, s.lengths),
            *(p.sequence_bias_tokens, p.sequence_bias_lengths, p.sequence_bias),
        ),
        "forced": lambda: js.forced_logits(x, p.forced_token_id),
        "temperature": lambda: js.scaled_logits(x, p.temperature),
        "dynatemp": lambda: js.entropy_scaled_logits(
            x, p.dynatemp_low, p.dynatemp_high, p.dynatemp_exponent
        ),
        "smoothing": lambda: js.smoothed_logits(x, p.smoothing_factor, p.smoothing_curve),
        "epsilon_cutoff": lambda: js.epsilon_logits(x, p.epsilon_cutoff),
        "eta_cutoff": lambda: js.eta_logits(x, p.eta_cutoff),
        "p_less": lambda: jnp.where(p.p_less[:, None], js.p_less_logits(x), x),
        "xtc": lambda: js.xtc_logits(
            jax.vmap(jax.random.fold_in, (0, None))(key, 1), x, p.xtc_probability, p.xtc_threshold
        ),
    }
    plain = lambda: getattr(js, f"{stage}_logits")(x, getattr(p, stage))  # noqa: E731
    return calls.get(stage, plain)()


def composed(keys, x, params, state, order):
    """Computes the definition of `sample`."""
    for entry in order:
        if isinstance(entry, str):
            x = apply(entry, keys, x, params, state)
            continue
        results = [np.asarray(apply(stage, keys, x, params, state)) for stage in entry]
        kept = np.logical_and.reduce([result > -np.inf for result in results])
        x = jnp.where(kept, x, -jnp.inf)
    tokens = js.categorical_sample(keys, x)
    return tokens, js.token_logprobs(x, tokens), jnp.sum(x > -jnp.inf, axis=-1), x


def assert_drawn(out, tokens, logprobs, number, kept):
    """Asserts that the results of `sample`, with its kept mask, equal `composed` bit for bit."""
    np.testing.assert_array_equal(out.tokens, tokens)
    np.testing.assert_array_equal(out.logprobs, logprobs)
    good = np.asarray(tokens) >= 0
    np.testing.assert_array_equal(out.num_kept[good], number[good])
    mask = np.asarray(js.packed_bitmask(np.asarray(kept) > -np.inf))
    np.testing.assert_array_equal(out.kept_mask[good], mask[good])
    assert good.mean() > 0.6
