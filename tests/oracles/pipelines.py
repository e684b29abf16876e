"""Complete pipelines: rows with different rules, through `sample` and through another system."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rows import make

import jaxsample
from jaxsample._core._bits import unpacked

VOCAB, SIZE = 97, 24
# Systems cut equal logits in different ways, and near -1000 float32 is coarse.
KINDS = ("normal", "flat", "peaked", "masked")
SLACK = 1e-4
"""Rows are compared if moving all thresholds by this share, up or down, keeps the same tokens."""
THRESHOLDS = {
    "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "top_n_sigma",
    "xtc_threshold",
}  # fmt: skip

Values = dict[str, Any]
"""The rules of a row: fields of `SamplingParams`."""

_FIELDS: dict[str, tuple[Callable, Any]] = {
    "temperature": (lambda rng: rng.choice([0.0, *rng.uniform(0.3, 2, 9)]), 1.0),
    "dynamic": (lambda rng: rng.uniform((0.8, 0.1), (2.0, 0.7)), np.array([1.0, 0.0])),
    "top_k": (lambda rng: rng.integers(1, VOCAB), 0),
    "top_p": (lambda rng: rng.uniform(0.3, 0.99), 1.0),
    "min_p": (lambda rng: rng.uniform(0.001, 0.3), 0.0),
    "typical_p": (lambda rng: rng.uniform(0.3, 0.99), 1.0),
    "epsilon_cutoff": (lambda rng: rng.uniform(1e-4, 2e-2), 0.0),
    "eta_cutoff": (lambda rng: rng.uniform(1e-4, 2e-2), 0.0),
    "top_h": (lambda rng: rng.uniform(0.3, 0.95), 1.0),
    "top_n_sigma": (lambda rng: rng.uniform(0.5, 3), 0.0),
    "xtc_threshold": (lambda rng: rng.uniform(0.02, 0.5), 0.6),
    "repetition_penalty": (lambda rng: rng.uniform(0.7, 1.5), 1.0),
    "presence_penalty": (lambda rng: rng.uniform(-1, 1.5), 0.0),
    "frequency_penalty": (lambda rng: rng.uniform(-1, 1.5), 0.0),
    "dry_multiplier": (lambda rng: rng.uniform(0.3, 2), 0.0),
    "no_repeat_ngram_size": (lambda rng: rng.integers(1, 5), 0),
    "min_tokens": (lambda rng: rng.integers(1, SIZE), 0),
    "logit_bias": (lambda rng: 3 * rng.normal(size=4), np.zeros(4)),
    "suppressed_token_ids": (lambda rng: rng.permutation(VOCAB)[:6], np.full(6, -1)),
    "allowed": (lambda rng: rng.random(VOCAB) < 0.8, np.full(VOCAB, True)),
    "bad_word_lengths": (lambda rng: rng.integers(1, 4, 3), np.zeros(3, int)),
    "guidance_scale": (lambda rng: rng.uniform(0.5, 3), 1.0),
}


@dataclasses.dataclass
class Batch:
    """Rows `[rows, vocab]` with the rules, the text and the prompt length of each."""

    logits: np.ndarray
    values: list[Values]
    texts: list[np.ndarray]
    prompts: np.ndarray


def batch(fields: tuple[str, ...], rows: int, *, prompts: bool, greedy: bool = True) -> Batch:
    """Returns rows with random halves of the fields; without prompts the whole text is output."""
    rng = np.random.default_rng(rows)
    logits = np.concatenate([make(kind, rows // len(KINDS), VOCAB) for kind in KINDS])
    texts = [rng.integers(8, size=rng.integers(SIZE // 2, SIZE)) for _ in logits]
    lengths = [rng.integers(1, len(text) // 2) if prompts else 0 for text in texts]
    values = []
    for _ in logits:
        own = {}
        for name in fields:
            draw, neutral = _FIELDS[name]
            own[name] = draw(rng) if rng.random() < 0.5 else neutral
        if not greedy:
            own["temperature"] = own["temperature"] or 1.0
        own["stop_token_ids"] = rng.integers(8, VOCAB, 2)  # transformers never bans them
        own["logit_bias_token_ids"] = rng.permutation(VOCAB)[:4]
        own["bad_words"] = rng.integers(8, size=(3, 3))
        own["unconditional_logits"] = 2 * rng.normal(size=VOCAB)
        values.append(own)
    return Batch(logits, values, texts, np.array(lengths))


def ours(batch: Batch, order: jaxsample.Order, key: jax.Array, slack: float = 0.0):
    """Returns the results of `sample`, in one call for all rows."""
    names = [field.name for field in dataclasses.fields(jaxsample.SamplingParams)]
    stacked = {name: np.stack([v[name] for v in batch.values]) for name in batch.values[0]}
    if "dynamic" in stacked:
        t, delta = stacked.pop("dynamic").T.astype(np.float32)
        stacked |= {"dynatemp_low": t - delta, "dynatemp_high": t + delta}
    for name in THRESHOLDS.intersection(stacked):
        looser = -1 if name in ("top_p", "typical_p", "top_h", "top_n_sigma") else 1
        moved = stacked[name] * (1 + looser * slack)
        neutral = stacked[name] == _FIELDS[name][1]
        stacked[name] = np.where(neutral, stacked[name], moved)
    if "xtc_threshold" in stacked:
        stacked["xtc_probability"] = np.ones(len(batch.logits))
    for needed, other in (
        ("logit_bias", "logit_bias_token_ids"),
        ("min_tokens", "stop_token_ids"),
        ("bad_word_lengths", "bad_words"),
        ("guidance_scale", "unconditional_logits"),
    ):
        if needed not in stacked:
            del stacked[other]
    assert set(stacked) <= set(names)
    real = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in stacked.items()}
    params = jaxsample.SamplingParams(**real)
    params.validate()
    return jaxsample.sample(key, batch.logits, params, _state(batch), order=order, return_kept=True)


def _state(batch: Batch) -> jaxsample.SamplerState:
    tokens = np.stack([np.pad(text, (0, SIZE - len(text))) for text in batch.texts])
    lengths = [len(text) for text in batch.texts]
    return jaxsample.SamplerState.from_tokens(tokens, batch.prompts, lengths, VOCAB)


def check(batch: Batch, order: jaxsample.Order, theirs: np.ndarray) -> str:
    """Compares kept tokens, drawn tokens and log-probs with the logits of another system."""
    keys = jax.random.split(jax.random.key(1), len(batch.logits))
    out, *moved = (ours(batch, order, keys, slack) for slack in (0.0, SLACK, -SLACK))
    decided = (theirs > -np.inf).any(axis=-1)
    for other in moved:
        decided &= np.all(np.asarray(other.kept_mask) == out.kept_mask, axis=-1)
    kept = np.asarray(unpacked(out.kept_mask, VOCAB))
    wrong = decided & (kept != (theirs > -np.inf)).any(axis=-1)
    assert not wrong.any(), f"{wrong.sum()} rows differ, the first is {np.argmax(wrong)}"
    assert (np.asarray(out.tokens)[~(theirs > -np.inf).any(axis=-1)] == -1).all()
    drawn = np.asarray(jaxsample.categorical_sample(keys, jnp.asarray(theirs, jnp.float32)))
    unlike = int((np.asarray(out.tokens) != drawn)[decided].sum())
    assert unlike <= 0.005 * len(drawn)  # the last bits of a logit may decide a draw
    want = jaxsample.token_logprobs(jnp.asarray(theirs, jnp.float32), out.tokens)
    np.testing.assert_allclose(out.logprobs[decided], want[decided], rtol=1e-4, atol=1e-4)
    number = int(decided.sum())
    assert number > 0.9 * len(decided)
    return f"{number} of {len(decided)} rows, {unlike} tokens unlike by rounding"
