"""A forced token in `sample`: it overrides all masks, and every truncation keeps it."""

import dataclasses
import doctest
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from composed import VOCAB, a_state, every_param, only
from rows import exhaustive, make, slow

import jaxsample as js
from jaxsample import ORDERS, SamplingParams, sample

BATCH = 12
FORCED = np.where(np.arange(BATCH) % 2, -1, (np.arange(BATCH) * 37) % VOCAB)


def arguments(order, dtype="float32"):
    """Returns rows with different rules, in which each forced token is masked by one of them."""
    x = make("normal", BATCH, VOCAB, dtype)
    stages = itertools.chain(*((e,) if isinstance(e, str) else e for e in order))
    params = only(every_param(BATCH, seed=5), stages)
    even = np.arange(0, BATCH, 2)
    x[even[0], FORCED[even[0]]] = -np.inf
    if params.bitmask is not None:
        params.bitmask[even[1]] = 0
    if params.suppressed_token_ids is not None:
        params.suppressed_token_ids[even[2], 0] = FORCED[even[2]]
    if params.logit_bias is not None:
        params.logit_bias_token_ids[even[3], 0] = FORCED[even[3]]
        params.logit_bias[even[3], 0] = -np.inf
    params = dataclasses.replace(params, forced_token_id=FORCED)
    return jax.random.split(jax.random.key(0), BATCH), x, params, a_state(BATCH)


def assert_forced(out):
    """Asserts that rows with a forced token draw it, whatever their other rules are."""
    rows = FORCED >= 0
    np.testing.assert_array_equal(out.tokens[rows], FORCED[rows])
    np.testing.assert_array_equal(out.logprobs[rows], 0)
    np.testing.assert_array_equal(out.num_kept[rows], 1)


FEW = ("bitmask", "suppressed", "forced", "temperature")


def test_a_forced_token_overrides_masks():
    keys, x, params, state = arguments(FEW)
    out = sample(keys, x, params, state, order=FEW)
    assert_forced(out)
    assert (out.num_kept[FORCED < 0] > 1).any()


CUTS = ("bitmask", "suppressed", "logit_bias", *FEW[-2:], "top_k", "top_p", "min_p")


@pytest.mark.parametrize("order", [slow(CUTS), *map(exhaustive, ORDERS)])
def test_every_rule_keeps_a_forced_token(order):
    """Rows without a forced token are drawn as if the field were absent."""
    stages = ORDERS.get(order, order)
    keys, x, params, state = arguments(stages, "bfloat16")
    out = sample(keys, x, params, state, order=order, num_logprobs=2)
    assert_forced(out)
    np.testing.assert_array_equal(out.ranks[FORCED >= 0], 0)
    np.testing.assert_array_equal(out.top_logprobs.tokens[FORCED >= 0, 1], -1)
    free = dataclasses.replace(params, forced_token_id=None)
    want = sample(keys, x, free, state, order=order)
    np.testing.assert_array_equal(out.tokens[FORCED < 0], want.tokens[FORCED < 0])
    np.testing.assert_array_equal(out.logprobs[FORCED < 0], want.logprobs[FORCED < 0])


GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "servers.md"


def test_the_loop_of_the_guide_closes_thoughts_once():
    """Rows write other tokens, start to close, close themselves, or have ended."""
    page = GUIDE.read_text().split("## A thinking budget")[1]
    scope = {"jnp": jnp}
    for example in doctest.DocTestParser().get_examples(page)[:3]:
        exec(example.source, scope)
    written = np.array(
        [[1, 1, 1, 1, 1, 1], [1, 8, 8, 1, 1, 1], [8, 9, 8, 1, 8, 9], [1, 8, 1, 1, 8, 9]]
    )
    due, closing = jax.jit(scope["due"]), jax.jit(scope["closing"])
    budget, closed, texts = np.array([3, 2, 1, 99]), np.zeros(4, int), []
    for spent in range(written.shape[1]):
        token = np.asarray(due(closed, np.full(4, spent), budget))
        texts.append(np.where(token < 0, written[:, spent], token))
        closed = closing(closed, texts[-1])
    want = [[1, 1, 1, 8, 9, 1], [1, 8, 9, 1, 1, 1], [8, 9, 8, 1, 8, 9], [1, 8, 1, 1, 8, 9]]
    np.testing.assert_array_equal(np.stack(texts, axis=1), want)
    np.testing.assert_array_equal(closed, 2)


@pytest.mark.slow
def test_bad_rows_stay_bad():
    """Only masks are overridden, not a NaN, a parameter out of range or an invalid id."""
    keys, x, params, state = arguments(FEW)
    x[2, 7] = np.nan
    params.temperature[4] = -1
    params.suppressed_token_ids[6, 1] = VOCAB
    forced = FORCED.copy()
    forced[8], forced[9] = VOCAB, -2
    params = dataclasses.replace(params, forced_token_id=forced)
    out = sample(keys, x, params, state, order=FEW)
    bad = np.isin(np.arange(BATCH), (2, 4, 6, 8, 9))
    np.testing.assert_array_equal(np.asarray(out.tokens) == -1, bad)
    with pytest.raises(ValueError, match=r"forced_token_id\[9\] must be at least -1"):
        params.validate()


@pytest.mark.exhaustive
def test_a_single_token_of_any_vocabulary():
    for vocab in (1, 2, 33):
        x = np.full((3, vocab), -np.inf, np.float32)
        params = SamplingParams(forced_token_id=np.array([0, vocab - 1, -1]), temperature=0.7)
        out = sample(jax.random.key(0), x, params)
        np.testing.assert_array_equal(out.tokens, [0, vocab - 1, -1])
        np.testing.assert_array_equal(out.logprobs[:2], 0)


@pytest.mark.exhaustive
def test_each_position_of_drafts_may_have_its_own():
    """Drafts equal to forced tokens are accepted, others are not."""
    x = np.tile(make("normal", 2, VOCAB)[:, None], (1, 4, 1))
    forced = np.array([[7, 8, -1, 9], [5, 6, 7, 8]])
    keys = js.request_keys(np.arange(2)[:, None], np.arange(4)[None])
    params = SamplingParams(forced_token_id=forced, top_p=0.9)
    drafts = np.array([[7, 8, 299], [5, 1, 7]])
    out = js.speculative_sample(keys, x, drafts, params)
    third = sample(keys[0, 2], x[0, 2], SamplingParams(top_p=0.9)).tokens
    np.testing.assert_array_equal(out.tokens, [[7, 8, third, -1], [5, 6, -1, -1]])
    np.testing.assert_array_equal(out.logprobs[0, :2], 0)
    rejected = js.rejection_sample(keys[:, 0], x, drafts, x[:, :-1], params)
    np.testing.assert_array_equal(rejected.tokens[:, :2], [[7, 8], [5, 6]])
