"""The environment of clients: JAX promotes types as it does by default, and Keras uses JAX."""

import contextlib
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
sys.path.append(str(Path(__file__).parents[2] / "examples/integrations"))

import jax
import pytest

pytest.register_assert_rewrite("adapter")


@pytest.fixture(scope="module", autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def compilations():
    """Returns a context that gives the list of programs compiled inside."""

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
