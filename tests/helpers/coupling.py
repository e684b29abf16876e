"""The probability that two draws with one key agree: the exact law, and the share that did."""

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
    """The probability that each competitor wins two races of the same exponential noise."""
    both = np.flatnonzero((p > 0) & (q > 0))
    wins = np.zeros(p.size)
    wins[both] = [1 / np.sum(np.maximum(p / p[i], q / q[i])) for i in both]
    return wins


def full_agreement(p, q):
    """Returns the probability that one race over the whole vocabulary agrees."""
    return _race(p, q).sum()


def agreement(p, q):
    """Returns the probability that a race of chunks and one of a chunk's tokens agree."""
    starts = np.arange(0, p.size, CHUNK)
    chunks = _race(*(np.add.reduceat(of, starts) for of in (p, q)))
    inside = [_race(p[s : s + CHUNK], q[s : s + CHUNK]).sum() for s in starts]
    return np.sum(chunks * inside)


def overlap(p, q):
    """1 - TV, the most that one draft can be accepted."""
    return np.minimum(p, q).sum()


@functools.partial(jax.jit, static_argnames="num")
def _nearest(keys, x, num):
    def one(key):
        # The first is that token, as a test shows.
        draw = js.categorical_sample(key, x)
        return draw[None] if num == 1 else js.nearest_draws(key, x, num=num)

    return jax.lax.map(one, keys, batch_size=1000)


def accepted(x, y, number, num=1, seed=0):
    """The share of draws from `x` that are among the nearest of `y` with the same key."""
    keys = jax.random.split(jax.random.key(seed), number)
    token, drafts = _nearest(keys, jnp.asarray(x), 1), _nearest(keys, jnp.asarray(y), num)
    return float((drafts == token).any(-1).mean())


def pairs(number, vocab, seed=0):
    """Logits of a target and of a draft model, peaked and flat, near and far, truncated and not."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        scale, noise = (0.5, 2, 4)[i % 3], (0.3, 1.0)[i // 3 % 2]
        x = rng.normal(size=vocab) * scale
        y = x + rng.normal(size=vocab) * noise
        if i % 4 == 3:
            x, y = (np.where(np.argsort(np.argsort(-z)) < 40, z, -np.inf) for z in (x, y))
        yield x.astype(np.float32), y.astype(np.float32)
