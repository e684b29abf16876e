"""A small decoder-only transformer as pure functions over a pytree of weights.

The model has RMSNorm, rotary positions, SwiGLU and tied embeddings. Training (`forward`), reading a
prompt (`prefill`) and appending one token (`decode_step`) or several (`extend`) share the code of
`_transform`. They differ only in the source of the keys and values that a query attends to.
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
"""The token before the first token of a text and after its last."""

Weights = dict[str, Any]
Cache = list[tuple[jax.Array, jax.Array]]
"""The keys and values of each layer, [rows, context, heads, head_dim]."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model; the defaults give 2.5 million weights."""

    vocab: int = 4096
    context: int = 256
    width: int = 192
    layers: int = 4
    hidden: int = 512


def init(key: jax.Array, config: Config) -> Weights:
    """Draws the initial float32 weights. All are matrices, since the norms have no gains."""
    width, hidden = config.width, config.hidden

    def matrix(key: jax.Array, rows: int, columns: int, scale: float = 1.0) -> jax.Array:
        return jax.random.normal(key, (rows, columns)) * scale * rows**-0.5

    def layer(key: jax.Array) -> Weights:
        qkv, out, gate_up, down = jax.random.split(key, 4)
        # Each layer adds to the residual stream twice; the sum should not grow with their number.
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
    """Returns logits [rows, length, vocab] of the token after each of `tokens` [rows, length]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = _transform(weights, tokens, positions)
    return hidden @ weights["embedding"].T


def prefill(weights: Weights, prompt: jax.Array, length: jax.Array) -> tuple[jax.Array, Cache]:
    """Reads one prompt.

    Positions after the end of the prompt are also computed but never used: `decode_step`
    overwrites a position of the cache before any query attends to it.

    Args:
      weights: The model.
      prompt: int32 [context], padded with any token to the length of the cache.
      length: int32 [], the number of tokens in the prompt, at least 1.

    Returns:
      Logits [vocab] of the token after the prompt, and one row of the cache.
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
      cache: Keys and values of the previous tokens.
      tokens: int32 [rows], the new tokens.
      positions: int32 [rows], the position of each new token in its text.

    Returns:
      Logits [rows, vocab] of the next token, and the cache with the new tokens.
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
    """Appends several tokens to every row, like `decode_step`.

    Existing entries at these positions are replaced, so rejected drafts need not be removed.

    Args:
      weights: The model.
      cache: Keys and values of the previous tokens.
      tokens: int32 [rows, n], the new tokens.
      positions: int32 [rows, n], the position of each new token in its text.
      tree: bool [n, n], the new tokens that each new token attends to; None: itself and those
        before it. Several tokens of a tree may have the same position, so the cache stores them in
        order.

    Returns:
      Logits [rows, n, vocab] of the token after each, and the cache with the new tokens.
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
    """Moves the accepted tokens of a tree directly after the text.

    Args:
      cache: Keys and values, with those of the tree from `start` on.
      start: int32 [rows], the index of the tree's first token in the cache.
      nodes: int32 [rows, n], the accepted tokens of the tree in order, -1 for none.

    Returns:
      The cache with these tokens in consecutive places.
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
    """Returns final hidden states [rows, length, width] of tokens [rows, length], and the cache.

    `slots` [rows, length] are the indices of the tokens in the cache, by default their positions.
    `seen` [rows, length, context] are the entries that each token attends to, by default those up
    to its position.
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
    """Returns attention of queries [rows, length, heads, head_dim] over the `seen` keys."""
    scores = jnp.einsum("rqhd,rkhd->rhqk", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    return jnp.einsum("rhqk,rkhd->rqhd", jax.nn.softmax(scores), v)


def _rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the rotary embedding of x [rows, length, heads, head_dim]."""
    half = x.shape[-1] // 2
    frequencies = 1e4 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.tensordot(positions.astype(jnp.float32), frequencies, 0)[:, :, None]
    a, b = x[..., :half], x[..., half:]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _rms_norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def save(path: Path, weights: Weights) -> None:
    """Writes the weights as the bits of bfloat16, a type that NumPy cannot store."""
    leaves = [np.asarray(w.astype(jnp.bfloat16)).view(np.uint16) for w in jax.tree.leaves(weights)]
    np.savez(path, **dict(zip(_names(weights), leaves, strict=True)))


def load(path: Path, config: Config) -> Weights:
    """Reads the weights as float32."""
    shapes = jax.eval_shape(functools.partial(init, config=config), jax.random.key(0))
    with np.load(path) as file:
        leaves = [jnp.asarray(file[n].view(jnp.bfloat16), jnp.float32) for n in _names(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _names(weights: Weights) -> list[str]:
    """Returns the names of the leaves, such as "layers.0.qkv"."""
    paths, _ = jax.tree.flatten_with_path(weights)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
