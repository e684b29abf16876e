"""Random inputs for the fuzzer: rows of every kind, parameters in and out of range, and texts."""

import jax.numpy as jnp
import numpy as np

import jaxsample as js
from jaxsample import SamplingParams

BATCH = 24
ROOM = 14
VOCABS = (1, 33, 300, 4097)
DTYPES = ("float32", "bfloat16", "float16")
KINDS = (
    *("normal", "text", "flat", "ties", "equal", "peaked", "masked", "few", "one", "offset"),
    *("zeros", "huge", "lowest", "subnormal", "bad"),
)


def rows(rng, vocab, dtype, batch=BATCH):
    """Returns logits, each row of a random kind; some kinds contain a NaN, +inf or only -inf."""
    x = np.stack([_row(rng, rng.choice(KINDS), vocab) for _ in range(batch)])
    most = float(jnp.finfo(dtype).max)
    return np.where(np.isfinite(x), np.clip(x, -most, most), x).astype(jnp.dtype(dtype))


def _row(rng, kind, vocab):
    x = rng.normal(size=vocab) * rng.choice([0.1, 1, 3, 10])
    some = rng.integers(vocab)
    if kind == "text":
        x = 2 * rng.gumbel(size=vocab)
    elif kind == "flat":
        x *= 1e-3
    elif kind == "ties":
        x = np.round(x)
    elif kind == "equal":
        x[:] = x[0]
    elif kind == "peaked":
        x[some] += 25
    elif kind in ("masked", "few"):
        share = 0.7 if kind == "masked" else 1 - 3 / vocab
        x[rng.random(vocab) < share] = -np.inf
        x[some] = 1
    elif kind == "one":
        x[np.arange(vocab) != some] = -np.inf
    elif kind == "offset":
        x += rng.choice([-1000, 1000, 1e4])
    elif kind == "zeros":
        x = rng.choice([0.0, -0.0, -1.0], vocab)
    elif kind == "huge":
        x *= 10.0 ** rng.integers(3, 39)
    elif kind == "lowest":
        x[rng.random(vocab) < 0.5] = np.finfo(np.float32).min
    elif kind == "subnormal":
        x = rng.choice([0, 1e-40, -1e-40, 1e-45, 1e-38], vocab)
    elif kind == "bad":
        x[some] = rng.choice([np.nan, np.inf, -np.inf])
        x[:] = -np.inf if x[some] == -np.inf else x
    return x


def flushed(row):
    """Returns a row in float64, with subnormal float32 numbers flushed to 0 as in computations."""
    row = row.astype(np.float32).astype(np.float64)
    return np.where(np.abs(row) < np.finfo(np.float32).tiny, 0.0, row)


def is_bad(row):
    """Returns whether a row is bad, so that no function draws from it."""
    row = row.astype(np.float64)
    return bool(np.isnan(row).any() or (row == np.inf).any() or (row == -np.inf).all())


def real(rng, usual, special=(), bad=(), batch=BATCH):
    """Returns real numbers: usually from a range, sometimes special ones, rarely a bad one."""
    low, high = usual
    values = rng.uniform(low, high, batch)
    for share, some in ((0.3, special), (0.04, bad)):
        if some:
            values = np.where(rng.random(batch) < share, rng.choice(some, batch), values)
    return values.astype(np.float32)


def whole(rng, usual, bad=(), batch=BATCH):
    values = rng.choice(usual, batch)
    if bad:
        values = np.where(rng.random(batch) < 0.04, rng.choice(bad, batch), values)
    return values.astype(np.int32)


INFINITE = (np.nan, np.inf, -np.inf)
OUTSIDE = (-0.1, 1.1, np.nan, np.inf)


def temperature(rng, batch=BATCH):
    special = (0, 1, 1e-38, 1e-30, 1e-5, 1e5, 1e30, 2.0**-126, 1e-45)
    return real(rng, (0.2, 2), special, (-1, *INFINITE), batch)


def share(rng, special=(0, 1), batch=BATCH):
    return real(rng, (0, 1), (*special, 0.9, 0.95, 0.999, 1e-6), OUTSIDE, batch)


def top_k(rng, batch=BATCH):
    return whole(rng, [-1, 0, 1, 2, 40, 63, 64, 65, 66, 300, 10**6], [-2, -(2**31)], batch)


def ids(rng, vocab, *shape, bad=0.01):
    """Returns ids, some of them padding, rarely an invalid one."""
    found = rng.integers(-2, vocab, shape)
    far = rng.choice([vocab, vocab + 1, 2**21, 2**31 - 1, 2**31 + 5, 2**32, 2**40], shape)
    return np.where(rng.random(shape) < bad / shape[-1], far, found)


def params(rng, vocab, batch=BATCH):
    """Returns params with every field, with different rules in each row."""
    return SamplingParams(
        unconditional_logits=rows(rng, vocab, "float32", batch),
        guidance_scale=real(rng, (-1, 3), (0, 1), INFINITE, batch),
        allowed=rng.random((batch, vocab)) < 0.9,
        bitmask=rng.integers(-(2**31), 2**31, (batch, -(-vocab // 32))).astype(np.int32),
        suppressed_token_ids=ids(rng, vocab, batch, 3),
        bad_words=ids(rng, min(vocab, 4), batch, 3, 2, bad=0).clip(0),
        bad_word_lengths=whole(rng, [0, 1, 2, 2], [], (batch, 3)),
        stop_token_ids=ids(rng, vocab, batch, 2),
        min_tokens=whole(rng, [0, 0, 3, 9], [-1], batch),
        no_repeat_ngram_size=whole(rng, [0, 0, 1, 2, 3], [-1], batch),
        repetition_penalty=real(rng, (0.5, 2), (1, 1e-30, 1e30), (0, -1, *INFINITE), batch),
        presence_penalty=real(rng, (-2, 2), (0, 1e38), INFINITE, batch),
        frequency_penalty=real(rng, (-2, 2), (0, 1e38), INFINITE, batch),
        dry_multiplier=real(rng, (0, 2), (0, 1e38), (-1, *INFINITE), batch),
        dry_base=real(rng, (1, 3), (1, 1e38), (0.5, *INFINITE), batch),
        dry_allowed_length=whole(rng, [1, 2, 5], [0, -1], batch),
        dry_sequence_breakers=ids(rng, vocab, batch, 2),
        logit_bias_token_ids=ids(rng, vocab, batch, 4),
        logit_bias=real(rng, (-5, 5), (0, -np.inf, 1e38), (np.nan, np.inf), (batch, 4)),
        sequence_bias_tokens=ids(rng, min(vocab, 4), batch, 3, 2, bad=0).clip(0),
        sequence_bias_lengths=whole(rng, [0, 1, 2, 2], [], (batch, 3)),
        sequence_bias=real(rng, (-5, 5), (0, -np.inf, 1e38), (np.nan, np.inf), (batch, 3)),
        forced_token_id=whole(rng, [-1] * 9 + [vocab - 1], [-2, vocab], batch),
        temperature=temperature(rng, batch),
        dynatemp_low=real(rng, (0.2, 2), (0, 1, 1e-38), (-1, *INFINITE), batch),
        dynatemp_high=real(rng, (0.2, 2), (0, 1, 1e-38), (-1, *INFINITE), batch),
        dynatemp_exponent=real(rng, (0, 3), (0, 1), (-1, *INFINITE), batch),
        smoothing_factor=real(rng, (0, 1), (0, 1e30), (-1, *INFINITE), batch),
        smoothing_curve=real(rng, (1, 4), (1,), (0.5, *INFINITE), batch),
        top_k=top_k(rng, batch),
        top_p=share(rng, batch=batch),
        min_p=share(rng, batch=batch) ** 2,
        typical_p=share(rng, batch=batch),
        epsilon_cutoff=share(rng, batch=batch) ** 3,
        eta_cutoff=share(rng, batch=batch) ** 3,
        top_a=share(rng, batch=batch),
        top_n_sigma=real(rng, (0, 4), (0, -1, 1e30), INFINITE, batch),
        tail_free=share(rng, batch=batch),
        top_h=share(rng, batch=batch),
        p_less=rng.random(batch) < 0.3,
        xtc_probability=share(rng, batch=batch),
        xtc_threshold=share(rng, batch=batch) / 2,
    )


def texts(rng, vocab, batch=BATCH):
    """Returns repetitive texts of every length, rarely with an invalid length."""
    tokens = rng.integers(-1, min(vocab + 1, 4), (batch, ROOM)).astype(np.int32)
    length = whole(rng, range(ROOM + 1), [-1, ROOM + 1], batch)
    return tokens, length


def state(rng, vocab, batch=BATCH):
    """Returns a state of prompts and outputs, some of which exceed their room."""
    prompts = rng.integers(-1, min(vocab + 1, 4), (batch, 6))
    state = js.init_state(prompts, rng.integers(0, 7, batch), vocab, ROOM)
    for _ in range(rng.integers(0, 10)):
        state = js.update_state(state, rng.integers(-1, min(vocab, 4), batch))
    return state
