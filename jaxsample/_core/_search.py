"""The search for prefixes of the ranking that end after the candidates.

The definition is in XLA, for groups of rows. Kernels of `_tpu` and `_gpu` find the same prefixes.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsample._core import _chunks, _elementary, _mass, _ranking, _rows, _tiles
from jaxsample._core._bisection import by_logit, search
from jaxsample._core._groups import select, update_rows
from jaxsample._core._kernels import choose
from jaxsample._core._mass import Mass, Scale
from jaxsample._core._ranking import Cut, Kept
from jaxsample._core._rows import Rows
from jaxsample._core._source import Source
from jaxsample._tpu import blocks, masses
from jaxsample._tpu import search as kernels

T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """The parameters of top-k, top-p and min-p, and their order.

    Attributes:
      values: the parameter of each rule, `[...]`: "top_k" int32 in [1, vocab], neutral vocab;
        "top_p" float32 in [0, 1], neutral 1; "min_p" float32 in [0, 1], neutral 0.
      order: groups of rules. The rules of a group are applied jointly to the tokens that the
        previous groups keep.
      greedy: bool `[...]`, the rows that keep only rank 0, or None. They are not a top-k of 1, for
        which programs would contain a search that never runs.
    """

    values: dict[str, Array]
    order: tuple[tuple[str, ...], ...] = dataclasses.field(metadata={"static": True})
    greedy: Array | None = None


def weigh_to(rows: Rows, scale: Scale, cut: Cut | None) -> Kept:
    """Weighs and counts the tokens up to any cut, or all tokens if it is None."""
    keep = () if cut is None else _ranking.up_to(rows, cut)
    sums = _chunks.weigh(rows, scale, *keep)
    again, sums = _rows.read_again_unless_fused(rows, sums, tested=cut is not None)
    counts = _chunks.weigh(again, _chunks.tally(rows), *keep)
    return Kept(sums, jnp.sum(counts, axis=-1, dtype=jnp.int32))


def min_p_cut(rows: Rows, min_p: Array) -> Cut:
    """Returns the cut of min-p alone: all tokens with at least its smallest kept logit."""
    floor = rows.row_max + _elementary.log(min_p)
    return Cut(floor, jnp.full(floor.shape, rows.vocab, jnp.int32))


def dropping(rows: Rows, rules: Rules, names: Iterable[str]) -> Array:
    """Whether any of the named rules can drop tokens of a row."""
    neutral = {"top_k": rows.vocab, "top_p": 1, "min_p": 0}
    found = jnp.full(rows.row_max.shape, False)
    for name in names:
        found |= rules.values[name] != neutral[name]
    return found


def _in_xla(needed: Array, rows: Rows, rules: Rules, *, grouped: bool) -> Cut:
    """Returns the cuts of rows by a search with XLA, for `update_rows`."""
    needed &= dropping(rows, rules, rules.values)
    everything = _ranking.everything(rows)
    return lax.cond(
        jnp.any(needed),
        lambda: _ranking.select(needed, _searched(rows, rules, needed, grouped), everything),
        lambda: everything,
    )


def _searched(rows: Rows, rules: Rules, needed: Array, grouped: bool) -> Cut:
    """Returns the cuts of whole rows, searched for one rule after the other.

    The rules are iterations of one loop, so that a program contains a single search.
    """
    scale = _chunks.probability(rows)
    if grouped:
        scale = _chunks.tabulated(rows, scale)
    names = [name for group in rules.order for name in group]
    firsts = [place == 0 for group in rules.order for place in range(len(group))]
    k = rules.values.get("top_k", jnp.full(needed.shape, rows.vocab, jnp.int32))
    p = rules.values.get("top_p", jnp.ones(needed.shape, jnp.float32))
    floor = min_p_cut(rows, rules.values.get("min_p", jnp.zeros(needed.shape, jnp.float32)))

    def apply(turn: Array, state: tuple[Cut, Cut]) -> tuple[Cut, Cut]:
        def turn_is(which: list[bool]) -> Array:
            return jnp.asarray(which)[turn]

        by_k, by_p, by_min_p = (
            turn_is([name == rule for name in names]) for rule in ("top_k", "top_p", "min_p")
        )
        cut, before = state
        before = _ranking.select(turn_is(firsts), cut, before)
        cut = _ranking.select(by_min_p, _ranking.earlier(floor, cut), cut)
        on = (by_k & (k < rows.vocab)) | (by_p & (p < 1))

        def target(whole: Mass) -> Mass:
            count = Mass(jnp.zeros_like(whole.high), k.astype(jnp.uint32))
            return _mass.select(by_k, count, _mass.fraction(whole, p))

        found = search(rows, scale.or_count(by_k), before, target, needed & on, by_logit(rows))
        return _ranking.select(on, _ranking.earlier(found, cut), cut), before

    everything = _ranking.everything(rows)
    return lax.fori_loop(0, len(names), apply, (everything, everything))[0]


def row_mass(rows: Rows, needed: Array) -> Mass:
    """Returns the mass of all tokens of the needed rows `[...]`; undefined in other rows."""

    def on_tpu(_: Source, rows: Rows, needed: Array, *, interpret: bool) -> tuple[Array, ...]:
        found = masses.row_masses(_inputs(rows, {}, needed), interpret=interpret)
        return tuple(_tiles.unflat(x, needed.shape) for x in found)

    def on_gpu(_: Source, rows: Rows, needed: Array, *, interpret: bool) -> tuple[Array, ...]:
        from jaxsample._gpu.masses import row_masses  # slow to import

        found = row_masses(_inputs_of_gpu(rows, None, needed), interpret=interpret)
        return tuple(x.reshape(needed.shape) for x in found)

    def otherwise(_: Source, rows: Rows, needed: Array) -> tuple[Array, ...]:
        return tuple(_chunks.mass(rows, _chunks.probability(rows)))

    like = (jnp.zeros_like(rows.row_max, jnp.uint32),) * 2
    return Mass(*choose(otherwise, rows.source, rows, needed, tpu=on_tpu, cuda=on_gpu, like=like))


def update_beyond(
    function: Callable[..., T],
    needed: Array,
    results: T,
    rows: Rows,
    rules: Rules,
    *args: Any,
    weighed: bool,
) -> T:
    """Returns `results` with those of `function(rows, cut, kept, *args)` in the needed rows.

    Args:
      function: computes each row independently, from the cut of the prefix that the rules keep and
        from the result of `weigh_to` for it, or None if that was not computed.
      needed: bool `[...]`, whether that prefix ends after the candidates.
      results: a pytree of arrays whose leading axes are those of the rows.
      rows: the logits.
      rules: top-k, top-p and min-p.
      *args: pytrees of arrays whose leading axes are those of the rows.
      weighed: whether a kernel should also compute the result of `weigh_to`.
    """

    def searched(needed: Array, rows: Rows, rules: Rules, *args: Any, grouped: bool) -> T:
        return function(rows, _in_xla(needed, rows, rules, grouped=grouped), None, *args)

    def otherwise(
        _: Source, needed: Array, results: T, rows: Rows, *args: Any
    ) -> tuple[Array, ...]:
        shared = rows.source.shards is not None
        return _leaves(update_rows(searched, needed, results, shared, rows, *args))

    def by_kernel(
        search_rows: Callable[..., tuple[Cut, Kept | None]], *, conditional: bool
    ) -> Callable[..., tuple[Array, ...]]:
        def kernel(
            _: Source,
            needed: Array,
            results: T,
            rows: Rows,
            rules: Rules,
            *args: Any,
            interpret: bool,
        ) -> tuple[Array, ...]:
            def computed() -> T:
                cut, kept = search_rows(needed, rows, rules, weighed, interpret)
                return select(needed, function(rows, cut, kept, *args), results)

            if not conditional:
                return _leaves(computed())
            return _leaves(lax.cond(jnp.any(needed), computed, lambda: results))

        return kernel

    leaves = choose(
        otherwise,
        rows.source,
        *(needed, results, rows, rules, *args),
        tpu=by_kernel(_on_tpu, conditional=True),
        # On a GPU, the host would wait for the condition. Blocks of other rows return at once.
        cuda=by_kernel(_on_gpu, conditional=not weighed),
        like=_leaves(results),
    )
    return jax.tree.unflatten(jax.tree.structure(results), leaves)


def _leaves(tree: Any) -> tuple[Array, ...]:
    return tuple(jax.tree.leaves(tree))


def _on_tpu(
    needed: Array, rows: Rows, rules: Rules, weighed: bool, interpret: bool
) -> tuple[Cut, Kept | None]:
    """Returns the cuts of the needed rows and, if `weighed`, the weights of their kept tokens."""
    inputs = _inputs(rows, rules.values, needed)
    found = kernels.search(inputs, rules.order, weighed=weighed, interpret=interpret)
    return jax.tree.map(lambda x: _tiles.unflat(x, needed.shape), found)


def _on_gpu(
    needed: Array, rows: Rows, rules: Rules, weighed: bool, interpret: bool
) -> tuple[Cut, Kept | None]:
    """As `_on_tpu`, on a GPU."""
    from jaxsample._gpu import search as kernels  # slow to import

    inputs = _inputs_of_gpu(rows, rules.values, needed)
    found = kernels.search(inputs, rules.order, weighed=weighed, interpret=interpret)
    return jax.tree.map(lambda x: x.reshape(*needed.shape, *x.shape[1:]), found)


def _inputs(rows: Rows, values: dict[str, Array], needed: Array) -> blocks.Inputs:
    """Returns the inputs of the kernels for TPUs, with the parameters of the rules."""
    inputs = blocks.Inputs(
        rows.source.logits,
        rows.source.mask,
        _chunks.probability(rows).shifts,
        blocks.Given(rows.row_max, rows.raw_max, rows.beta, *_parameters(rows, values)),
        needed,
    )
    return jax.tree.map(lambda x: _tiles.flat(x, needed.ndim), inputs)


def _inputs_of_gpu(rows: Rows, values: dict[str, Array] | None, needed: Array) -> Any:
    """Returns the inputs of the kernels for GPUs, with the parameters of the rules or without."""
    from jaxsample._gpu.masses import Inputs

    shifts = _chunks.probability(rows).shifts
    inputs = Inputs(rows.source.logits, shifts, needed, rows.row_max, rows.beta)
    if values is not None:
        k, p, floor = _parameters(rows, values)
        inputs = inputs._replace(k=k.astype(jnp.int32), p=p, floor=floor)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[needed.ndim :]), inputs)


def _parameters(rows: Rows, values: dict[str, Array]) -> tuple[Array, Array, Array]:
    """Returns k, p and the floor of min-p of each row, float32; neutral for missing rules."""
    neutral = {"top_k": rows.vocab, "top_p": 1.0, "min_p": 0.0}
    k, p, min_p = (rows.source.per_row(x).astype(jnp.float32) for x in (neutral | values).values())
    return k, p, min_p_cut(rows, min_p).logit
