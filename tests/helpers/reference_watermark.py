"""The definitions of the watermarks in plain Python and NumPy float64, one row at a time."""

import functools

import numpy as np
from reference import softmax
from scipy import stats

MASK = 0xFFFFFFFF


def threefry(key, counter):
    """Computes Threefry-2x32 with 20 rounds, Salmon et al. 2011."""
    schedule = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA]
    a, b = (counter[0] + schedule[0]) & MASK, (counter[1] + schedule[1]) & MASK
    rotations = [13, 15, 26, 6, 17, 29, 16, 24]
    for i in range(20):
        turn = rotations[i % 8]
        a = (a + b) & MASK
        b = ((b << turn | b >> (32 - turn)) & MASK) ^ a
        if i % 4 == 3:
            step = i // 4 + 1
            a = (a + schedule[step % 3]) & MASK
            b = (b + schedule[(step + 1) % 3] + step) & MASK
    return a, b


def seed(key, context):
    return fold(key, tuple(int(token) for token in context))


@functools.cache
def fold(key, context):
    for token in context:
        key = threefry(key, (0, token & MASK))
    return key


def mix(x):
    x ^= x >> 16
    x = x * 0x21F0AAAD & MASK
    x ^= x >> 15
    x = x * 0xD35A2D97 & MASK
    return x ^ x >> 15


def word(key, context, token):
    first, second = seed(key, context)
    return mix(mix(int(token) ^ first) ^ second)


def green_word(key, context, token, scheme):
    if scheme == "left_hash":
        return word(key, context, token)
    return mix(min(word(key, [neighbour], token) for neighbour in context))


def is_green(key, context, token, gamma, scheme):
    return green_word(key, context, token, scheme) < gamma * 2**32


def coins(key, context, token, depth):
    bits = word(key, context, token)
    return [bits >> layer & 1 for layer in range(depth)]


def noise(key, context, token):
    """Returns the uniform noise `1 - u`."""
    high = word(key, context, token)
    low = mix(high ^ seed(key, context)[0] ^ 0x9E3779B9)
    return high / 2**32 + (low + 0.5) / 2**64


def green_list(row, key, context, gamma, delta, scheme):
    greens = [is_green(key, context, token, gamma, scheme) for token in range(row.size)]
    return row.astype(np.float64) + np.where(greens, delta, 0)


def synthid(row, key, context, depth):
    """Returns the probabilities after the tournament."""
    p = softmax(row)
    for g in np.array([coins(key, context, token, depth) for token in range(row.size)]).T:
        p = p * (1 + g - np.sum(g * p))
    return p


def gumbel(row, key, context):
    """Returns the score of each token in the race."""
    x = row.astype(np.float64)
    u = np.array([noise(key, context, token) for token in range(row.size)])
    return x - x.max() - np.log(-np.log1p(-u))


def grams(tokens, width):
    """Returns the (context, token) pairs of a text without missing tokens."""
    for i in range(width, len(tokens)):
        gram = tuple(int(token) for token in tokens[i - width : i + 1])
        if min(gram) >= 0:
            yield gram[:-1], gram[-1]


def detect_green_list(key, tokens, gamma, width, scheme):
    """Returns the z-score, the p-value, and the numbers of green and scored tokens."""
    words = {green_word(key, *gram, scheme) for gram in grams(tokens, width)}
    n, green = len(words), sum(w < gamma * 2**32 for w in words)
    z = (green - gamma * n) / np.sqrt(max(n, 1) * gamma * (1 - gamma))
    return z, stats.binom.sf(green - 1, n, gamma), green, n


def detect_synthid(key, tokens, depth, width):
    """Returns the score, the p-value and the number of scored tokens."""
    first = {}
    for context, token in grams(tokens, width):
        first.setdefault(context, token)
    if not first:
        return 0.5, 1.0, 0
    weights = np.linspace(10, 1, depth) if depth > 1 else np.ones(1)
    weights /= weights.sum()
    score = np.mean([np.dot(weights, coins(key, *gram, depth)) for gram in first.items()])
    deviation = np.sqrt(np.sum(weights**2) / 4 / len(first))
    return score, stats.norm.sf((score - 0.5) / deviation), len(first)


def detect_gumbel(key, tokens, width):
    """Returns the score, the p-value and the number of scored tokens."""
    different = set(grams(tokens, width))
    score = sum(-np.log(noise(key, *gram)) for gram in different)
    tail = stats.gamma.sf(score, len(different)) if different else 1.0
    return score, tail, len(different)
