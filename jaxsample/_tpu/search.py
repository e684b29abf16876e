"""The search for the last kept token, of rows in vector memory, eight at a time.

The cut is that of `_core/_bisection`, from the same weights and the same exact masses. A block of
eight rows is read from HBM once, and only if one of its rows needs the search. What each token
weighs is computed once, in two words. A turn adds up the weights from two pivots up. The first
turns add up the coarse words alone, which nearly always lead to the last token; the others add up
both, and may search among the ids of tokens of equal logits.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxsample._core import _bits, _mass
from jaxsample._core._bits import WORD
from jaxsample._core._chunks import CHUNK, from_sortable, mean, to_sortable
from jaxsample._core._elementary import product
from jaxsample._core._mass import Mass
from jaxsample._core._ranking import Cut, is_kept
from jaxsample._tpu.rows import LANES, ROWS, by_chunk, hide, like_rows, reduced, span, weights

_VECTORS = 64
"""Vectors of a step."""

_STEP = _VECTORS * LANES

_REST_BITS = 16
"""Bits of a mass that the coarse word of a weight leaves to the other."""

_TOGETHER = 32
"""Vectors whose coarse words, of at most 2**26 each, add up within 32 bits."""

_TURNS_BY_VALUE = 24
"""Turns that divide the distance between the bounds; the others divide the numbers between them."""

_WINDOW, _THIRD = 1 / 8, 1 / 3
"""Distances of two pivots from where the target is expected, in parts of that between the bounds:
the first one, and after a miss, when the bounds are cut into thirds.
"""

_STEP_DOWN = 2.0
"""The first of the steps, in logits, in which a lower bound is looked for."""

_VMEM = 60 * 2**20

_LEAST = np.finfo(np.float32).min
"""The least logit of a token that is not masked."""


class Given(NamedTuple):
    """The parameters and maxima of each row, float32 `[rows]`.

    Attributes:
      row_max: the largest logit, multiplied by beta.
      raw_max: the largest logit.
      beta: the inverse temperature, or None.
      k: the number of tokens to keep; not less than the vocabulary: not asked for.
      p: the share of the mass to keep; 1: not asked for.
      floor: the least logit to keep; -inf: not asked for.
    """

    row_max: Array
    raw_max: Array
    beta: Array | None
    k: Array
    p: Array
    floor: Array


class Inputs(NamedTuple):
    """The inputs of the kernels.

    Attributes:
      logits: `[rows, vocab]`.
      mask: int32 `[rows, words]`, the tokens that may come, packed, or None.
      shifts: int32 `[rows, chunks]`, of the weights.
      given: what is given of each row.
      needed: bool `[rows]`, the rows to look at; the results of the others may be anything.
    """

    logits: Array
    mask: Array | None
    shifts: Array
    given: Given
    needed: Array


class Found(NamedTuple):
    """The results of the search for each row.

    Attributes:
      cut: `[rows]`; it lies anywhere between the last kept token and the next one.
      sums: int32 `[rows, chunks]`, the weights of the kept tokens, added up by chunk, or None.
      num_kept: int32 `[rows]`, the number of these tokens, or None.
    """

    cut: Cut
    sums: Array | None = None
    num_kept: Array | None = None


def search(
    inputs: Inputs, order: tuple[tuple[str, ...], ...], *, weighed: bool, interpret: bool
) -> Found:
    """Returns the cut of the tokens that top-k, top-p and min-p keep.

    Args:
      inputs: the rows and their parameters.
      order: the groups of rules.
      weighed: whether to weigh and count the kept tokens, too.
      interpret: whether to run without a TPU.
    """
    chunks = pl.cdiv(inputs.logits.shape[1], CHUNK)
    outputs = [(LANES, jnp.float32), (LANES, jnp.int32)]
    outputs += [(_lanes(chunks), jnp.int32), (LANES, jnp.int32)] * weighed
    logit, token, *kept = _call(
        functools.partial(_search_body, order=order, weighed=weighed),
        inputs,
        outputs,
        [jnp.float32, jnp.int32, jnp.int32],
        interpret,
        gathered=True,
    )
    cut = Cut(logit[:, 0], token[:, 0])
    if not weighed:
        return Found(cut)
    sums, counts = kept
    return Found(cut, sums[:, :chunks], jnp.sum(counts, axis=1, dtype=jnp.int32))


def masses(inputs: Inputs, *, interpret: bool) -> Mass:
    """Returns the masses `[rows]` of all tokens."""
    # Of neighbours, since nearly all rows need it.
    words = _call(_masses_body, inputs, [(LANES, jnp.int32)] * 2, [], interpret, gathered=False)
    return Mass(*(lax.bitcast_convert_type(word[:, 0], jnp.uint32) for word in words))


def _call(
    body: Callable[..., None],
    inputs: Inputs,
    outputs: list[tuple[int, Any]],
    scratch: list[Any],
    interpret: bool,
    *,
    gathered: bool,
) -> Sequence[Array]:
    """Runs a body for blocks of eight rows, of which some need it.

    The body takes the rows, the references to the outputs and those to arrays of a vector for each
    of a row's.

    Args:
      body: the body.
      inputs: the rows and their parameters.
      outputs: the sizes and dtypes of the outputs of a row.
      scratch: the dtypes of the arrays.
      interpret: whether to run without a TPU.
      gathered: whether a block is made of the next eight rows that need it, wherever they are,
        where the DMA of a single row can be had. Otherwise its rows are neighbours.
    """
    logits, mask, shifts, given, needed = inputs
    rows, vocab = logits.shape
    narrow = logits.dtype == jnp.bfloat16
    if interpret:  # whose casts took XLA a quarter of an hour to compile
        logits = logits.astype(jnp.float32)
    together, size = min(rows, ROWS), pl.cdiv(vocab, _STEP) * _STEP
    gathered &= not narrow and vocab % LANES == 0  # a word has two rows; a DMA copies whole vectors
    order = _in_front(needed, together, 1 if gathered else together)

    columns, tree = jax.tree.flatten((needed.astype(jnp.float32), given))
    chunks = _lanes(size // CHUNK)
    used = [jnp.stack(columns, axis=1), jnp.pad(shifts, [(0, 0), (0, chunks - shifts.shape[1])])]
    sizes = [len(columns), chunks]
    if mask is not None:
        used.append(_bits.by_lane(mask))
        sizes.append(size // WORD)
    used = [jnp.take(x, order.rows, axis=0, mode="fill", fill_value=0) for x in used]

    def spec(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((together, size), lambda i, *_: (i, np.int32(0)))

    neighbours = pl.BlockSpec(
        (together, size), lambda i, order, _: (lax.div(order[i * together], np.int32(together)), 0)
    )
    buffers = [pltpu.VMEM((2, together, size), jnp.float32), pltpu.SemaphoreType.DMA((2,))]

    def run(order_ref: Any, blocks_ref: Any, x_ref: Any, given_ref: Any, *refs: Any) -> None:
        shifts_ref, *others = refs
        mask_ref = None if mask is None else others.pop(0)

        block = pl.program_id(0)

        @pl.when(block < blocks_ref[0])
        def _() -> None:
            x, rest = x_ref, others
            if gathered:
                *rest, buffer_ref, semaphores = others
                x = _fetched(block, x_ref, order_ref, blocks_ref, buffer_ref, semaphores)
            columns = jnp.split(given_ref[...], given_ref.shape[1], axis=1)
            columns = [jnp.broadcast_to(column, (together, LANES)) for column in columns]
            needed, given = jax.tree.unflatten(tree, columns)
            hide(x, vocab)
            body(_Rows(x, mask_ref, shifts_ref, given, needed > 0, vocab, narrow), *rest)

    found = pl.pallas_call(
        run,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(pl.cdiv(rows, together),),
            in_specs=[
                pl.BlockSpec(memory_space=pl.ANY) if gathered else neighbours,
                *map(spec, sizes),
            ],
            out_specs=[spec(size) for size, _ in outputs],
            scratch_shapes=[
                *(pltpu.VMEM((together, size), dtype) for dtype in scratch),
                *(buffers if gathered else ()),
            ],
        ),
        out_shape=like_rows(logits, outputs),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_VMEM),
        interpret=interpret,
    )(order.rows, order.blocks, logits, *used)
    return [jnp.take(x, order.places, axis=0, mode="clip") for x in found]


def _fetched(
    block: Array, x_ref: Any, order_ref: Any, blocks_ref: Any, buffer_ref: Any, semaphores: Any
) -> Any:
    """Returns the reference to the logits of a block, and starts to copy those of the next."""
    _, together, _ = buffer_ref.shape

    def slot(block: Array) -> Array:
        return lax.rem(block, np.int32(2))

    def copies(block: Array) -> Iterator[Any]:
        for row in range(together):
            source = x_ref.at[pl.ds(order_ref[block * together + row], 1)]
            target = buffer_ref.at[slot(block), pl.ds(row, 1), pl.ds(0, x_ref.shape[1])]
            yield pltpu.make_async_copy(source, target, semaphores.at[slot(block)])

    def start(block: Array) -> None:
        for copy in copies(block):
            copy.start()

    pl.when(block == 0)(lambda: start(block))
    pl.when(block + 1 < blocks_ref[0])(lambda: start(block + 1))
    for copy in copies(block):
        copy.wait()
    return buffer_ref.at[slot(block)]


def _lanes(size: int) -> int:
    """Returns a size rounded up to whole vectors."""
    return pl.cdiv(size, LANES) * LANES


class _Order(NamedTuple):
    """The rows of the blocks of a kernel.

    Attributes:
      rows: int32 `[blocks * rows of a block]`, the row at each place, those that are needed first;
        behind them the last of these again, which is in vector memory already.
      places: int32 `[rows]`, the place of each row; anything where it is not needed.
      blocks: int32 `[1]`, the number of blocks that are needed.
    """

    rows: Array
    places: Array
    blocks: Array


def _in_front(needed: Array, together: int, unit: int) -> _Order:
    """Returns the order in which units of so many rows come, those that are needed first."""
    rows, blocks = needed.size, pl.cdiv(needed.size, together)
    units = pl.cdiv(rows, unit)
    some = jnp.any(jnp.pad(needed, (0, units * unit - rows)).reshape(units, unit), axis=1)
    ends = jnp.cumsum(some, dtype=jnp.int32)
    wanted = jnp.minimum(jnp.arange(1, blocks * together // unit + 1, dtype=jnp.int32), ends[-1])
    here = some[None] & (ends[None] == wanted[:, None])
    index = jnp.sum(jnp.where(here, jnp.arange(units, dtype=jnp.int32)[None], 0), axis=1)

    def of_rows(first: Array) -> Array:
        return (first[:, None] * unit + jnp.arange(unit, dtype=jnp.int32)[None]).reshape(-1)

    count = pl.cdiv(ends[-1] * unit, together)
    return _Order(of_rows(index), of_rows(ends - 1)[:rows], count[None])


class _Rows(NamedTuple):
    """The rows of a block.

    Attributes:
      x: the reference to the logits.
      mask: that to the packed mask, or None.
      shifts: that to the shifts.
      given: what is given of each row, the same in all lanes.
      needed: whether to look at it.
      vocab: the number of tokens.
      narrow: whether logits are bfloat16, and numbers have 16 bits.
    """

    x: Any
    mask: Any
    shifts: Any
    given: Given
    needed: Array
    vocab: int
    narrow: bool

    def read(self, raw: Array) -> Array:
        """Returns the logits that raw values stand for."""
        beta = self.given.beta
        return raw if beta is None else product(raw, beta)

    def raw(self, number: Array) -> Array:
        """Returns the raw value that a sortable number stands for."""
        if self.narrow:
            number = number << 16 | jnp.where(number < 0, 0xFFFF, 0)
        return from_sortable(number)

    def value(self, number: Array) -> Array:
        """Returns the logit that a sortable number stands for; masked tokens are below it."""
        return jnp.maximum(self.read(self.raw(number)), _LEAST)

    def number(self, raw: Array) -> Array:
        """Returns the sortable number of a raw value, rounded down."""
        return to_sortable(raw) >> (16 if self.narrow else 0)


class _Bounds(NamedTuple):
    """Bounds of the cut, the same in all lanes.

    Attributes:
      low: the largest number known to reach the target; it stands for a logit, or is minus an id.
      high: the least one known to miss it.
      reached: the mass from `low` up.
      missed: the mass from `high` up.
      going: int32, whether the target is reached without some of the tokens from `low` up.
      window: the distance of the next pivots from where the target is expected.
      step: that of the next pivots from `high` as long as no logit is known to reach the target.
    """

    low: Array
    high: Array
    reached: Mass
    missed: Mass
    going: Array
    window: Array
    step: Array


class _Tokens(NamedTuple):
    """References to what each token of a block has in vector memory.

    Attributes:
      values: what is compared with pivots: its logit, or minus its id.
      coarse: the coarse word of its weight.
      rest: the other word, which may be negative.
    """

    values: Any
    coarse: Any
    rest: Any


def _masses_body(rows: _Rows, high_ref: Any, low_ref: Any) -> None:
    def step(number: Array, total: _Sum) -> _Sum:
        chunks = []
        weighed = _weighed(rows, number, _read(rows, number))
        for (one, shift), (other, _) in zip(weighed[::2], weighed[1::2], strict=True):
            chunks.append(_words(one + other, shift))
        for some in _together(_VECTORS):
            total = total.add(chunks[some.start // 2 : some.stop // 2])
        return total

    mass = _steps(rows.vocab, step, _nothing(rows)).mass()
    for ref, word in zip((high_ref, low_ref), mass, strict=True):
        ref[...] = lax.bitcast_convert_type(word, jnp.int32)


def _search_body(
    rows: _Rows,
    logit_ref: Any,
    token_ref: Any,
    *refs: Any,
    order: tuple[tuple[str, ...], ...],
    weighed: bool,
) -> None:
    tokens = _Tokens(*refs[-3:])
    logit_ref[...] = jnp.full(logit_ref.shape, -jnp.inf, jnp.float32)
    token_ref[...] = jnp.full(token_ref.shape, rows.vocab, jnp.int32)
    by_p = "top_p" in itertools.chain(*order)
    whole = _weigh(rows, tokens) if weighed or by_p else None
    for place, group in enumerate(order):
        before = Cut(logit_ref[...], token_ref[...]) if place else None
        for name in group:
            _apply(rows, tokens, name, before, whole, logit_ref, token_ref)
    if weighed:
        _weigh_kept(rows, tokens, Cut(logit_ref[...], token_ref[...]), *refs[:2])


def _apply(
    rows: _Rows,
    tokens: _Tokens,
    name: str,
    before: Cut | None,
    whole: Mass | None,
    logit_ref: Any,
    token_ref: Any,
) -> None:
    """Shortens the cut by a rule.

    Args:
      rows: the rows.
      tokens: their tokens.
      name: the rule.
      before: the cut of the tokens that the rule judges, or None: all.
      whole: the mass of all tokens, or None: no rule asks for it.
      logit_ref: the reference to the logit of the cut.
      token_ref: that to its token.
    """

    def shorten(on: Array, found: Cut) -> None:
        cut = Cut(logit_ref[...], token_ref[...])
        shorter = on & is_kept(*found, cut)
        logit_ref[...] = jnp.where(shorter, found.logit, cut.logit)
        token_ref[...] = jnp.where(shorter, found.token, cut.token)

    given = rows.given
    if name == "min_p":
        last = jnp.full(token_ref.shape, rows.vocab, jnp.int32)
        shorten(rows.needed & (given.floor > -jnp.inf), Cut(given.floor, last))
        return
    on = rows.needed & (given.k < rows.vocab if name == "top_k" else given.p < 1)

    @pl.when(_any(on))
    def _() -> None:
        _load(rows, tokens, before)
        if name == "top_k":
            shorten(on, _top_k(rows, tokens, on))
        else:
            shorten(on, _top_p(rows, tokens, on, whole if before is None else None))


def _top_k(rows: _Rows, tokens: _Tokens, on: Array) -> Cut:
    """Returns the cut of top-k in some rows."""

    def one(logit: Array) -> Mass:
        return Mass(jnp.zeros_like(logit, jnp.uint32), jnp.ones_like(logit, jnp.uint32))

    counts = functools.partial(_counts, rows, tokens)
    (whole,) = counts([_LEAST])
    k = jnp.where(on, rows.given.k, 1).astype(jnp.int32).astype(jnp.uint32)
    goal = Mass(jnp.zeros_like(k), k)
    bounds = _start(rows, on, whole, goal)
    return _cut_of(rows, tokens, _Target(goal, counts, one), bounds, _pivots(rows, goal, bounds))


def _top_p(rows: _Rows, tokens: _Tokens, on: Array, whole: Mass | None) -> Cut:
    """Returns the cut of top-p in some rows; without the mass of all tokens, they are weighed."""

    def least(logit: Array) -> Mass:
        nothing = jnp.zeros_like(logit, jnp.int32)
        return _mass.least(weights(logit, nothing, rows.given.row_max, nothing))

    coarse, exact = (
        functools.partial(_masses, rows, tokens, exact=exact) for exact in (False, True)
    )
    if whole is None:
        (whole,) = exact([_LEAST])
    goal = _mass.fraction(whole, rows.given.p)
    bounds = _start(rows, on, whole, goal)
    guess = _narrowed(rows, _Target(goal, coarse, least), bounds, _pivots(rows, goal, bounds))
    gap = rows.raw(guess.high) - rows.raw(guess.low)
    bounds = bounds._replace(step=jnp.where(gap < jnp.inf, 4 * gap, _STEP_DOWN))
    pivots = _between(bounds, guess.low, guess.high)
    return _cut_of(rows, tokens, _Target(goal, exact, least), bounds, pivots)


def _start(rows: _Rows, on: Array, whole: Mass, goal: Mass) -> _Bounds:
    """Returns bounds around all numbers, in the rows to search."""
    top = rows.given.raw_max
    # Above the largest; and above 0 a normal number, since smaller ones may be flushed to 0.
    info = jnp.finfo(jnp.bfloat16 if rows.narrow else jnp.float32)
    above = top + 4 * float(info.eps) * jnp.abs(top) + float(info.tiny)
    nothing = jnp.zeros_like(whole.low)
    return _Bounds(
        low=rows.number(jnp.full_like(top, -jnp.inf)),
        high=rows.number(above),
        reached=whole,
        missed=Mass(nothing, nothing),
        going=(on & _mass.reaches(whole, goal)).astype(jnp.int32),
        window=jnp.full_like(top, _WINDOW),
        step=jnp.full_like(top, _STEP_DOWN),
    )


class _Target(NamedTuple):
    """The target of a search.

    Attributes:
      goal: the mass to reach.
      masses: takes two values, returns the masses of the tokens from there up.
      least: takes a logit, returns a lower bound of what its tokens weigh.
    """

    goal: Mass
    masses: Callable[[list[Any]], list[Mass]]
    least: Callable[[Array], Mass]


def _cut_of(
    rows: _Rows, tokens: _Tokens, target: _Target, bounds: _Bounds, pivots: list[Array]
) -> Cut:
    """Returns the cut between bounds, looked for from two pivots on."""
    found = _narrowed(rows, target, bounds, pivots)
    value = rows.value(found.low)
    # Equal logits, not all of which are kept.
    tied = found.going > 0

    @pl.when(_any(tied))
    def _() -> None:
        _load_ids(rows, tokens, tied, value)

    bounds = found._replace(
        low=jnp.where(tied, -rows.vocab, 0),
        high=jnp.ones_like(found.high),
        window=jnp.full_like(found.window, _WINDOW),
    )
    least = target.least(value)
    target = target._replace(least=lambda _: least)
    ids = _narrowed(rows, target, bounds, _pivots(rows, target.goal, bounds, ids=True), ids=True)
    logit = rows.read(rows.raw(found.low))
    return Cut(logit, jnp.where(tied, -ids.low, rows.vocab))


def _narrowed(
    rows: _Rows, target: _Target, bounds: _Bounds, pivots: list[Array], *, ids: bool = False
) -> _Bounds:
    """Returns the bounds with no number between them, or from which every token is needed.

    Args:
      rows: the rows.
      target: what to look for.
      bounds: those to begin with.
      pivots: the first two numbers between them.
      ids: whether numbers are minus ids, or stand for logits.
    """

    def value(number: Array) -> Array:
        return number.astype(jnp.float32) if ids else rows.value(number)

    def turn(state: tuple[Array, _Bounds, list[Array]]) -> tuple[Array, _Bounds, list[Array]]:
        number, bounds, pivots = state
        bounds = _moved(bounds, pivots, target.masses([*map(value, pivots)]), target.goal)
        enough = _mass.add(target.goal, target.least(value(bounds.low)))
        needed = _mass.reaches(bounds.reached, target.goal)
        needed &= ~_mass.reaches(bounds.reached, enough)
        bounds = bounds._replace(going=jnp.where(needed, 0, bounds.going))
        return number + 1, bounds, _pivots(rows, target.goal, bounds, number + 1, ids=ids)

    def unfinished(state: tuple[Array, _Bounds, list[Array]]) -> Array:
        _, bounds, _ = state
        return _any((bounds.going > 0) & (bounds.high - 1 > bounds.low))

    return lax.while_loop(unfinished, turn, (jnp.int32(0), bounds, pivots))[1]


def _moved(bounds: _Bounds, pivots: list[Array], masses: list[Mass], goal: Mass) -> _Bounds:
    """Returns the bounds moved to pivots of known masses, and the next distances."""
    low, high, reached, missed = bounds[:4]
    for pivot, mass in zip(pivots, masses, strict=True):
        enough = _mass.reaches(mass, goal)
        reached = _mass.select(enough & (pivot > low), mass, reached)
        missed = _mass.select(~enough & (pivot < high), mass, missed)
        low = jnp.where(enough, jnp.maximum(pivot, low), low)
        high = jnp.where(enough, high, jnp.minimum(pivot, high))
    hit = (low == pivots[0]) & (high == pivots[1])
    after_miss = jnp.where(bounds.window < _THIRD, _THIRD, _WINDOW)
    return bounds._replace(
        low=low,
        high=high,
        reached=reached,
        missed=missed,
        window=jnp.where(hit, bounds.window / 4, after_miss),
        step=4 * bounds.step,
    )


def _pivots(
    rows: _Rows, goal: Mass, bounds: _Bounds, turn: Array | int = 0, *, ids: bool = False
) -> list[Array]:
    """Returns two numbers between the bounds, on both sides of where the target is expected."""
    low, high, window = bounds.low, bounds.high, bounds.window
    if ids:
        least, most = low.astype(jnp.float32), high.astype(jnp.float32)
    else:
        least, most = rows.raw(low), jnp.minimum(rows.raw(high), rows.given.raw_max)
    between = _mass.to_float(_mass.subtract(bounds.reached, bounds.missed))
    above = _mass.to_float(_mass.subtract(bounds.reached, goal)) / between
    thirds = window >= _THIRD
    ends = window / 4, 1 - window / 4
    parts = (
        jnp.where(thirds, _THIRD, jnp.maximum(above - window, ends[0])),
        jnp.where(thirds, 1 - _THIRD, jnp.minimum(above + window, ends[1])),
    )
    unbounded = least == -jnp.inf
    middle = mean(low, high)
    by_number = mean(low, middle), middle
    pivots = []
    for part, steps, number in zip(parts, (2.0, 1.0), by_number, strict=True):
        place = jnp.where(unbounded, most - steps * bounds.step, least + part * (most - least))
        by_value = jnp.floor(place).astype(jnp.int32) if ids else rows.number(place)
        pivots.append(jnp.where(turn < _TURNS_BY_VALUE, by_value, number))
    return _between(bounds, *pivots)


def _between(bounds: _Bounds, first: Array, second: Array) -> list[Array]:
    """Returns two numbers moved between the bounds, from `low + 1` to `high - 1`."""
    first = jnp.clip(first, bounds.low + 1, bounds.high - 1)
    return [first, jnp.clip(second, first, bounds.high - 1)]


def _counts(rows: _Rows, tokens: _Tokens, pivots: list[Any]) -> list[Mass]:
    """Returns the numbers of tokens from each pivot up."""

    def step(number: Array, counts: list[Array]) -> list[Array]:
        for value in _vectors(tokens.values, number):
            kept = [value >= pivot for pivot in pivots]
            counts = [n + of.astype(jnp.int32) for n, of in zip(counts, kept, strict=True)]
        return counts

    nothing = [_nothing(rows).rest] * len(pivots)
    return [_number_of(count) for count in _steps(rows.vocab, step, nothing)]


def _masses(rows: _Rows, tokens: _Tokens, pivots: list[Any], *, exact: bool) -> list[Mass]:
    """Returns the masses of the tokens from each pivot up, without `exact` of the coarse words."""

    def step(number: Array, sums: list[_Sum]) -> list[_Sum]:
        refs = (tokens.coarse, tokens.rest) if exact else (tokens.coarse,)
        values = _vectors(tokens.values, number)
        words = [*zip(*(_vectors(ref, number) for ref in refs), strict=True)]
        sums = list(sums)
        for some in _together(_VECTORS):
            for place, pivot in enumerate(pivots):
                sums[place] = sums[place].add(_from(pivot, values[some], words[some]))
        return sums

    sums = _steps(rows.vocab, step, [_nothing(rows)] * len(pivots))
    return [sum_.mass() for sum_ in sums]


def _together(number: int) -> list[slice]:
    """Returns slices of a number of vectors, whose coarse words add up within 32 bits."""
    return [slice(start, start + _TOGETHER) for start in range(0, number, _TOGETHER)]


def _from(pivot: Any, values: list[Array], words: list[Any]) -> Iterator[list[Array]]:
    """Returns the words of the vectors, 0 for tokens below a pivot."""
    for value, of in zip(values, words, strict=True):
        kept = value >= pivot
        yield [jnp.where(kept, word, 0) for word in of]


class _Sum(NamedTuple):
    """A sum of weights in each lane, `2**32 * high + 2**16 * low + rest` units, int32."""

    high: Array
    low: Array
    rest: Array

    def add(self, words: Iterable[Sequence[Array]]) -> "_Sum":
        """Returns the sum with the words of some vectors, coarse ones alone or both of each."""
        coarse: Any = 0
        rest: Any = self.rest
        for of in words:
            coarse += of[0]
            rest += of[1] if of[1:] else 0
        high = self.high + lax.shift_right_logical(coarse, _REST_BITS)
        low = self.low + (coarse & _REST) + (rest >> _REST_BITS)
        return _Sum(high, low, rest & _REST)

    def mass(self) -> Mass:
        """Returns the mass of all lanes, in each of them."""
        high, low, rest = map(_over_lanes, self)
        above = lax.bitcast_convert_type(low >> _REST_BITS, jnp.uint32)  # may be negative
        words = [lax.bitcast_convert_type(x, jnp.uint32) for x in (high, low << _REST_BITS, rest)]
        middle = Mass(words[0] + above, words[1])
        return _mass.add(middle, Mass(jnp.zeros_like(above), words[2]))


_REST = 2**_REST_BITS - 1


def _nothing(rows: _Rows) -> _Sum:
    zeros = jnp.zeros_like(rows.given.row_max, jnp.int32)
    return _Sum(zeros, zeros, zeros)


def _number_of(counts: Array) -> Mass:
    """Returns the counts of all lanes, as a mass."""
    total = lax.bitcast_convert_type(_over_lanes(counts), jnp.uint32)
    return Mass(jnp.zeros_like(total), total)


def _over_lanes(x: Array) -> Array:
    """Returns the sum of all lanes in each of them."""
    return jnp.broadcast_to(jnp.sum(x, axis=1, keepdims=True, dtype=jnp.int32), x.shape)


def _load(rows: _Rows, tokens: _Tokens, before: Cut | None) -> None:
    """Computes the values of the tokens up to a cut, or of all."""

    def step(number: Array, nothing: Array) -> Array:
        values = _read(rows, number)
        if before is not None:
            kept = map(functools.partial(is_kept, cut=before), values, _ids(rows, number))
            values = [jnp.where(of, x, -jnp.inf) for of, x in zip(kept, values, strict=True)]
        _write(tokens.values, number, values)
        return nothing

    _steps(rows.vocab, step, np.int32(0))


def _weigh(rows: _Rows, tokens: _Tokens) -> Mass:
    """Computes what the tokens weigh, and returns the mass of all."""

    def step(number: Array, total: _Sum) -> _Sum:
        words = [_words(*of) for of in _weighed(rows, number, _read(rows, number))]
        for ref, of in zip((tokens.coarse, tokens.rest), zip(*words, strict=True), strict=True):
            _write(ref, number, of)
        for some in _together(_VECTORS):
            total = total.add(words[some])
        return total

    return _steps(rows.vocab, step, _nothing(rows)).mass()


def _read(rows: _Rows, number: Array) -> list[Array]:
    """Returns the logits of a step, -inf where a token may not come."""
    vectors = [rows.read(x.astype(jnp.float32)) for x in _vectors(rows.x, number)]
    if rows.mask is None:
        return vectors
    words = jnp.split(rows.mask[:, span(number, _STEP // WORD)], _VECTORS // WORD, axis=1)
    allowed = (_bits.is_set(words[place // WORD], place % WORD) for place in range(_VECTORS))
    return [*map(_bits.masked, vectors, allowed)]


def _weighed(rows: _Rows, number: Array, vectors: list[Array]) -> list[tuple[Array, Array]]:
    """Returns the weights of the vectors of a step, and the shifts of their chunks."""
    lane = lax.broadcasted_iota(jnp.int32, rows.given.row_max.shape, 1)
    shifts = _of_step(rows.shifts, number, _STEP // CHUNK)
    found = []
    for place, x in enumerate(vectors):
        chunk, start = divmod(place * LANES, CHUNK)
        shift = shifts[chunk]
        found.append((weights(x, start + lane, rows.given.row_max, shift), shift))
    return found


def _weight(coarse: Array, rest: Array, shift: Array) -> Array:
    """Returns the weight at a shift that two words stand for."""
    return ((coarse << shift) >> (_mass.NO_SHIFT - _REST_BITS)) + (rest >> (_mass.NO_SHIFT - shift))


def _words(weight: Array, shift: Array) -> tuple[Array, Array]:
    """Returns two words, `2**16 * coarse + rest`, of weights that were counted at a shift."""
    half = (1 << shift) >> 1
    coarse = ((weight << (_mass.NO_SHIFT - _REST_BITS)) + half) >> shift
    return coarse, (weight << (_mass.NO_SHIFT - shift)) - (coarse << _REST_BITS)


def _weigh_kept(rows: _Rows, tokens: _Tokens, cut: Cut, sums_ref: Any, count_ref: Any) -> None:
    """Adds up the weights of the tokens up to a cut, by chunk, and counts them."""
    cut = cut._replace(logit=jnp.maximum(cut.logit, _LEAST))  # masked tokens are no part
    size = _STEP // CHUNK
    steps = np.int32(LANES // size)

    def step(number: Array, count: Array) -> Array:
        shifts = _of_step(rows.shifts, number, size)
        vectors = []
        words = (_vectors(ref, number) for ref in (tokens.coarse, tokens.rest))
        every = zip(_read(rows, number), _ids(rows, number), *words, strict=True)
        for place, (x, ids, coarse, rest) in enumerate(every):
            kept = is_kept(x, ids, cut)
            weight = _weight(coarse, rest, shifts[place * LANES // CHUNK])
            vectors.append(jnp.where(kept, weight, 0))
            count += kept.astype(jnp.int32)
        sums = reduced(jnp.sum, by_chunk(jnp.add, vectors), 1)
        sums = jnp.concatenate([sums, jnp.zeros_like(count)[:, size:]], axis=1)
        lanes, turned = span(lax.div(number, steps), LANES), lax.rem(number, steps)
        sums = pltpu.roll(sums, turned * size, 1)
        sums_ref[:, lanes] = jnp.where(turned == 0, sums, sums_ref[:, lanes] + sums)
        return count

    count_ref[...] = _steps(rows.vocab, step, _nothing(rows).rest)


def _of_step(ref: Any, number: Array, size: int) -> list[Array]:
    """Returns the columns of a step, of an array to which each step adds `size` of them."""
    steps = np.int32(LANES // size)
    vector = ref[:, span(lax.div(number, steps), LANES)]
    # The lanes of a slice must be static.
    vector = pltpu.roll(vector, LANES - lax.rem(number, steps) * size, 1)
    columns = jnp.split(vector[:, :size], size, axis=1)
    return [jnp.broadcast_to(column, vector.shape) for column in columns]


def _load_ids(rows: _Rows, tokens: _Tokens, which: Array, logit: Array) -> None:
    """Ranks the tokens of a logit by id: their values become minus their ids."""

    def step(number: Array, nothing: Array) -> Array:
        values = []
        for value, ids in zip(_vectors(tokens.values, number), _ids(rows, number), strict=True):
            others = jnp.where(value > logit, jnp.inf, -jnp.inf)
            ranked = jnp.where(value == logit, -ids.astype(jnp.float32), others)
            values.append(jnp.where(which, ranked, value))
        _write(tokens.values, number, values)
        return nothing

    _steps(rows.vocab, step, np.int32(0))


def _steps(vocab: int, step: Callable[..., Any], state: Any) -> Any:
    return lax.fori_loop(np.int32(0), np.int32(pl.cdiv(vocab, _STEP)), step, state)


def _vectors(ref: Any, number: Array) -> list[Array]:
    return jnp.split(ref[:, span(number, _STEP)], _VECTORS, axis=1)


def _write(ref: Any, number: Array, vectors: Sequence[Array]) -> None:
    ref[:, span(number, _STEP)] = jnp.concatenate(vectors, axis=1)


def _ids(rows: _Rows, number: Array) -> list[Array]:
    """Returns the ids of the tokens of a step."""
    first = number * _STEP + lax.broadcasted_iota(jnp.int32, rows.given.row_max.shape, 1)
    return [first + place * LANES for place in range(_VECTORS)]


def _any(which: Array) -> Array:
    return jnp.max(which.astype(jnp.int32)) > 0
