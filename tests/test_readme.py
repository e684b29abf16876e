import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_the_decoding_loop_runs_as_written():
    code = re.search(r"## A decoding loop\n\n```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 22

    def model(cache, tokens, position):
        logits = jax.random.normal(jax.random.fold_in(jax.random.key(0), position), (50,))
        return jnp.broadcast_to(logits, (3, 50)), cache

    scope = {"model": model, "END": 0}
    exec(code, scope)
    start, seeds, params = jnp.zeros((3, 50)), scope["seeds"], scope["params"]
    tokens = np.asarray(scope["decode"]((), start, seeds, params, 20))
    assert tokens.shape == (3, 256)
    for row in tokens:  # nothing after the end, and something before it in one row at least
        assert (row[20:] == 0).all()
        assert (row[np.argmax(row == 0) :] == 0).all()
    assert (tokens != 0).any()
