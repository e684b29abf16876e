"""Beam search as pure steps over arrays of fixed shapes; the caller holds the model's cache."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsample._core import _checks, _elementary, _lookup, _ranking, _scan, _selection
from jaxsample._core._elementary import LOG2_E, product
from jaxsample._core._parameters import FINITE, IDS, NOT_NEGATIVE
from jaxsample._core._public import Converter, public
from jaxsample._core._pytrees import pytree
from jaxsample._core._shards import AxisName
from jaxsample._core._source import opened
from jaxsample.logprobs import TopLogprobs, top_logprobs

EarlyStopping = bool | Literal["never"]
"""When a search with enough finished hypotheses ends; see `beam_step`."""


@pytree
class Hypotheses(NamedTuple):
    """Finished texts of a search.

    Attributes:
      tokens: int32 `[..., n, max_length]`, with the stop token; then -1.
      lengths: int32 `[..., n]`, with the stop token.
      scores: float32 `[..., n]`, the sum of the log-probabilities over
        `lengths ** length_penalty`.
    """

    tokens: Array
    lengths: Array
    scores: Array


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamState:
    """The beams of a search and its best finished hypotheses, each group in order of score.

    Attributes:
      tokens: int32 `[..., beams, max_length]`, the generated tokens, valid up to `lengths`.
      scores: float32 `[..., beams]`, the sum of the log-probabilities of these tokens; -inf if
        there is no such beam.
      lengths: int32 `[...]`, the number of tokens of every beam.
      finished: `Hypotheses` `[..., beams]`, the best finished ones, padded with scores of -inf.
      num_groups: static, the number of groups of beams.
    """

    tokens: Array
    scores: Array
    lengths: Array
    finished: Hypotheses
    num_groups: int = dataclasses.field(metadata={"static": True})

    @property
    def done(self) -> Array:
        """Whether a search has ended, bool `[...]`: it has no beams left."""
        return jnp.all(self.scores == -jnp.inf, axis=-1)


def init_beams(
    num_beams: int, max_length: int, batch_shape: tuple[int, ...] = (), *, num_groups: int = 1
) -> BeamState:
    """Returns the state before the first token: one empty beam for each group.

    Args:
      num_beams: static, at least 1, the number of beams of all groups.
      max_length: static, at least 1, the largest number of generated tokens, without the prompt,
        which is not part of the state.
      batch_shape: static, `logits.shape[:-2]` in `beam_step`.
      num_groups: static, a divisor of `num_beams`: for diverse beam search.

    Returns:
      `BeamState`. All beams have the same prompt, so their logits in the first step may be copies.

    Raises:
      TypeError, ValueError: a value outside its range; the message names the argument.

    >>> state = init_beams(4, 8, (2,))
    >>> print(state.scores)
    [[  0. -inf -inf -inf] [  0. -inf -inf -inf]]
    """
    num_beams = _checks.static_integer("num_beams", num_beams, 1, 2**16)
    max_length = _checks.static_integer("max_length", max_length, 1, 2**31 - 1)
    num_groups = _checks.static_integer("num_groups", num_groups, 1, num_beams)
    if num_beams % num_groups:
        raise ValueError(f"num_groups must divide num_beams = {num_beams}, got {num_groups}")
    shape = (*batch_shape, num_beams)
    first = np.arange(num_beams) % (num_beams // num_groups) == 0
    scores = jnp.asarray(np.where(first, np.float32(0), -np.float32(np.inf)))
    return BeamState(
        tokens=jnp.full((*shape, max_length), -1, jnp.int32),
        scores=jnp.broadcast_to(scores, shape),
        lengths=jnp.zeros(batch_shape, jnp.int32),
        finished=Hypotheses(
            tokens=jnp.full((*shape, max_length), -1, jnp.int32),
            lengths=jnp.zeros(shape, jnp.int32),
            scores=jnp.full(shape, -jnp.inf, jnp.float32),
        ),
        num_groups=num_groups,
    )


def _state(name: str, value: Any) -> BeamState:
    _checks.instance(name, value, BeamState)
    return value


def _per_search(convert: Converter) -> Converter:
    """Returns the converter of a parameter of each search, `[...]`, or None."""
    return lambda name, value, state: value if value is None else convert(name, value, state.scores)


def logits_of_beams(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Returns logits `[..., beams, vocab]` of beams of a shape."""
    logits = _checks.logits(name, value)
    if logits.shape[:-1] != shape:
        raise ValueError(
            f"{name} must have shape [..., beams, vocab] with the leading axes {shape} of the "
            f"state, got {logits.shape}"
        )
    return logits


def _early_stopping(name: str, value: Any, _: BeamState) -> EarlyStopping:
    if not isinstance(value, bool) and value != "never":
        raise ValueError(f"{name} must be True, False or 'never', got {value!r}")
    return value


@public(
    first="state",
    convert_first=_state,
    static=("early_stopping", "normalize", "axis_name"),
    logits=lambda name, value, state: logits_of_beams(name, value, state.scores.shape),
    stop_token_ids=_per_search(IDS),
    length_penalty=_per_search(FINITE),
    diversity_penalty=_per_search(NOT_NEGATIVE),
    early_stopping=_early_stopping,
)
def beam_step(
    state: BeamState,
    logits: ArrayLike,
    *,
    stop_token_ids: ArrayLike | None = None,
    length_penalty: ArrayLike = 1.0,
    diversity_penalty: ArrayLike = 0.0,
    early_stopping: EarlyStopping = False,
    normalize: bool = True,
    axis_name: AxisName = None,
) -> tuple[BeamState, Array, Array]:
    """Extends each beam by a token and keeps the best continuations of all beams as the next beams.

    The score of a continuation is the score of its beam plus the log-probability of its token. The
    continuations of a search are ordered by score, ties by beam and then by the ranking of the
    beam's logits.

    - Those among the first `beams` that end, by a stop token or at `max_length`, are finished. The
      best `beams` finished hypotheses are stored, by `sum of log-probs / length ** length_penalty`,
      where the length includes the stop token.
    - The best `beams` of those that do not end are the next beams.

    A search ends when it has no beams left, or when `beams` hypotheses are finished and

    - `early_stopping=True`: no other condition;
    - `early_stopping=False`: the best beam, finished at its current length, would not score above
      the worst of them;
    - `early_stopping="never"`: the best beam, finished at `max_length` if the length penalty is
      positive and else at its current length, would not score above the worst of them. So no
      continuation of that beam is better.

    With groups (diverse beam search), each group of `beams / num_groups` beams is a search of its
    own. Groups are extended one after the other: a continuation loses `diversity_penalty` for every
    beam of an earlier group that was continued by the same token in this step. The penalty remains
    in its score.

    No array of the size of the logits is written, and only a few candidates of each beam are
    sorted.

    Args:
      state: from `init_beams` or the last call.
      logits: `[..., beams, vocab]`, float32, bfloat16 or float16; -inf is masked. They follow the
        prompt in the first step, then the returned tokens. Logits of missing beams may be anything.
      stop_token_ids: integers `[n]` or `[..., n]`, one list a search; negative ids are padding.
        None: hypotheses end at `max_length`.
      length_penalty: finite, a scalar or `[...]`; 0 ranks hypotheses by the sum of their log-probs,
        1 by the mean. Values above 0 favour longer hypotheses.
      diversity_penalty: finite and at least 0, a scalar or `[...]`.
      early_stopping: static, True, False or "never".
      normalize: static; False: the rows are log-probabilities and are not normalized again. With
        `process_logits(jax.nn.log_softmax(logits), ...)`, rules apply as in Hugging Face's
        `generate`, whose processors take log-probs and whose results are not normalized again.

    Returns:
      `(state, tokens, parents)`: the next state; int32 `[..., beams]`, the token of each beam, -1
      for a missing beam; int32 `[..., beams]`, the beam that it continues, for `take_beams`; a
      missing beam continues itself. A beam whose row is bad (a NaN, +inf or no finite logit) ends,
      and so do all beams of a search with a parameter outside its range. Other beams are not
      affected.

    References:
      Hugging Face's `generate` with `num_beams`, version 5, which returns the same results.
      Vijayakumar et al., "Diverse beam search: decoding diverse solutions from neural sequence
      models", arXiv 1610.02424; the diversity penalty stays in the score as in fairseq.

    >>> import jax.numpy as jnp
    >>> first, after_0, after_1 = jnp.log(jnp.array([[0.6, 0.4], [0.5, 0.5], [0.1, 0.9]]))
    >>> state = init_beams(2, 2)
    >>> state, tokens, parents = beam_step(state, jnp.stack([first, first]))
    >>> print(tokens, parents)
    [0 1] [0 0]
    >>> state, *_ = beam_step(state, jnp.stack([after_0, after_1]), length_penalty=0.0)
    >>> out = finalize_beams(state)
    >>> print(state.done, out.tokens, jnp.exp(out.scores))  # .4 * .9, where .6 * .5 is greedy
    True [[1 1]] [0.36]
    """
    axis, num_beams = state.lengths.ndim, state.scores.shape[-1]
    penalty, diversity = (
        _checks.to_rows(jnp.asarray(x), state.scores) for x in (length_penalty, diversity_penalty)
    )
    bad = ~(FINITE.inside(penalty) & NOT_NEGATIVE.inside(diversity))
    penalty, diversity = (jnp.where(bad, 0, x) for x in (penalty, diversity))
    rule, size = _Rule(penalty, early_stopping), num_beams // state.num_groups
    none = jnp.zeros((*bad.shape, 0), jnp.int32)
    stops = none if stop_token_ids is None else jnp.asarray(stop_token_ids)
    # Each stop token may rank before the continuations of a beam that do not end.
    number = num_beams + stops.shape[-1]
    found = _first_tokens(lax.stop_gradient(jnp.asarray(logits)), number, normalize, axis_name)
    children = _children(state, found, stops, bad)

    whole = _Search(state.tokens, state.scores, state.finished)
    groups, chosen = [], none
    for start in range(0, num_beams, size):
        search, own = _part((whole, children), start, size, axis)
        own = jax.tree.map(lambda x: x.reshape(*x.shape[:axis], -1), own)
        times = jnp.sum(own.tokens[..., None] == chosen[..., None, :], axis=-1)
        less = product(diversity[..., None], times.astype(jnp.float32))
        own = own._replace(scores=own.scores - less)
        search, tokens, parents = _continued(search, own, state.lengths, rule)
        groups.append((search, parents + start))
        chosen = jnp.concatenate([chosen, tokens], axis=-1)
    search, parents = jax.tree.map(lambda *x: jnp.concatenate(x, axis=axis), *groups)
    lengths = jnp.where(state.done, state.lengths, state.lengths + 1)
    return dataclasses.replace(state, **search._asdict(), lengths=lengths), chosen, parents


class _Search(NamedTuple):
    """The fields of `BeamState` for one group of beams."""

    tokens: Array
    scores: Array
    finished: Hypotheses


class _Rule(NamedTuple):
    """The parameters that compare hypotheses and end a search."""

    length_penalty: Array
    early_stopping: EarlyStopping


class _Children(NamedTuple):
    """Continuations of beams by a token, in the order of the beams and of their rankings.

    Attributes:
      scores: float32, the sum of the scores of beam and token; -inf for padding.
      tokens: int32.
      parents: int32, the beam in its group.
      ends: bool, whether the hypothesis ends with the token.
    """

    scores: Array
    tokens: Array
    parents: Array
    ends: Array


def _first_tokens(logits: Array, number: int, normalize: bool, axis_name: AxisName) -> TopLogprobs:
    """Returns the first `min(number, vocab)` tokens of each row and their log-probabilities."""
    x = opened(logits, axis_name, "xla")
    number = min(number, x.vocab)
    if normalize:
        return top_logprobs(logits, num=number, axis_name=axis_name)
    rows = _scan.scan(x)
    first = _ranking.candidates(rows, number)
    logprobs = jnp.where(rows.bad[..., None], jnp.nan, first.logit)
    return TopLogprobs(logprobs, jnp.where(logprobs > -jnp.inf, first.token, -1))


def _children(state: BeamState, found: TopLogprobs, stops: Array, bad: Array) -> _Children:
    """Returns the first continuations of each beam, `[..., beams, n]`; none for bad searches."""
    before = jnp.where(bad[..., None], -jnp.inf, state.scores)
    scores = before[..., None] + found.logprobs
    ends = jnp.any(found.tokens[..., None] == stops[..., None, None, :], axis=-1)
    full = state.lengths + 1 >= state.tokens.shape[-1]
    size = state.scores.shape[-1] // state.num_groups
    return _Children(
        scores=jnp.where(jnp.isnan(scores), -jnp.inf, scores),
        tokens=found.tokens,
        parents=lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 2) % size,
        ends=ends | full[..., None, None],
    )


def _continued(
    search: _Search, children: _Children, lengths: Array, rule: _Rule
) -> tuple[_Search, Array, Array]:
    """Returns the search after its next tokens, these tokens, and the beams that they continue."""
    size, max_length = search.tokens.shape[-2:]
    finished = _finished(search, _first(children, size), lengths + 1, rule)
    going = jnp.where(children.ends, -jnp.inf, children.scores)
    best = _first(children._replace(scores=going), size)

    best_length = lengths + 1
    if rule.early_stopping == "never":
        best_length = jnp.where(rule.length_penalty > 0, max_length, best_length)
    bound, least = _penalized(best.scores[..., :1], best_length, rule), finished.scores[..., -1:]
    over = (least > -jnp.inf) & ((rule.early_stopping is True) | ~(bound > least))

    alive = (best.scores > -jnp.inf) & ~over
    tokens = jnp.where(alive, best.tokens, -1)
    parents = jnp.where(alive, best.parents, _lookup.positions(best.parents))
    texts = extended(search.tokens, parents, tokens, lengths[..., None])
    return _Search(texts, jnp.where(alive, best.scores, -jnp.inf), finished), tokens, parents


def _finished(search: _Search, first: _Children, lengths: Array, rule: _Rule) -> Hypotheses:
    """Returns the best of the finished hypotheses and the first continuations that end."""
    scores = jnp.where(first.ends, _penalized(first.scores, lengths, rule), -jnp.inf)
    texts = extended(search.tokens, first.parents, first.tokens, lengths[..., None] - 1)
    new = Hypotheses(texts, jnp.broadcast_to(lengths[..., None], scores.shape), scores)
    axis = lengths.ndim
    both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=axis), search.finished, new)
    return _best(both, scores.shape[-1])


def _penalized(scores: Array, lengths: Array, rule: _Rule) -> Array:
    """Returns `scores [..., n] / lengths ** length_penalty`, finite where the scores are."""
    power = product(rule.length_penalty, _elementary.log(lengths.astype(jnp.float32)) * LOG2_E)
    penalized = scores * _elementary.exp2(-power)[..., None]
    penalized = jnp.maximum(penalized, np.finfo(np.float32).min)
    return jnp.where(scores > -jnp.inf, penalized, -jnp.inf)


def extended(texts: Array, parents: Array, tokens: Array, lengths: Array) -> Array:
    """Returns the texts `[..., beams, max_length]` of parents, each with a token appended.

    Args:
      texts: of all beams.
      parents: int32 `[..., beams]`.
      tokens: int32 `[..., beams]`; a negative one is not written.
      lengths: int32, of the parents, broadcastable to `[..., beams]`.
    """
    texts = taken(texts, parents)
    new = (_lookup.positions(texts) == lengths[..., None]) & (tokens >= 0)[..., None]
    return jnp.where(new, tokens[..., None], texts)


def _first(children: _Children, number: int) -> _Children:
    """Returns the first children in order of score, ties by position."""
    places = _order(children.scores, number)
    return _Children(*(_lookup.take(x, places) for x in children))


def _best(hypotheses: Hypotheses, number: int) -> Hypotheses:
    """Returns the best hypotheses in order of score; of equal ones, those found earlier."""
    places = _order(hypotheses.scores, number)
    return jax.tree.map(lambda x: taken(x, places), hypotheses)


def _order(scores: Array, number: int) -> Array:
    """Returns the positions of the largest scores `[..., n]` in order, ties by position."""
    return _selection.top_k(scores, number, _ranking.unsigned_zero)[1]


def _part(tree: Any, start: int, size: int, axis: int) -> Any:
    """Returns some consecutive elements of each array along an axis."""
    return jax.tree.map(lambda x: lax.slice_in_dim(x, start, start + size, axis=axis), tree)


def taken(x: Array, index: Array) -> Array:
    """Returns elements `[..., m, *]` of `x [..., n, *]` at indices `[..., m]`."""

    def take(x: Array, index: Array) -> Array:
        return x.at[index].get(mode="clip")

    for _ in index.shape[:-1]:
        take = jax.vmap(take)
    return take(x, index)


@public(
    first="state",
    convert_first=_state,
    num_return=lambda name, value, state: _checks.static_integer(
        name, value, 1, state.scores.shape[-1]
    ),
)
def finalize_beams(state: BeamState, *, num_return: int = 1) -> Hypotheses:
    """Returns the best finished hypotheses of each search, over all groups.

    Args:
      state: from the last `beam_step`. Beams that have not ended are not returned; if `state.done`
        is True, there are none.
      num_return: static, in [1, beams].

    Returns:
      `Hypotheses`, the best first: tokens int32 `[..., num_return, max_length]`, -1 after the stop
      token; lengths int32 and scores float32 `[..., num_return]`. If fewer have finished, as in a
      search whose beams were all bad, the result is padded with tokens -1, length 0 and score NaN.

    >>> import jax.numpy as jnp
    >>> state, *_ = beam_step(init_beams(2, 1), jnp.zeros((2, 3)))
    >>> print(finalize_beams(state, num_return=2).tokens)
    [[0] [1]]
    """
    found = _best(state.finished, num_return)
    none = found.scores == -jnp.inf
    return Hypotheses(
        tokens=jnp.where(none[..., None], -1, found.tokens),
        lengths=jnp.where(none, 0, found.lengths),
        scores=jnp.where(none, jnp.nan, found.scores),
    )


def _parents(name: str, value: ArrayLike) -> Array:
    array = _checks.integers(name, value)
    if array.ndim == 0:
        raise ValueError(f"{name} must have shape [..., beams], got ()")
    return array


def _tree(name: str, value: Any, parents: Array) -> Any:
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if jnp.shape(leaf)[: parents.ndim] != parents.shape:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have the leading axes {parents.shape} of "
                f"parents, got {jnp.shape(leaf)}"
            )
    return value


@public(first="parents", convert_first=_parents, tree=_tree)
def take_beams(tree: Any, parents: ArrayLike) -> Any:
    """Reorders the arrays of beams, such as a KV cache: returns `x[..., parents, *]` of each array.

    It copies even if the tree is donated, since a beam may have several children.

    Args:
      tree: a pytree of arrays `[..., beams, *]`, with the leading axes of `parents`.
      parents: integers `[..., beams]` in [0, beams), from `beam_step`.

    Returns:
      The tree, with arrays of the same shapes.

    Raises:
      TypeError, ValueError: a wrong dtype or shape; the message names the argument, with the path
        of an array in the tree.

    >>> import jax.numpy as jnp
    >>> print(take_beams({"keys": jnp.array([[1, 2], [3, 4], [5, 6]])}, jnp.array([2, 0, 0])))
    {'keys': Array([[5, 6], [1, 2], [1, 2]], dtype=int32)}
    """
    index = jnp.asarray(parents)
    return jax.tree.map(lambda x: taken(jnp.asarray(x), index), tree)
