"""The stages of the params, the last of them fused with the draw."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import (
    _bits,
    _chunks,
    _draw,
    _moments,
    _normalizer,
    _prefix,
    _ranking,
    _rows,
    _scan,
)
from jaxsample._core._draw import Drawn
from jaxsample._core._mass import Mass
from jaxsample._core._prefix import Candidates
from jaxsample._core._ranking import Cut, Kept
from jaxsample._core._rows import Rows
from jaxsample._core._search import Rules
from jaxsample._core._source import Source, opened
from jaxsample.orders import Order
from jaxsample.params import SamplingParams
from jaxsample.planning import applied, mask_of, planned, rules_of
from jaxsample.scaling import divisor_of
from jaxsample.state import SamplerState


class Choice(NamedTuple):
    """The draw of each row, and the kept tokens that it chose from.

    Attributes:
      x: the logits before temperature, and the mask.
      rows: `x`, scanned, with its temperature; also bad where a parameter is bad.
      cut: the end of the kept tokens.
      drawn: the token, and the mass and the number of the kept tokens.
      ranked: the candidates, or None if the draw did not need them.
      divisor: the temperature as a divisor, with its gradient, or None.
    """

    x: Source
    rows: Rows
    cut: Cut
    drawn: Drawn
    ranked: Candidates | None
    divisor: Array | None

    @property
    def tokens(self) -> Array:
        """The tokens, -1 on bad rows."""
        return jnp.where(self.rows.bad, -1, self.drawn.tokens)

    @property
    def num_kept(self) -> Array:
        """The number of kept tokens, 0 on bad rows."""
        return jnp.where(self.rows.bad, 0, self.drawn.num_kept)

    def kept(self) -> Array:
        """Returns which tokens are kept, bool `[..., vocab]`."""
        return self._is_kept(self.x.masked(), self.rows.ids)

    def first(self, number: int) -> Array:
        """Returns the first kept tokens in the order of the ranking, `[..., number]`; then -1."""
        top, to_cut = self._ranked(number)
        inside = _ranking.is_kept(to_cut, top.token, self.cut) & (top.logit > -jnp.inf)
        return jnp.where(inside & ~self.rows.bad[..., None], top.token, -1)

    def logprobs(self, tokens: Array) -> Array:
        """Returns the log-probabilities of tokens `[..., n]`: -inf for those that are not kept.

        NaN on bad rows and for ids outside the vocabulary.
        """
        keep, scaled = self.kept(), self.rows.divided_by(self.divisor)
        # Only the gradient reads `kept_logits`, since their mass is known.
        kept_logits = jnp.where(keep, scaled.read(jnp.where(keep, self.x.logits, 0)), -jnp.inf)
        taken = self.x.take(tokens)
        inside = self._is_kept(taken, tokens)
        taken = scaled.read(jnp.where(inside, taken, 0))
        logprobs = _normalizer.logprobs(self.rows, self.drawn.mass, kept_logits, taken)
        logprobs = jnp.where(inside | self.rows.bad[..., None], logprobs, -jnp.inf)
        return jnp.where((tokens >= 0) & (tokens < self.rows.vocab), logprobs, jnp.nan)

    def entropy(self) -> Array:
        """Returns the entropy of the kept tokens in nats, `[...]`, NaN on bad rows."""
        scale = _chunks.probability(self.rows)
        sums = _chunks.weigh(self.rows, scale, *_ranking.up_to(self.rows, self.cut))
        entropy, _ = _moments.entropy(self.rows, scale, sums, self.cut)
        return jnp.where(self.rows.bad, jnp.nan, entropy)

    def _is_kept(self, raw: Array, ids: Array) -> Array:
        """Whether the tokens with these raw values and ids are kept, bool `[..., *]`."""
        keep = _ranking.is_kept(self.rows.read_to_cut(raw), ids, self.cut)
        return keep & (self.rows.read(raw) > -jnp.inf) & ~self.rows.bad[..., None]

    def _ranked(self, number: int) -> tuple[Cut, Array]:
        """Returns the first tokens of the ranking, and the logits by which they are cut."""
        rows, ranked = self.rows, self.ranked

        def found() -> tuple[Cut, Array]:
            top, raw = _ranking.first(rows, number)
            return top, rows.read_to_cut(raw)

        if ranked is None or number > ranked.tokens.token.shape[-1]:
            return found()
        top = Cut(*(of[..., :number] for of in ranked.tokens))
        return lax.cond(jnp.all(ranked.complete | rows.bad), lambda: (top, top.logit), found)


def chosen(
    keys: Array, x: Source, params: SamplingParams, state: SamplerState | None, order: Order
) -> Choice:
    """Applies the rules and draws; the last rules are fused with the draw."""
    plan = planned(params, state, order)
    processed = applied(plan.first, keys, x, params, state)
    mask, bad = mask_of(plan.masks, keys, processed, params, state)
    if state is not None:
        bad |= _outgrown(state)
    temperature: Any = params.temperature if plan.scales or plan.scales_after else None
    return _drawn(
        keys,
        opened(processed.logits, x.axis_name, x.implementation, mask),
        temperature,
        rules_of(plan.last, x, params),
        plan.scales_after,
        bad,
    )


def _drawn(
    keys: Array,
    x: Source,
    temperature: Array | None,
    rules: Rules,
    scales_after: bool,
    bad: Array,
) -> Choice:
    """Draws from logits that are scaled and truncated, in either order; fused."""
    divisor: Any = None
    beta: Any = None
    greedy: Any = None
    if temperature is not None:
        divisor, greedy, outside = divisor_of(x.per_row(temperature))
        beta = 1 / lax.stop_gradient(divisor)  # the kept set and the draw have no gradient
        bad |= outside
    rules, outside = _prefix.checked(x.vocab, rules)

    noise = _draw.random_words(keys)
    if rules.values:
        rows, top = _scan.scan_and_rank(x, None if scales_after else beta)
        scaled = _rows.scaled_after(rows, beta) if scales_after else rows
        if temperature is not None:
            greedy |= scaled.overflows
        bad |= outside
        rules = dataclasses.replace(rules, greedy=greedy)
        rows = rows._replace(bad=rows.bad | bad)
        drawn, cut = _draw.draw_prefix(noise, rows, top, rules, beta if scales_after else None)
        rows = scaled
        # A temperature after the cut may make logits equal that the candidates are ranked by.
        ranked = None if scales_after else top
    else:
        ranked = None
        rows, scale, kept = _scan.scan_and_weigh(x, beta, counted=True)
        if temperature is not None:
            greedy |= rows.overflows
        drawn, cut = _draw.draw_all(noise, rows, scale, Kept(*kept), greedy)
    return Choice(x, rows._replace(bad=rows.bad | bad), cut, drawn, ranked, divisor)


def processed_rows(
    keys: Array | None,
    x: Source,
    params: SamplingParams,
    state: SamplerState | None,
    order: Order,
) -> Array:
    """Returns the logits `[..., vocab]` that `sample` draws from."""
    if keys is None and params.xtc_probability is not None:
        raise ValueError("key must be given if params have xtc_probability")
    plan = planned(params, state, order)
    processed = applied(plan.groups, keys, x, params, state).logits
    if state is None:
        return processed
    return jnp.where(_outgrown(state)[..., None], jnp.nan, processed)


def uncut(
    keys: Array, x: Source, params: SamplingParams, state: SamplerState | None, order: Order
) -> Source:
    """Returns the logits after the rules that drop no tokens, with greedy rows at temperature 1."""
    if params.temperature is not None:
        temperature = jnp.asarray(params.temperature)
        _, greedy, _ = divisor_of(temperature)
        params = dataclasses.replace(params, temperature=jnp.where(greedy, 1, temperature))
    groups = planned(params, state, order).groups
    kept = tuple(group for group in groups if not any(stage.drops for stage in group))
    return applied(kept, keys, x, params, state)


def _outgrown(state: SamplerState) -> Array:
    """Returns the rows `[...]` whose text exceeds the state or has no valid length."""
    return (state.lengths < 0) | (state.lengths > state.tokens.shape[-1])


def log_kept_mass(
    choice: Choice,
    keys: Array,
    x: Source,
    params: SamplingParams,
    state: SamplerState | None,
    order: Order,
) -> Array:
    """Returns the log of the kept mass before truncation, `[...]`, NaN on bad rows."""
    rows = choice.rows
    if any(stage.drops for group in planned(params, state, order).first for stage in group):
        whole = uncut(keys, x, params, state, order)
        mask = _bits.packed(choice.kept())
        kept = opened(whole.logits, x.axis_name, x.implementation, mask)
        log_mass = _log_mass(kept, whole)
    else:  # the rows of the draw also hold the tokens that the last rules dropped
        log_mass = _moments.log_ratio(
            choice.drawn.mass, _chunks.mass(rows, _chunks.probability(rows))
        )
        # A temperature that overflows leaves one token of probability 1.
        log_mass = jnp.where(rows.overflows, 0, log_mass)
    return jnp.where(rows.bad, jnp.nan, log_mass)


def _log_mass(part: Source, whole: Source) -> Array:
    """Returns the log of the probability of a part of a distribution, the unmasked tokens."""
    (some, some_mass), (every, every_mass) = map(_weighed, (part, whole))
    return some.row_max - every.row_max + _moments.log_ratio(some_mass, every_mass)


def _weighed(x: Source) -> tuple[Rows, Mass]:
    rows, scale, (sums,) = _scan.scan_and_weigh(x)
    return rows, _chunks.added_up(sums, scale)
