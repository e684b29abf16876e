"""`sample` against the equivalent functions, and draws against the softmax, on any rows."""

import itertools

import fuzz_inputs as inputs
import jax
import jax.numpy as jnp
import numpy as np
import reference
from composed import composed, only
from draws import assert_follows

import jaxsample as js

DROPS = {
    *("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_a"),
    "top_n_sigma",
    *("tail_free", "top_h", "p_less", "xtc"),
}
USUAL = ("temperature", "top_k", "top_p", "min_p")
DRAWS = 20_000
ERROR_RATE = 1e-9
"""The p-value that a correct sampler never reaches in hundreds of thousands of tests."""


def order(rng):
    """Returns some stages in random order, some truncations nested, often those that are fused."""
    names = rng.permutation(js.DEFAULT_ORDER)[: rng.integers(0, 4)].tolist()
    if rng.random() < 0.7:
        names += [
            n for n in rng.permutation(USUAL)[: rng.integers(1, 5)].tolist() if n not in names
        ]
    if rng.random() < 0.3:
        names += ["bitmask", "suppressed"]
    entries: list[tuple[str, ...]] = []
    for name in dict.fromkeys(names):
        if entries and {name, entries[-1][0]} <= DROPS and rng.random() < 0.4:
            entries[-1] = (*entries[-1], name)
        else:
            entries.append((name,))
    return tuple(entry[0] if len(entry) == 1 else entry for entry in entries)


def stages(order):
    return [*itertools.chain(*((e,) if isinstance(e, str) else e for e in order))]


def equal(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def check_sample(rng, order, vocab, dtype):
    """Compares tokens, log-probs, counts and kept sets with the composition, bit for bit."""
    x = jnp.asarray(inputs.rows(rng, vocab, dtype))
    params = only(inputs.params(rng, vocab), stages(order))
    state = inputs.state(rng, vocab)
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), len(x))
    out = js.sample(keys, x, params, state, order=order, return_kept=True)
    tokens, logprobs, number, kept = composed(keys, x, params, state, order)
    bad = (state.lengths < 0) | (state.lengths > inputs.ROOM)
    np.testing.assert_array_equal(out.tokens, jnp.where(bad, -1, tokens))
    np.testing.assert_array_equal(out.logprobs, jnp.where(bad, jnp.nan, logprobs))
    good = np.asarray(out.tokens) >= 0
    np.testing.assert_array_equal(np.asarray(out.num_kept), np.where(good, number, 0))
    mask = np.asarray(js.packed_bitmask(np.asarray(kept, np.float32) > -np.inf))
    np.testing.assert_array_equal(out.kept_mask, np.where(good[:, None], mask, 0))


def check_laws(rng, order, vocab, dtype):
    """Asserts that the slot, the batch and `vmap` do not change a result."""
    x = jnp.asarray(inputs.rows(rng, vocab, dtype))
    given = jax.tree.map(jnp.asarray, only(inputs.params(rng, vocab), stages(order)))
    state = inputs.state(rng, vocab)
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), len(x))
    arguments = (keys, x, given, state)

    def step(*arguments):
        return js.sample(*arguments, order=order)

    want = step(*arguments)
    slots = rng.permutation(len(x))
    equal(
        step(*jax.tree.map(lambda a: a[slots], arguments)), jax.tree.map(lambda a: a[slots], want)
    )
    pairs = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), arguments)
    mapped = jax.vmap(step)(*pairs)
    equal(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), mapped), want)


def check_draws(rng, order, vocab, dtype):
    """Tests that draws of one row follow the softmax of the processed logits, in float64."""
    good = [row for row in inputs.rows(rng, vocab, dtype) if not inputs.is_bad(row)]
    x, params = good[0], only(inputs.params(rng, vocab, 1), stages(order))
    state = jax.tree.map(lambda a: a[0], inputs.state(rng, vocab, 1))
    first = jax.tree.map(lambda a: a[0], params)
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), DRAWS)
    left = composed(keys[:1], jnp.asarray(x)[None], params, _batched(state), order)[3][0]
    left = inputs.flushed(np.asarray(left))
    draw = lambda key: js.sample(key, jnp.asarray(x), first, state, order=order).tokens  # noqa: E731
    tokens = np.asarray(jax.jit(lambda k: jax.lax.map(draw, k, batch_size=500))(keys))
    if inputs.is_bad(left) or not 0 <= state.lengths <= inputs.ROOM:
        assert (tokens == -1).all()
    elif "xtc" not in stages(order):  # XTC drops tokens at random
        assert_follows(tokens, reference.softmax(left), error_rate=ERROR_RATE)


def _batched(state):
    return jax.tree.map(lambda a: a[None], state)
