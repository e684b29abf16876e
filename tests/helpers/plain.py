"""Plain decoding, one token at a time, over the logits of the positions of drafts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsample import SpeculativeOutput, sample, update_state


def chain(batch, number):
    return np.tile(np.arange(number) - 1, (batch, 1))


def random_tree(rng, batch, number):
    """Returns parents of drafts in random trees with several roots."""
    return np.stack([rng.integers(-1, np.maximum(np.arange(number), 0)) for _ in range(batch)])


def at_nodes(tree, nodes, positions):
    """Returns the params of some rows; `[batch, positions]` params take those of the nodes."""
    rows = np.arange(len(nodes))

    def chosen(leaf):
        each = np.ndim(leaf) > 1 and np.shape(leaf)[1] == positions
        return np.asarray(leaf)[rows, nodes] if each else leaf

    return jax.tree.map(chosen, tree)


def decode(keys, logits, drafts, params, state, parents, rng=None, rate=0.8, **options):
    """Decodes, and replaces drafts by the drawn tokens at a given rate.

    Returns:
      The drafts, the `SpeculativeOutput` of plain decoding, and the state after it.
    """
    batch, positions = logits.shape[:2]
    drafts, rows = np.array(drafts), np.arange(batch)
    node, going, steps = np.zeros(batch, int), np.full(batch, True), []
    step = _step(**options)
    for depth in range(keys.shape[1]):
        given = at_nodes(params, node, positions)
        out = step(keys[:, depth], jnp.asarray(logits)[rows, node], given, state)
        tokens = np.asarray(out.tokens)
        if rng is not None:
            _agree(rng, rate, drafts, parents, node, np.where(going, tokens, -1))
        steps.append(_output(out, np.where(going, node, -1)))
        if state is not None:
            state = update_state(state, out.tokens, going)
        fits = (parents == node[:, None] - 1) & (drafts == tokens[:, None]) & (drafts >= 0)
        going &= fits.any(-1) & (tokens >= 0)
        node = np.where(going, fits.argmax(-1) + 1, 0)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves, 1), *steps)
    return drafts, stacked._replace(num_accepted=(stacked.nodes > 0).sum(-1)), state


@functools.cache
def _step(**options):
    return jax.jit(functools.partial(sample, **options))


def _agree(rng, rate, drafts, parents, node, tokens):
    """Replaces some of the drafts after a node by the token drawn there."""
    for row, token in enumerate(tokens):
        children = np.flatnonzero((parents[row] == node[row] - 1) & (drafts[row] >= 0))
        if token >= 0 and children.size and rng.random() < rate:
            drafts[row, rng.choice(children)] = token


def _output(out, nodes):
    """Returns a column of the output, empty for rows that have ended."""

    def kept(tree, nothing):
        def of_leaf(leaf):
            leaf = np.asarray(leaf)
            reached = nodes.reshape(-1, *[1] * (leaf.ndim - 1)) >= 0
            missing = np.nan if leaf.dtype == np.float32 else nothing
            return np.where(reached, leaf, np.asarray(missing, leaf.dtype))

        return jax.tree.map(of_leaf, tree)

    behind = {"num_kept": 0, "kept_mask": 0}
    return SpeculativeOutput(
        num_accepted=np.zeros(len(nodes), int),
        nodes=nodes,
        **{name: kept(field, behind.get(name, -1)) for name, field in out._asdict().items()},
    )


def assert_equal(got, want):
    for name, a, b in zip(want._fields, got, want, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            jax.tree.map(functools.partial(np.testing.assert_array_equal, err_msg=name), a, b)
