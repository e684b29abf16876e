"""The layers of docs/design.md and the docstrings: checks of every file and public function."""

import ast
import inspect
from pathlib import Path

import pytest

import jaxsample

ROOT = Path(__file__).parent.parent / "jaxsample"
FILES = sorted(ROOT.rglob("*.py"))


def imported(path):
    """Returns the modules of the library that a file imports, as paths relative to the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxsample"):
            base = node.module.split(".")[1:]
            for alias in node.names:
                here = "/".join([*base, alias.name])
                is_module = (ROOT / f"{here}.py").exists() or (ROOT / here).is_dir()
                found.add(here if is_module else "/".join(base))
    return found - {""}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_folders_import_no_public_module(path):
    room = path.relative_to(ROOT).parts[0]
    private, kernels = ("_core", "_tpu", "_gpu"), ("_tpu", "_gpu")
    if room in private:
        assert not {name for name in imported(path) if not name.startswith(private)}
    if room not in kernels and path.name not in ("_kernels.py", "_scan.py", "_search.py"):
        assert not {name for name in imported(path) if name.startswith(kernels)}


def test_no_file_imports_itself_through_others():
    graph = {
        str(path.relative_to(ROOT).with_suffix("")): imported(path)
        for path in FILES
        if path.name != "__init__.py"
    }
    done = set()
    while ready := {name for name in graph if name not in done and graph[name] <= done}:
        done |= ready
    assert done == graph.keys()


FUNCTIONS = [f for name in jaxsample.__all__ if inspect.isfunction(f := getattr(jaxsample, name))]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_docstring_has_every_argument_and_section_once(function):
    doc = inspect.getdoc(function)
    head, rest = doc.split("\n\nReturns:\n")
    for name in inspect.signature(function).parameters:
        assert head.count(f"\n  {name}: ") == 1
    assert rest.count("\n\nRaises:\n  ") == 1
    assert "\n\n>>> " in rest
    assert not head.startswith((" ", "\n", "What", "Those"))
