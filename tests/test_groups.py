"""Rows that need more work are processed in groups, without affecting other rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsample._core import _groups
from jaxsample._core._groups import update_rows


@pytest.mark.parametrize("rows", [0, 1, 4, 13])
def test_only_rows_that_need_it_are_updated(rows):
    x = jnp.arange(3 * rows, dtype=jnp.int32).reshape(rows, 3)
    before = {"sum": jnp.full(rows, -1), "row": jnp.full((rows, 3), -1)}

    def work(needed, x, *, grouped):
        assert grouped
        assert len(x) <= 4
        return {"sum": jnp.sum(x, axis=-1), "row": x}

    @jax.jit
    def updated(needed):
        return update_rows(work, needed, before, False, x)

    rng = np.random.default_rng(0)
    for share in (0, 0.1, 0.5, 1):
        needed = rng.random(rows) < share
        got = updated(needed)
        np.testing.assert_array_equal(got["sum"], np.where(needed, x.sum(axis=-1), -1))
        np.testing.assert_array_equal(got["row"], np.where(needed[:, None], x, -1))


def test_only_as_many_groups_run_as_the_rows_need(monkeypatch):
    left = []

    def counted(going, body, start, loop=jax.lax.while_loop):
        def turn(state):
            jax.debug.callback(lambda needed: left.append(int(needed.sum())), state[1])
            return body(state)

        return loop(going, turn, start)

    monkeypatch.setattr(_groups.lax, "while_loop", counted)
    needed = np.arange(50) % 6 == 0  # nine rows, three groups of four
    work = lambda needed, x, *, grouped: 2 * x  # noqa: E731
    x = jnp.arange(50)
    got = jax.jit(lambda needed, x: update_rows(work, needed, x, False, x))(needed, x)
    jax.effects_barrier()
    np.testing.assert_array_equal(got, np.where(needed, 2 * x, x))
    assert sorted(left) == [1, 5, 9]


def test_a_mapped_axis_is_an_axis_of_rows():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    needed = jnp.asarray(np.random.default_rng(1).random((2, 3)) < 0.5)
    work = lambda needed, x, *, grouped: jnp.sum(x, axis=-1)  # noqa: E731
    function = lambda needed, x: update_rows(work, needed, x[..., 0], False, x)  # noqa: E731
    want = jax.jit(function)(needed, x)
    np.testing.assert_array_equal(jax.jit(jax.vmap(function))(needed, x), want)
