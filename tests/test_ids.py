"""Token ids outside the vocabulary have one meaning in every list, whatever their size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import exhaustive, slow

import jaxsample as js
from jaxsample import SamplingParams, sample

VOCAB, ROWS = 16, 3
LARGE = (VOCAB, 2**21, 2**31 - 1, 2**31, 2**32 + 5, 2**40 + 5, 2**63 - 1)
"""The first is valid in a larger vocabulary; truncated to 32 bits, the last are 5 or negative."""


def state():
    return js.init_state(np.full((ROWS, 2), 5), 2, VOCAB, 8)


FIELDS = {
    "logit_bias_token_ids": {"logit_bias": np.full((ROWS, 2), 100.0)},
    "suppressed_token_ids": {},
    "stop_token_ids": {"min_tokens": 3},
    "bad_words": {"bad_word_lengths": np.ones((ROWS, 1), int)},
    "dry_sequence_breakers": {"dry_multiplier": 0.0},
    "exempt_token_ids": {"dry_multiplier": 0.0},
    "sequence_bias_tokens": {
        "sequence_bias_lengths": np.ones((ROWS, 1), int),
        "sequence_bias": np.zeros((ROWS, 1), np.float32),
    },
}
"""Every field of ids, with the other fields that it requires."""


def params_with(field, token):
    """Returns params of three rows: an id in the second, padding or another id in the others."""
    in_words = field in ("bad_words", "sequence_bias_tokens")
    values = np.full((ROWS, 2), 3 if in_words else -1)
    values[1, 0] = token
    return SamplingParams(**{field: values[:, None] if in_words else values}, **FIELDS[field])


def function_of(field, x, p):
    """Applies the function of a field's rule to the same arguments."""
    s = state()
    return {
        "logit_bias_token_ids": lambda: js.biased_logits(x, p.logit_bias_token_ids, p.logit_bias),
        "suppressed_token_ids": lambda: js.suppressed_logits(x, p.suppressed_token_ids),
        "stop_token_ids": lambda: js.min_tokens_logits(x, p.stop_token_ids, 0, p.min_tokens),
        "bad_words": lambda: js.bad_words_logits(
            x, s.tokens, s.lengths, p.bad_words, p.bad_word_lengths
        ),
        "dry_sequence_breakers": lambda: js.dry_penalized_logits(
            x, s.tokens, s.lengths, p.dry_multiplier, sequence_breakers=p.dry_sequence_breakers
        ),
        "exempt_token_ids": lambda: js.dry_penalized_logits(
            x, s.tokens, s.lengths, p.dry_multiplier, exempt_token_ids=p.exempt_token_ids
        ),
        "sequence_bias_tokens": lambda: js.sequence_biased_logits(
            *(x, s.tokens, s.lengths),
            *(p.sequence_bias_tokens, p.sequence_bias_lengths, p.sequence_bias),
        ),
    }[field]()


LIKE_OTHERS = ("exempt_token_ids", "sequence_bias_tokens")


@pytest.mark.parametrize(
    "field",
    [
        "logit_bias_token_ids",
        *(slow(f) for f in [*FIELDS][1:] if f not in LIKE_OTHERS),
        *map(exhaustive, LIKE_OTHERS),
    ],
)
def test_an_id_at_or_above_the_vocabulary_makes_its_row_bad(field):
    x, keys = jnp.zeros((ROWS, VOCAB)), jax.random.split(jax.random.key(0), ROWS)
    harmless = params_with(field, 3)
    want, left = sample(keys, x, harmless, state()), function_of(field, x, harmless)
    assert (want.tokens >= 0).all()
    for token in LARGE:
        params = params_with(field, token)
        out = sample(keys, x, params, state())
        assert out.tokens[1] == -1, token
        assert np.isnan(out.logprobs[1])
        np.testing.assert_array_equal(out.tokens[::2], want.tokens[::2])
        result = function_of(field, x, params)
        assert np.isnan(result[1]).all(), token
        np.testing.assert_array_equal(result[::2], left[::2])


@pytest.mark.parametrize("field", FIELDS)
def test_validate_rejects_ids_beyond_every_vocabulary(field):
    params_with(field, VOCAB).validate()
    for token in LARGE[1:]:
        with pytest.raises(ValueError, match=rf"{field}\[.*\] must be below 2097152, got {token}"):
            params_with(field, token).validate()


def test_negative_ids_of_any_width_are_padding():
    x = jnp.zeros((ROWS, VOCAB))
    for token in (-1, -(2**31), -(2**32) + 5, -(2**63)):
        params = params_with("suppressed_token_ids", token)
        params.validate()
        assert (sample(jax.random.key(0), x, params).num_kept == VOCAB).all()


@pytest.mark.slow
def test_other_integers_beyond_32_bits_stay_out_of_range():
    """Their conversion to 32 bits does not bring them into range."""
    x, key = jnp.zeros((ROWS, VOCAB)), jax.random.key(0)
    for k, kept in ((2**32 + 1, VOCAB), (2**63 - 1, VOCAB), (-(2**32) + 1, 0)):
        assert (sample(key, x, SamplingParams(top_k=np.full(ROWS, k))).num_kept == kept).all()
    words = {"bad_words": np.ones((ROWS, 1, 2), int), "bad_word_lengths": np.full((ROWS, 1), 2**32)}
    assert (sample(key, x, SamplingParams(**words), state()).tokens == -1).all()
    text = np.full((ROWS, 2), 2**32 + 5)  # tokens outside the vocabulary are ignored
    assert not js.init_state(text, 2, VOCAB, 8).prompt_mask.any()
    outside = js.update_state(state(), np.full(ROWS, 2**32 + 5))
    np.testing.assert_array_equal(outside.counts, 0)


def test_masks_of_64_bits_are_rejected_everywhere():
    x, mask = jnp.zeros((ROWS, VOCAB)), np.full((ROWS, 1), 2**32 + 1)
    params = SamplingParams(bitmask=mask)
    for call in (
        lambda: js.bitmask_logits(x, mask),
        lambda: sample(jax.random.key(0), x, params),
        params.validate,
    ):
        with pytest.raises(TypeError, match="bitmask must hold int32 or uint32 words, got int64"):
            call()
    words = mask.astype(np.uint32)
    kept = sample(jax.random.key(0), x, dataclasses.replace(params, bitmask=words)).num_kept
    np.testing.assert_array_equal(kept, 1)
