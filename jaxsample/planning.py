"""The plan of a call: the stages of the params in order, grouped, and their application."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxsample._core import _bits, _shards
from jaxsample._core._search import Rules
from jaxsample._core._source import Source
from jaxsample.constraints import Banned
from jaxsample.counting import by_count
from jaxsample.orders import Order, Rule, stages_of
from jaxsample.params import SamplingParams
from jaxsample.stages import STAGES, Stage, custom, input_of
from jaxsample.state import SamplerState
from jaxsample.truncation import cut_by

_Groups = list[tuple[str | Rule, ...] | tuple[str, ...]]
"""The entries of an order, each a group of stages that are applied jointly."""

_PREFIX = {"top_k", "top_p", "min_p"}
"""The stages that are applied together, from the candidates of each row if these suffice."""


class Plan(NamedTuple):
    """The groups of stages that `sample` applies, each to one distribution.

    Attributes:
      groups: all groups.
      first: the groups that are applied one after the other, before the draw.
      masks: the next stages, which are masks that do not depend on the logits. These, the
        temperature and `last` are fused with the draw.
      scales: whether the temperature is next.
      last: the groups of top-k, top-p and min-p at the end.
      scales_after: whether the temperature comes after them.
    """

    groups: tuple[tuple[Stage, ...], ...]
    first: tuple[tuple[Stage, ...], ...]
    masks: tuple[Stage, ...]
    scales: bool
    last: tuple[tuple[str, ...], ...]
    scales_after: bool


def planned(params: SamplingParams, state: SamplerState | None, order: Order) -> Plan:
    """Returns the plan of the stages whose fields are in the params."""
    stages = stages_of(order)
    groups: _Groups = [entry if isinstance(entry, tuple) else (entry,) for entry in stages]
    _check_order(groups)
    names = {entry if isinstance(entry, str) else entry.name for group in groups for entry in group}
    asked = {name for name, stage in STAGES.items() if _is_asked(stage, params, state)}
    if missing := sorted((asked | set(params.custom or {})) - names):
        raise ValueError(f"order must contain every stage of the params, but lacks {missing[0]!r}")
    active = [
        tuple(
            STAGES[entry] if isinstance(entry, str) else custom(entry)
            for entry in group
            if isinstance(entry, Rule) or entry in asked
        )
        for group in groups
    ]
    active = [group for group in active if group]
    end = len(active) - _is_temperature(active)
    start = end
    while start and _are_prefix(active[start - 1]):
        start -= 1
    if start == end:  # without truncation, the temperature is the last stage before the draw
        start = end = len(active)
    scales = _is_temperature(active[:start])
    first = active[: start - scales]
    masks: list[Stage] = []
    while first and all(stage.mask for stage in first[-1]):
        masks += first.pop()
    last = tuple(tuple(stage.name for stage in group) for group in active[start:end])
    return Plan(tuple(active), tuple(first), tuple(masks), scales, last, end < len(active))


def applied(
    groups: tuple[tuple[Stage, ...], ...],
    keys: Array | None,
    x: Source,
    params: SamplingParams,
    state: SamplerState | None,
) -> Source:
    """Returns the logits after some groups of stages."""

    def one_by_one(x: Source, state: Any, groups: Iterable[tuple[Stage, ...]]) -> Source:
        for group in groups:
            results = [stage.apply(input_of(stage, keys, x, params, state)) for stage in group]
            # A truncation keeps a logit unchanged or masks it, so the minimum is what all keep.
            x = dataclasses.replace(x, logits=functools.reduce(jnp.minimum, results))
        return x

    for kind, some in itertools.groupby(groups, _kind):
        together = tuple(some)
        if kind == "prefix":
            names = tuple(tuple(stage.name for stage in group) for group in together)
            x = dataclasses.replace(x, logits=cut_by(x, rules_of(names, x, params)))
        elif kind == "counts":
            assert state is not None
            penalties = functools.partial(one_by_one, groups=together)
            x = by_count(penalties, x, params, state)
        else:
            x = one_by_one(x, state, together)
    return x


def mask_of(
    stages: tuple[Stage, ...],
    keys: Array,
    x: Source,
    params: SamplingParams,
    state: SamplerState | None,
) -> tuple[Array | None, Array]:
    """Returns the packed mask of some stages, and the rows `[...]` with a bad parameter."""
    words, bad = None, jnp.array(False)
    for stage in stages:
        mask: Any = stage.mask
        left = mask(input_of(stage, keys, x, params, state))
        if not isinstance(left, Banned):
            words = left if words is None else words & left
            continue
        places = _shards.places(x.logits, left.ids, x.shards)
        if words is None:
            words = _bits.without(x.logits.shape[-1], places, left.where)
        else:
            words = _bits.cleared(words, places, left.where)
        bad |= left.bad
    return words, bad


def rules_of(groups: tuple[tuple[str, ...], ...], x: Source, params: SamplingParams) -> Rules:
    """Returns the rules of groups of top-k, top-p and min-p."""
    names = itertools.chain(*groups)
    values = {name: x.per_row(getattr(params, name)) for name in names}
    return Rules(values, groups)


def _kind(group: tuple[Stage, ...]) -> str | None:
    """Returns the kind of a group if adjacent groups of that kind are applied jointly, or None."""
    if _are_prefix(group):
        return "prefix"
    return "counts" if all(stage.counts for stage in group) else None


def _are_prefix(group: tuple[Stage, ...]) -> bool:
    return _PREFIX.issuperset(stage.name for stage in group)


def _is_temperature(groups: list[tuple[Stage, ...]]) -> bool:
    """Whether the last group is the temperature alone."""
    return groups[-1:] == [(STAGES["temperature"],)]


def _is_asked(stage: Stage, params: SamplingParams, state: SamplerState | None) -> bool:
    fields = (*stage.fields, *stage.optional)
    given = [name for name in fields if getattr(params, name) is not None]
    for name in stage.fields:
        if given and name not in given:
            raise ValueError(f"params must have {name} if they have {given[0]}")
    if given and stage.needs_state and state is None:
        raise ValueError(f"state must be given if params have {given[0]}")
    return bool(given)


def _check_order(groups: _Groups) -> None:
    names: list[str] = []
    for entry in itertools.chain(*groups):
        is_rule = isinstance(entry, Rule)
        name = entry.name if isinstance(entry, Rule) else entry
        if is_rule and name in STAGES:
            raise ValueError(f"order must not contain a rule named as a stage, got {name!r}")
        if not is_rule and name not in STAGES:
            raise ValueError(
                f"order must contain rules and stages among {', '.join(STAGES)}; got {name!r}"
            )
        if name in names:
            raise ValueError(f"order must name a stage once, got {name!r} twice")
        names.append(name)
    for group in groups:
        for entry in group:
            if len(group) > 1 and not (isinstance(entry, str) and STAGES[entry].drops):
                name = entry if isinstance(entry, str) else entry.name
                raise ValueError(f"order must not nest {name!r}: it is not a truncation")
