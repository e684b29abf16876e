"""Rejection sampling by its definition, and texts of several steps with their exact law."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import jaxsample as js

ERROR_RATE = 1e-4
DRAFTER = 1
"""The upper half of the seeds of the draft model, which shares no key with the target."""

GROUP = 1000


def softmax(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x, axis=-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def factors(p, q, drafts):
    """Returns `w_0` to `w_n` of block verification for one row."""
    w = [1.0]
    for i, d in enumerate(drafts):
        w.append(min(1.0, w[-1] * p[i, d] / q[i, d]))
    return w


def chances(p, q, drafts, method):
    """Returns the probability that each number of drafts passes its own test, for one row.

    Chain accepts drafts up to the first that fails, block up to the last that passes.
    """
    number = len(drafts)
    if method == "chain":
        return [min(1.0, p[i, d] / q[i, d]) for i, d in enumerate(drafts)]
    w, h = factors(p, q, drafts), []
    for i in range(1, number):
        rest = np.maximum(w[i] * p[i] - q[i], 0).sum()
        h.append(1.0 if w[i] == 1 else rest / (rest + 1 - w[i]))
    return [*h, w[number]]


def number_accepted(chance, uniforms, method):
    passed = np.asarray(uniforms) < chance
    if method == "chain":
        return len(passed) if passed.all() else int(passed.argmin())
    return max([0, *(np.flatnonzero(passed) + 1)])


def expected_number(p, q, number, method):
    """Returns the expected number of accepted drafts, over all drafts and all uniforms.

    Logits do not depend on the previous drafts.
    """
    total = 0.0
    for drafts in itertools.product(range(p.shape[-1]), repeat=number):
        chance = chances(p, q, drafts, method)
        if method == "chain":
            mean = np.cumprod(chance).sum()
        else:
            after = np.cumprod([1.0, *(1 - np.array(chance)[::-1])])[::-1][1:]
            mean = sum((i + 1) * c * a for i, (c, a) in enumerate(zip(chance, after, strict=True)))
        total += mean * np.prod([q[i, d] for i, d in enumerate(drafts)])
    return total


def draft_keys(requests, position, i):
    """Returns a key for each request, step and draft, distinct from those of the target."""
    words = jnp.stack([jnp.full_like(requests, DRAFTER), requests], -1).astype(jnp.uint32)
    keys = js.request_keys(words, position)
    return jax.vmap(jax.random.fold_in, (0, None))(keys, i)


def texts(target, draft, rows, length, number, params, verify, state=None):
    """Writes texts, several drafts per step, with the documented keys.

    Args:
      target, draft: logits `[vocab, vocab]` after each token.
      verify: `verify(requests, position, keys, logits, drafts, draft_logits, params, state)`.

    Returns:
      int `[rows, length]`, and the number of steps of the longest row.
    """
    vocab = target.shape[-1]
    target, draft = jnp.asarray(target), jnp.asarray(draft)

    def step(requests, last, position, state):
        drafts, given, token = [], [], last
        for i in range(number):
            given.append(draft[token])
            keys = draft_keys(requests, position, i)
            token = jax.vmap(jax.random.categorical)(keys, given[-1]).astype(jnp.int32)
            drafts.append(token)
        drafts = jnp.stack(drafts, 1)
        before = jnp.concatenate([last[:, None], drafts], 1)
        keys = js.request_keys(requests, position)
        args = keys, target[before], drafts, jnp.stack(given, 1), params, state
        return verify(requests, position, *args).tokens

    @jax.jit
    def in_groups(last, position, state):  # groups of rows that fit into the cache
        requests = jnp.arange(rows, dtype=jnp.int32)
        split = jax.tree.map(
            lambda a: a.reshape(rows // GROUP, GROUP, *a.shape[1:]),
            (requests, last, position, state),
        )
        return jax.lax.map(lambda args: step(*args), split).reshape(rows, number + 1)

    text = np.full((rows, length + number + 1), -1)
    position, steps = np.zeros(rows, np.int32), 0
    last = np.zeros(rows, np.int32)
    while (position < length).any():
        new = np.asarray(in_groups(last, position, state))
        new = np.where((position < length)[:, None], new, -1)
        assert (new[position < length, 0] >= 0).all()
        for i, token in enumerate(new.T):
            some = token >= 0
            text[some, np.minimum(position[some] + i, length + number)] = token[some]
        if state is not None:
            state = js.update_state(state, new)
        count = (new >= 0).sum(-1)
        last = np.where(count > 0, new[np.arange(rows), np.maximum(count - 1, 0)], last)
        position, steps = (position + count).astype(np.int32), steps + 1
    return text[:, :length] % vocab, steps


def law(target, length, params, state=None):
    """Returns the probability of every text, by applying the rules to every prefix."""
    vocab, most = target.shape[-1], target.shape[-1] ** (length - 1)
    probability = np.ones(1)
    for number in range(length):
        before = np.array([*itertools.product(range(vocab), repeat=number)], np.int32)
        before = before.reshape(vocab**number, number)
        last = before[:, -1] if number else np.zeros(1, np.int32)
        here = None
        if state is not None:
            here = js.update_state(
                jax.tree.map(lambda a: jnp.repeat(a[:1], most, 0), state),
                np.resize(before, (most, number)),
            )
        # One program serves all numbers.
        x = jnp.asarray(target)[np.resize(last, most)]
        p = softmax(js.process_logits(x, params, here))[: len(before)]
        probability = (probability[:, None] * p).reshape(-1)
    return probability


def p_value(text, probability, vocab):
    """Returns the p-value of a chi-square test of texts against their law."""
    index = text @ vocab ** np.arange(text.shape[1])[::-1]
    observed = np.bincount(index, minlength=probability.size)
    assert not observed[probability == 0].any()
    order = np.argsort(probability)
    expected = probability[order] * len(text)
    # Rarer texts share a bin.
    rare = np.cumsum(expected) < 10
    groups = [expected[rare].sum(), *expected[~rare]]
    counts = [observed[order][rare].sum(), *observed[order][~rare]]
    groups, counts = (np.array(of, float)[np.array(groups) > 0] for of in (groups, counts))
    statistic = np.sum((counts - groups) ** 2 / groups)
    return stats.chi2.sf(statistic, len(groups) - 1)
