"""Masked tokens are ignored: columns of -inf at any position change no result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import make, slow

import jaxsample as js

VOCAB = 40
ROWS = 6
KEYS = jax.random.split(jax.random.key(0), ROWS)

PLACES = {
    "behind": np.arange(VOCAB),
    "in front": 23 + np.arange(VOCAB),
    "between": 2 * np.arange(VOCAB),
    "everywhere": np.sort(np.random.default_rng(0).permutation(90)[:VOCAB]),
}
"""The positions of the tokens in a vocabulary of 90."""


def rows():
    """Returns rows, some with masked tokens of their own."""
    kinds = ("normal", "ties", "masked", "flat", "peaked", "one")
    return np.concatenate([make(kind, 1, VOCAB) for kind in kinds])


def placed(array, at, filler):
    """Returns arrays `[rows, vocab]` at these positions of the larger vocabulary."""
    wide = np.full((*array.shape[:-1], 90), filler, array.dtype)
    wide[..., at] = array
    return wide


def calls(x, at):
    """Returns a call of every rule, whose tokens are at the given positions if `x` is wide."""
    rng = np.random.default_rng(1)
    wide = x.shape[-1] > VOCAB

    def per_token(array, filler):
        return placed(array, at, filler) if wide else array

    ids = at[rng.integers(0, VOCAB, (ROWS, 3))].astype(np.int32)
    text = at[rng.integers(0, 3, (ROWS, 9))].astype(np.int32)
    counts = per_token(rng.poisson(0.5, (ROWS, VOCAB)).astype(np.int32), 7)
    other = per_token(make("normal", ROWS, VOCAB), -np.inf)
    allowed = per_token(rng.random((ROWS, VOCAB)) < 0.7, True)
    words, lengths = text[:, :4].reshape(ROWS, 2, 2), np.full((ROWS, 2), 2)
    return {
        "scaled": lambda: js.scaled_logits(x, np.float32([0, 0.5, 0.7, 1, 1.5, 2])),
        "entropy_scaled": lambda: js.entropy_scaled_logits(x, 0.5, 2.0, 1.5),
        "smoothed": lambda: js.smoothed_logits(x, 0.3, 2.0),
        "top_k": lambda: js.top_k_logits(x, 7),
        "top_p": lambda: js.top_p_logits(x, 0.77),
        "min_p": lambda: js.min_p_logits(x, 0.04),
        "typical_p": lambda: js.typical_p_logits(x, 0.77),
        "epsilon": lambda: js.epsilon_logits(x, 0.013),
        "eta": lambda: js.eta_logits(x, 0.013),
        "top_a": lambda: js.top_a_logits(x, 0.3),
        "top_n_sigma": lambda: js.top_n_sigma_logits(x, 0.9),
        "tail_free": lambda: js.tail_free_logits(x, np.float32([0.6, 0.6, 0.6, 0.6, 0, 0.9])),
        "top_h": lambda: js.top_h_logits(x, 0.6),
        "p_less": lambda: js.p_less_logits(x),
        "xtc": lambda: js.xtc_logits(KEYS, x, 1.0, 0.05),
        "repetition": lambda: js.repetition_penalized_logits(x, counts > 0, 1.3),
        "presence": lambda: js.presence_penalized_logits(x, counts, 0.7),
        "frequency": lambda: js.frequency_penalized_logits(x, counts, 0.7),
        "dry": lambda: js.dry_penalized_logits(x, text, 9, 0.8, sequence_breakers=ids[:, :1]),
        "no_repeat_ngram": lambda: js.no_repeat_ngram_logits(x, text, 9, 2),
        "biased": lambda: js.biased_logits(x, ids, np.float32([1, -2, 3])),
        "allowed": lambda: js.allowed_logits(x, allowed),
        "bitmask": lambda: js.bitmask_logits(x, js.packed_bitmask(allowed)),
        "suppressed": lambda: js.suppressed_logits(x, ids),
        "bad_words": lambda: js.bad_words_logits(x, text, 9, words, lengths),
        "sequence_biased": lambda: js.sequence_biased_logits(
            x, text, 9, words, lengths, np.float32([1, -2])
        ),
        "forced": lambda: js.forced_logits(x, ids[:, 0]),
        "min_tokens": lambda: js.min_tokens_logits(x, ids, 0, 3),
        "guided": lambda: js.guided_logits(x, other, 1.5),
    }


NAMES = tuple(calls(rows(), np.arange(VOCAB)))
QUICK = ("entropy_scaled", "top_n_sigma")


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in NAMES])
def test_masked_columns_change_nothing(name):
    """Kept sets are equal, and so are new logits up to the rounding of sums."""
    x = rows()
    want = np.asarray(calls(x, np.arange(VOCAB))[name]())
    for where, at in PLACES.items():
        got = np.asarray(calls(placed(x, at, -np.inf), at)[name]())
        np.testing.assert_array_equal(got[:, at] > -np.inf, want > -np.inf, err_msg=where)
        np.testing.assert_allclose(got[:, at], want, rtol=2e-6, atol=2e-6, err_msg=where)
        assert (np.delete(got, at, axis=1) == -np.inf).all()


def test_every_rule_is_tested():
    marks = {"green_list_logits", "synthid_logits"}  # their key is derived from the id
    rules = {name for name in js.__all__ if name.endswith("_logits")} - marks - {"process_logits"}
    assert {name.removesuffix("_logits").removesuffix("_penalized") for name in rules} == set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "z", "kept"),
    [
        ([0.5, 0.3, 0.15, 0.04, 0.01], 0.5, [0]),
        ([0.73, 0.27], 0.9, [0, 1]),
        ([1.0], 0.0, [0]),
    ],
)
def test_tail_free_does_not_count_masked_tokens(p, z, kept):
    for masked in range(4):
        x = jnp.pad(jnp.log(jnp.array(p)), (0, masked), constant_values=-jnp.inf)
        np.testing.assert_array_equal(np.flatnonzero(js.tail_free_logits(x, z) > -jnp.inf), kept)


def test_log_probs_ranks_and_greedy_tokens_do_not_count_masked_tokens():
    x = rows()
    for at in PLACES.values():
        wide = placed(x, at, -np.inf)
        best = np.asarray(js.greedy_sample(x))
        np.testing.assert_array_equal(js.greedy_sample(wide), at[best])
        want, got = js.token_logprobs(x, best), js.token_logprobs(wide, at[best])
        np.testing.assert_allclose(got, want, atol=1e-6)
        np.testing.assert_array_equal(js.token_ranks(wide, at[best]), 0)
