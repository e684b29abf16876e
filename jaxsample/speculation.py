"""Speculative decoding by equality: drafts are accepted while they equal the draws of `sample`.

A token is a function of the key and the kept logits of its position. So the text equals that of
plain decoding for any drafts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsample._core import _checks, _lookup
from jaxsample._core._lookup import take
from jaxsample._core._public import public
from jaxsample._core._pytrees import pytree
from jaxsample._core._shards import AxisName
from jaxsample._core._source import Implementation, opened
from jaxsample.orders import DEFAULT_ORDER, Order
from jaxsample.outputs import OPTION_CONVERTERS, Options, SampleOutput, sample_rows
from jaxsample.params import SamplingParams, converted, of_positions, with_positions
from jaxsample.sampler import checked_state, token_ids_of_rows
from jaxsample.state import SamplerState, after_drafts


@pytree
class AcceptedDrafts(NamedTuple):
    """The output of `accept_drafts`.

    Attributes:
      tokens: int32 `[..., depth + 1]`, the accepted drafts and the token after them; then -1.
      num_accepted: int32 `[...]`, the number of accepted drafts.
      nodes: int32 `[..., depth + 1]`, the index into `sampled` of each token: 0, then 1 + the index
        of each accepted draft; then -1.
    """

    tokens: Array
    num_accepted: Array
    nodes: Array


@pytree
class SpeculativeOutput(NamedTuple):
    """The output of `speculative_sample` and `rejection_sample`.

    Attributes:
      tokens: int32 `[..., depth + 1]`, the accepted drafts and the token after them, which is -1
        on a bad row; then -1.
      num_accepted: int32 `[...]`, the number of accepted drafts.
      nodes: int32 `[..., depth + 1]`, the position of the logits of each token: 0, then 1 + the
        index of each accepted draft; then -1. The model's cache keeps these positions.
      logprobs: float32 `[..., depth + 1]`, of each token, as in `SampleOutput`; then NaN.
      num_kept: int32 `[..., depth + 1]`, as in `SampleOutput`; then 0.
      ranks: int32 `[..., depth + 1]`, as in `SampleOutput`; then -1.
      top_logprobs: `(logprobs, tokens)`, `[..., depth + 1, num_logprobs]`, as in `SampleOutput`;
        then NaN and -1.
      token_id_logprobs: float32 `[..., depth + 1, n]`, as in `SampleOutput`; then NaN.
      kept_mask: int32 `[..., depth + 1, ceil(vocab / 32)]`, as in `SampleOutput`; then 0.
      kept_ids: int32 `[..., depth + 1, num_kept_ids]`, as in `SampleOutput`; then -1.
      log_kept_mass: float32 `[..., depth + 1]`, as in `SampleOutput`; then NaN.
      entropy: float32 `[..., depth + 1]`, as in `SampleOutput`; then NaN.
      logits: `[..., depth + 1, vocab]`, as in `SampleOutput`; then NaN.
    """

    tokens: Array
    num_accepted: Array
    nodes: Array
    logprobs: Any
    num_kept: Array
    ranks: Any = None
    top_logprobs: Any = None
    token_id_logprobs: Any = None
    kept_mask: Array | None = None
    kept_ids: Array | None = None
    log_kept_mass: Array | None = None
    entropy: Array | None = None
    logits: Array | None = None


def _drafts(name: str, value: ArrayLike, sampled: Array) -> Array:
    *lead, rows = sampled.shape
    drafts = _checks.text(name, value)
    if drafts.shape != (*lead, rows - 1):
        raise ValueError(
            f"{name} must have shape {(*lead, rows - 1)}, one draft less than rows, got "
            f"{drafts.shape}"
        )
    return drafts


def _parents(name: str, value: Any, sampled: Array) -> Array | None:
    if value is None:
        return None
    *lead, rows = sampled.shape
    parents = _checks.text(name, value)
    if parents.shape[-1] != rows - 1 or parents.ndim > sampled.ndim:
        raise ValueError(
            f"{name} must be None or have shape {(*lead, rows - 1)}, one a draft, got "
            f"{parents.shape}"
        )
    return jnp.broadcast_to(parents, (*lead, rows - 1))


def _sampled(name: str, value: ArrayLike) -> Array:
    tokens = _checks.text(name, value)
    if not tokens.shape[-1]:
        raise ValueError(f"{name} must have one row or more, got shape {tokens.shape}")
    return tokens


def _depth(name: str, value: int | None, sampled: Array) -> int:
    most = sampled.shape[-1] - 1
    return most if value is None else _checks.static_integer(name, value, 0, most)


@public(
    first="sampled",
    convert_first=_sampled,
    draft_tokens=_drafts,
    parents=_parents,
    depth=_depth,
)
def accept_drafts(
    sampled: ArrayLike,
    draft_tokens: ArrayLike,
    parents: ArrayLike | None = None,
    *,
    depth: int | None = None,
) -> AcceptedDrafts:
    """Accepts drafts, starting at the root, while they equal the sampled tokens.

    For a chain: while `draft_tokens[i] == sampled[i]`. The function takes only token ids, so
    servers with ragged logits can sample all rows in one batch and regroup the tokens.

    Args:
      sampled: integers `[..., n + 1]`, the tokens sampled after the text and after each draft; a
        negative one, of a bad row, equals no draft.
      draft_tokens: integers `[..., n]`; negative ones are padding.
      parents: None for a chain. For a tree, integers `[..., n]` or `[n]`: the index of the draft
        before each draft, lower than its own, or -1 for the text. Of equal drafts with the same
        parent, the first is used.
      depth: static, in [0, n], the largest number of accepted drafts; None: n.

    Returns:
      `AcceptedDrafts`: the tokens, of which `num_accepted + 1` are new, and their indices.

    References:
      Leviathan, Kalman and Matias, "Fast inference from transformers via speculative decoding",
      arXiv 2211.17192, with tokens that are functions of their keys.

    >>> print(accept_drafts([5, 2, 9, 4], [5, 2, 7])[:2])
    (Array([ 5,  2,  9, -1], dtype=int32), Array(2, dtype=int32))
    >>> tokens, _, nodes = accept_drafts([5, 2, 9, 4], [3, 5, 9], [-1, -1, 1], depth=2)
    >>> print(tokens, nodes)
    [5 9 4] [0 2 3]
    """
    tree = None if parents is None else jnp.asarray(parents)
    return _accepted(jnp.asarray(sampled), jnp.asarray(draft_tokens), tree, depth or 0)


def _accepted(sampled: Array, drafts: Array, parents: Array | None, depth: int) -> AcceptedDrafts:
    number = drafts.shape[-1]
    before = _lookup.positions(drafts) - 1 if parents is None else parents
    row = jnp.zeros_like(sampled[..., 0])
    rows = [row]
    for _ in range(depth):
        token = _lookup.at(sampled, jnp.maximum(row, 0))
        equal = (drafts == token[..., None]) & (drafts >= 0)
        draft = _lookup.first_true(equal & (before == row[..., None] - 1) & (row >= 0)[..., None])
        row = jnp.where(draft < number, draft + 1, -1)
        rows.append(row)
    nodes = jnp.stack(rows, axis=-1)
    tokens = jnp.where(nodes < 0, -1, take(sampled, jnp.maximum(nodes, 0)))
    return AcceptedDrafts(tokens, jnp.sum(nodes > 0, axis=-1, dtype=jnp.int32), nodes)


def paths(drafts: Array, parents: Array | None, depth: int) -> tuple[Array, Array]:
    """Returns the drafts before each position, and their number.

    Args:
      drafts: int32 `[..., n]`.
      parents: int32 `[..., n]`, or None for a chain.
      depth: the largest number of drafts.

    Returns:
      int32 `[..., n + 1, depth]`, in the order of the text, padded with -1, and `[..., n + 1]`.
    """
    *lead, number = drafts.shape
    if parents is None:
        levels = _lookup.positions(jnp.zeros((*lead, number + 1)))
        texts = jnp.broadcast_to(drafts[..., None, :depth], (*lead, number + 1, depth))
        return jnp.where(_lookup.positions(texts) < levels[..., None], texts, -1), levels
    if not depth:
        return jnp.full((*lead, number + 1, 0), -1), jnp.zeros((*lead, number + 1), jnp.int32)
    node, above = _lookup.positions(drafts), []
    for _ in range(depth):
        above.append(node)
        node = jnp.where(node < 0, -1, take(parents, jnp.maximum(node, 0)))
    from_below = jnp.stack(above, axis=-1)
    levels = jnp.sum(from_below >= 0, axis=-1, dtype=jnp.int32)
    index = levels[..., None] - 1 - _lookup.positions(from_below)
    in_order = take(from_below, jnp.maximum(index, 0)).reshape(*lead, number * depth)
    texts = take(drafts, jnp.maximum(in_order, 0)).reshape(index.shape)
    texts = jnp.where(index >= 0, texts, -1)
    root = [(0, 0)] * len(lead) + [(1, 0)]
    return jnp.pad(texts, [*root, (0, 0)], constant_values=-1), jnp.pad(levels, root)


def positioned_logits(name: str, value: ArrayLike) -> Array:
    """Returns logits `[..., drafts + 1, vocab]`."""
    logits = _checks.logits(name, value)
    if logits.ndim < 2 or not logits.shape[-2]:
        raise ValueError(f"{name} must have shape [..., drafts + 1, vocab], got {logits.shape}")
    return logits


def positioned_drafts(name: str, value: ArrayLike, logits: Array) -> Array:
    """Returns the drafts of logits `[..., drafts + 1, vocab]`."""
    return _drafts(name, value, logits[..., 0])


def positioned_params(name: str, value: Any, logits: Array) -> SamplingParams:
    """Returns the params of each position of logits `[..., drafts + 1, vocab]`."""
    return converted(name, of_positions(value, logits.ndim - 2), logits)


def _token_ids(name: str, value: Any, logits: Array) -> Array | None:
    """Returns the token ids of each position, `[..., drafts + 1, n]`, or None."""
    if value is not None:
        value = with_positions(name, value, 1, logits.ndim - 2)
    return token_ids_of_rows(name, value, logits)


def positioned_state(name: str, value: Any, logits: Array) -> SamplerState | None:
    """Returns the state before the drafts of logits `[..., drafts + 1, vocab]`."""
    return checked_state(name, value, (*logits.shape[:-2], logits.shape[-1]))


def _keys(name: str, value: Any, logits: Array) -> Array:
    """Returns a key of each position, `[..., depth + 1]`."""
    keys = _checks.key_array(name, value)
    shape = keys.shape
    *lead, rows = logits.shape[:-1]
    if shape[:-1] != tuple(lead) or not 1 <= (shape or (0,))[-1] <= rows:
        raise ValueError(
            f"{name} must be keys of shape {(*lead, 'n')}, one a position, with n in [1, {rows}], "
            f"got shape {shape}"
        )
    return _checks.keys(name, keys, jnp.empty((*shape, 1)))


@public(
    convert_first=positioned_logits,
    keys=_keys,
    draft_tokens=positioned_drafts,
    params=positioned_params,
    state=positioned_state,
    parents=lambda name, value, logits: _parents(name, value, logits[..., 0]),
    logprob_token_ids=_token_ids,
    static=("order", *OPTION_CONVERTERS, "axis_name", "implementation"),
    **OPTION_CONVERTERS,
)
def speculative_sample(
    keys: ArrayLike,
    logits: ArrayLike,
    draft_tokens: ArrayLike,
    params: SamplingParams,
    state: SamplerState | None = None,
    *,
    parents: ArrayLike | None = None,
    order: Order = DEFAULT_ORDER,
    num_logprobs: int = 0,
    logprobs_mode: str | tuple[str, ...] = "processed_logprobs",
    logprob_token_ids: ArrayLike | None = None,
    return_kept: bool = False,
    num_kept_ids: int = 0,
    return_kept_mass: bool = False,
    return_entropy: bool = False,
    return_logits: bool = False,
    axis_name: AxisName = None,
    implementation: Implementation = None,
) -> SpeculativeOutput:
    """Draws a token after the text and after each draft, and accepts drafts that equal the draws.

    Each position is drawn as by `sample`, with its own key and with the drafts before it as part of
    the text, so rules that depend on the text take them into account. A draft is accepted if it
    equals the token drawn at its position. So tokens, log-probabilities, counts and masks are equal
    bit for bit to calling `sample` and `update_state` one token at a time with the same logits, for
    any drafts.

    Drafts that were drawn with the same keys, `sample(keys[..., i], draft_logits, ...)`, are
    accepted most often: nearly as often as the two distributions allow.

    Args:
      keys: an array of keys `[..., depth + 1]`, one a position, typed or raw, as given to `sample`:
        `fold_in(request_key, position)`, from `request_keys`. For a tree, one for each depth. At
        most `depth` drafts are accepted, and `depth` is at most n.
      logits: `[..., n + 1, vocab]`, float32, bfloat16 or float16, after the text and after each
        draft. Logits of positions that are not reached may be anything.
      draft_tokens: integers `[..., n]`; negative ones are padding.
      params: of the rows `[...]`, as in `sample`, or of each position: a field may have the axes
        `[..., n + 1]` instead of `[...]`, such as the bitmask of a grammar. Rules get their
        `custom` params unchanged, with logits `[..., n + 1, vocab]`.
      state: the text of each row before the drafts, for rules that depend on it. If the order has a
        user-defined `Rule`, counts are written for all positions.
      parents: None for a chain of drafts. For a tree, integers `[..., n]` or `[n]`: the index of
        the draft before each draft, lower than its own, or -1 for the text.
      order: static, as in `sample`.
      num_logprobs: static, in [0, vocab]: also return the likeliest tokens and the rank of each
        drawn token.
      logprobs_mode: static, "processed_logprobs", "raw_logprobs", "scaled_logprobs" or a tuple of
        them, as in `sample`.
      logprob_token_ids: integers `[..., n]` of the rows, or `[..., positions, n]`: also return the
        log-probabilities of these tokens. -1 is padding.
      return_kept: static, also return the kept tokens of each position as a packed mask.
      num_kept_ids: static, in [0, vocab]: also return the first kept tokens as a list of ids.
      return_kept_mass: static, also return the log of the probability of the kept tokens before
        truncation.
      return_entropy: static, also return the entropy of the distribution of each draw.
      return_logits: static, also return the logits after the rules.

    Returns:
      `SpeculativeOutput`, of which `num_accepted + 1` tokens are new. If a bad row (as in `sample`)
      is reached, the token after the accepted drafts is -1; a bad row that is not reached has no
      effect.

    Raises:
      TypeError, ValueError: a wrong dtype, shape or order, or a field without the field or the
        state that it requires; the message names the argument.

    References:
      Leviathan, Kalman and Matias, "Fast inference from transformers via speculative decoding",
      arXiv 2211.17192; Daliri, Musco and Suresh, "Coupling without communication and drafter-
      invariant speculative decoding", arXiv 2408.07978.

    >>> import jax, jax.numpy as jnp
    >>> from jaxsample import request_keys
    >>> keys = request_keys([7] * 3, [0, 1, 2])
    >>> logits = jnp.log(jnp.array([[0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]]))
    >>> out = speculative_sample(keys, logits, [1, 2], SamplingParams(temperature=0))
    >>> print(out.tokens, out.num_accepted)
    [ 1 0 -1] 1
    """
    x = opened(logits, axis_name, implementation)
    asked = (return_kept, num_kept_ids, return_kept_mass, return_entropy, return_logits)
    options = Options(order, num_logprobs, logprobs_mode, *asked)
    token_ids: Any = logprob_token_ids
    drafts, tree = jnp.asarray(draft_tokens), None if parents is None else jnp.asarray(parents)
    of_depths = jnp.asarray(keys)
    depth = of_depths.shape[-1] - 1
    texts, levels = paths(drafts, tree, depth)
    out = sample_rows(
        _of_levels(of_depths, levels),
        x,
        params,
        None if state is None else after_drafts(state, texts, is_chain=tree is None),
        options,
        token_ids,
    )
    accepted = _accepted(out.tokens, drafts, tree, depth)
    return SpeculativeOutput(*accepted, **_on_path(out, accepted.nodes))


def _of_levels(keys: Array, levels: Array) -> Array:
    """Returns the key of each position, by the number of drafts before it."""
    words = jax.random.key_data(keys)
    index = jnp.minimum(levels, keys.shape[-1] - 1)[..., None]
    return jax.random.wrap_key_data(jnp.take_along_axis(words, index, axis=-2, mode="clip"))


def _on_path(out: SampleOutput, nodes: Array) -> dict[str, Any]:
    """Returns the fields of `SpeculativeOutput` at the positions `nodes`; -1 is padding."""

    def at_nodes(of_rows: Any, nothing: int) -> Any:
        def of_leaf(leaf: Array) -> Array:
            index = _checks.to_elements(nodes, leaf)
            found = jnp.take_along_axis(leaf, jnp.maximum(index, 0), nodes.ndim - 1, mode="clip")
            missing = np.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else nothing
            return jnp.where(index >= 0, found, jnp.asarray(missing, leaf.dtype))

        return jax.tree.map(of_leaf, of_rows)

    padding = {"num_kept": 0, "kept_mask": 0}
    return {
        name: at_nodes(getattr(out, name), padding.get(name, -1))
        for name in out._fields
        if name != "tokens"
    }
