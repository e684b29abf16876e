"""The code of README and of the pages that is not a doctest runs as written."""

import contextlib
import io
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsample

ROOT = Path(__file__).parents[1]


def code_of(page):
    """Returns the first code block of a page that is not a doctest."""
    return re.search(r"```python\n((?!>>>).*?)```", (ROOT / page).read_text(), re.DOTALL)[1]


def test_the_example_of_the_readme_prints_its_tokens():
    code, printed = code_of("README.md"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert code.endswith(f"  # {printed.getvalue()}")


@pytest.mark.slow
def test_the_decoding_loop_runs_as_written():
    def model(cache, tokens, position):
        logits = jax.random.normal(jax.random.fold_in(jax.random.key(0), position), (50,))
        return jnp.broadcast_to(logits, (3, 50)), cache

    scope = {"model": model, "END": 0}
    exec(code_of("docs/guides/servers.md"), scope)
    start, seeds, params = jnp.zeros((3, 50)), scope["seeds"], scope["params"]
    tokens = np.asarray(scope["decode"]((), start, seeds, params, 20))
    assert tokens.shape == (3, 256)
    for row in tokens:  # no tokens after the end, and at least one row with some before it
        assert (row[20:] == 0).all()
        assert (row[np.argmax(row == 0) :] == 0).all()
    assert (tokens != 0).any()


def test_requests_are_admitted_as_written():
    scope = {}
    exec(code_of("docs/guides/requests.md"), scope)
    np.testing.assert_array_equal(
        np.flatnonzero(scope["params"].temperature == np.float32(0.7)), [3]
    )


def test_the_reference_has_every_public_name_once():
    pages = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    names = re.findall(r"^::: jaxsample\.(\w+)$", pages, re.MULTILINE)
    assert sorted(names) == sorted(jaxsample.__all__)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_gallery_shows_every_rule():
    text = (ROOT / "examples/gallery.py").read_text()
    modules = [f"jaxsample.{name}" for name in ("scaling", "truncation", "penalties")]
    rules = [name for name in jaxsample.__all__ if module_of(name) in modules]
    assert rules
    assert not [name for name in rules if f"js.{name}" not in text]


def module_of(name):
    return getattr(getattr(jaxsample, name), "__module__", None)
