"""The probability that two draws with one key agree: the exact law, and the measured share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxsample as js

CHUNK = 256


def softmax(x):
    x = np.asarray(x, np.float64)
    e = np.exp(x - x.max())
    return e / e.sum()


def _race(p, q):
    """Returns the probability of each competitor to win two races with the same noise."""
    both = np.flatnonzero((p > 0) & (q > 0))
    wins = np.zeros(p.size)
    wins[both] = [1 / np.sum(np.maximum(p / p[i], q / q[i])) for i in both]
    return wins


def full_agreement(p, q):
    """Returns the probability that one race over the whole vocabulary agrees."""
    return _race(p, q).sum()


def agreement(p, q):
    """Returns the probability that a race of chunks and a race of tokens in a chunk both agree."""
    starts = np.arange(0, p.size, CHUNK)
    chunks = _race(*(np.add.reduceat(of, starts) for of in (p, q)))
    inside = [_race(p[s : s + CHUNK], q[s : s + CHUNK]).sum() for s in starts]
    return np.sum(chunks * inside)


def overlap(p, q):
    """Returns 1 - TV, the maximum acceptance rate of one draft."""
    return np.minimum(p, q).sum()


@functools.partial(jax.jit, static_argnames="num")
def _nearest(keys, x, num):
    def one(key):
        # The nearest draw is the token of `categorical_sample`, as another test shows.
        draw = js.categorical_sample(key, x)
        return draw[None] if num == 1 else js.nearest_draws(key, x, num=num)

    return jax.lax.map(one, keys, batch_size=1000)


def accepted(x, y, number, num=1, seed=0):
    """Returns the share of draws from `x` that are among the nearest of `y` with the same key."""
    keys = jax.random.split(jax.random.key(seed), number)
    token, drafts = _nearest(keys, jnp.asarray(x), 1), _nearest(keys, jnp.asarray(y), num)
    return float((drafts == token).any(-1).mean())


def pairs(number, vocab, seed=0):
    """Yields target and draft logits: peaked and flat, close and distant, truncated and not."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        scale, noise = (0.5, 2, 4)[i % 3], (0.3, 1.0)[i // 3 % 2]
        x = rng.normal(size=vocab) * scale
        y = x + rng.normal(size=vocab) * noise
        if i % 4 == 3:
            x, y = (np.where(np.argsort(np.argsort(-z)) < 40, z, -np.inf) for z in (x, y))
        yield x.astype(np.float32), y.astype(np.float32)
