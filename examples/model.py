"""A small decoder-only transformer as pure functions over a pytree of weights.

RMSNorm, rotary positions, SwiGLU and tied embeddings. Training (`forward`), reading a prompt
(`prefill`) and writing one more token (`decode_step`) or several (`extend`) run the same code,
`_transform`: they differ only in where the keys and values that a query looks back on come from.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HEAD_DIM = 48

END = 0
"""The token that ends a text, and that stands before its first."""

Weights = dict[str, Any]
Cache = list[tuple[jax.Array, jax.Array]]
"""Per layer the keys and the values, each [rows, context, heads, head_dim]."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model: 2.5 million weights as they stand."""

    vocab: int = 4096
    context: int = 256
    width: int = 192
    layers: int = 4
    hidden: int = 512


def init(key: jax.Array, config: Config) -> Weights:
    """Draws the initial weights, float32. The norms have no gains, so all of them are matrices."""
    width, hidden = config.width, config.hidden

    def matrix(key: jax.Array, rows: int, columns: int, scale: float = 1.0) -> jax.Array:
        return jax.random.normal(key, (rows, columns)) * scale * rows**-0.5

    def layer(key: jax.Array) -> Weights:
        qkv, out, gate_up, down = jax.random.split(key, 4)
        # Every layer adds to the same stream twice; its sum should not grow with their number.
        residual = (2 * config.layers) ** -0.5
        return {
            "qkv": matrix(qkv, width, 3 * width),
            "out": matrix(out, width, width, residual),
            "gate_up": matrix(gate_up, width, 2 * hidden),
            "down": matrix(down, hidden, width, residual),
        }

    embedding, *layers = jax.random.split(key, 1 + config.layers)
    return {
        "embedding": 0.02 * jax.random.normal(embedding, (config.vocab, width)),
        "layers": [layer(key) for key in layers],
    }


def forward(weights: Weights, tokens: jax.Array) -> jax.Array:
    """Logits of the token after each of `tokens`: int32 [rows, length] -> [rows, length, vocab]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = _transform(weights, tokens, positions)
    return hidden @ weights["embedding"].T


def prefill(weights: Weights, prompt: jax.Array, length: jax.Array) -> tuple[jax.Array, Cache]:
    """Reads one prompt.

    What lies beyond the prompt's end is computed too, but never seen: `decode_step` overwrites a
    position of the cache before any query may look at it.

    Args:
      weights: The model.
      prompt: int32 [context], padded with any token to the length of the cache.
      length: int32 [], the number of tokens in the prompt, at least 1.

    Returns:
      Logits [vocab] of the token after the prompt, and its row of the cache.
    """
    hidden, cache = _transform(weights, prompt[None], jnp.arange(len(prompt))[None])
    logits = hidden[0, length - 1] @ weights["embedding"].T
    return logits, jax.tree.map(lambda entry: entry[0], cache)


def decode_step(
    weights: Weights, cache: Cache, tokens: jax.Array, positions: jax.Array
) -> tuple[jax.Array, Cache]:
    """Appends one token to every row.

    Args:
      weights: The model.
      cache: Keys and values of the tokens before.
      tokens: int32 [rows], the new tokens.
      positions: int32 [rows], where in its text each new token stands.

    Returns:
      Logits [rows, vocab] of the token after, and the cache with the new tokens in it.
    """
    logits, cache = extend(weights, cache, tokens[:, None], positions[:, None])
    return logits[:, 0], cache


def extend(
    weights: Weights,
    cache: Cache,
    tokens: jax.Array,
    positions: jax.Array,
    tree: np.ndarray | None = None,
) -> tuple[jax.Array, Cache]:
    """Appends several tokens to every row, as `decode_step`.

    What was written at a position before is replaced, so that drafts which are rejected need not be
    removed.

    Args:
      weights: The model.
      cache: Keys and values of the tokens before.
      tokens: int32 [rows, n], the new tokens.
      positions: int32 [rows, n], where in its text each new token stands.
      tree: bool [n, n], which of the new tokens each one looks at; None: those in front of it. In a
        tree several stand at one position, so the cache holds them one behind the other.

    Returns:
      Logits [rows, n, vocab] of the token after each, and the cache with the new tokens in it.
    """
    slots = seen = None
    if tree is not None:
        slots = positions[:, :1] + jnp.arange(tokens.shape[1])[None]
        behind = jnp.arange(cache[0][0].shape[1])[None] - positions[:, :1]
        new = jnp.asarray(tree)[:, jnp.clip(behind, 0, len(tree) - 1)].swapaxes(0, 1)
        inside = (behind >= 0) & (behind < len(tree))
        seen = jnp.where(inside[:, None], new, behind[:, None] < 0)
    hidden, cache = _transform(weights, tokens, positions, cache, slots, seen)
    return hidden @ weights["embedding"].T, cache


def kept(cache: Cache, start: jax.Array, nodes: jax.Array) -> Cache:
    """Moves the tokens of a tree that were accepted behind the text.

    Args:
      cache: Keys and values, with those of the tree from `start` on.
      start: int32 [rows], where the first of its tokens is held.
      nodes: int32 [rows, n], which of its tokens come next, -1 for none.

    Returns:
      The cache with these tokens one behind the other.
    """
    rows, place = jnp.arange(len(start))[:, None], jnp.arange(nodes.shape[1])[None]
    old = start[:, None] + jnp.where(nodes < 0, place, nodes)
    return jax.tree.map(lambda x: x.at[rows, start[:, None] + place].set(x[rows, old]), cache)


def _transform(
    weights: Weights,
    tokens: jax.Array,
    positions: jax.Array,
    cache: Cache | None = None,
    slots: jax.Array | None = None,
    seen: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Tokens and positions [rows, length] -> final hidden states [rows, length, width], cache.

    `slots` [rows, length] is where the cache holds the tokens, and `seen` [rows, length, context]
    what each of them looks at: without them, its position and all up to it.
    """
    rows = jnp.arange(len(tokens))[:, None]
    x = _rms_norm(weights["embedding"][tokens])
    slots = positions if slots is None else slots
    if seen is None:
        keys = tokens.shape[1] if cache is None else cache[0][0].shape[1]
        seen = jnp.arange(keys)[None, None] <= positions[:, :, None]
    entries = []
    for i, layer in enumerate(weights["layers"]):
        qkv = (_rms_norm(x) @ layer["qkv"]).reshape(*tokens.shape, 3, -1, HEAD_DIM)
        q, k, v = jnp.unstack(qkv, axis=2)
        q, k = _rotate(q, positions), _rotate(k, positions)
        if cache is not None:
            k = cache[i][0].at[rows, slots].set(k)
            v = cache[i][1].at[rows, slots].set(v)
        entries.append((k, v))
        x += _attend(q, k, v, seen).reshape(x.shape) @ layer["out"]
        gate, up = jnp.split(_rms_norm(x) @ layer["gate_up"], 2, axis=-1)
        x += (jax.nn.silu(gate) * up) @ layer["down"]
    return _rms_norm(x), entries


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    """Each query [rows, length, heads, head_dim] looks at the keys that it has `seen`."""
    scores = jnp.einsum("rqhd,rkhd->rhqk", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    return jnp.einsum("rhqk,rkhd->rqhd", jax.nn.softmax(scores), v)


def _rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary embedding of x [rows, length, heads, head_dim]."""
    half = x.shape[-1] // 2
    frequencies = 1e4 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.tensordot(positions.astype(jnp.float32), frequencies, 0)[:, :, None]
    a, b = x[..., :half], x[..., half:]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _rms_norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def save(path: Path, weights: Weights) -> None:
    """Writes the weights as bfloat16, a type numpy cannot store: the file holds its bits."""
    leaves = [np.asarray(w.astype(jnp.bfloat16)).view(np.uint16) for w in jax.tree.leaves(weights)]
    np.savez(path, **dict(zip(_names(weights), leaves, strict=True)))


def load(path: Path, config: Config) -> Weights:
    """Reads the weights back as float32."""
    shapes = jax.eval_shape(functools.partial(init, config=config), jax.random.key(0))
    with np.load(path) as file:
        leaves = [jnp.asarray(file[n].view(jnp.bfloat16), jnp.float32) for n in _names(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _names(weights: Weights) -> list[str]:
    """Names of the leaves, such as "layers.0.qkv"."""
    paths, _ = jax.tree.flatten_with_path(weights)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
