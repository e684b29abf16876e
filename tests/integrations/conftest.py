"""The environment of clients: JAX promotes types by its default rules, and Keras uses JAX."""

import contextlib
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
sys.path.append(str(Path(__file__).parents[2] / "examples/integrations"))

import jax
import pytest

pytest.register_assert_rewrite("adapter")


PROMOTION = {"jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"}


@pytest.fixture(scope="module", autouse=True)
def _standard_promotion():
    before = {name: getattr(jax.config, name) for name in PROMOTION}
    for name, value in PROMOTION.items():  # in all threads, since some clients start several
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def compilations():
    """Returns a context that yields the list of programs compiled inside."""

    @contextlib.contextmanager
    def listened():
        found = []

        def listener(event, duration, **_):
            if event == "/jax/core/compile/backend_compile_duration":
                found.append(duration)

        jax.monitoring.register_event_duration_secs_listener(listener)
        try:
            yield found
        finally:
            jax.monitoring.unregister_event_duration_listener(listener)

    return listened
