"""Functions of installed packages, compiled from their source.

Importing the packages themselves would require their dependencies, which the functions do not use.
"""

import __future__

import ast
import importlib.metadata
from pathlib import Path
from typing import Any


def borrow(package: str, path: str, *names: str, **given: Any) -> list[Any]:
    """Returns functions or classes of a source file, with all that they use of that file.

    Args:
      package: the name of the distribution, as for `pip`.
      path: the path of the file in the package.
      names: the names of the functions or classes.
      given: replacements for the names that the file imports.

    Raises:
      importlib.metadata.PackageNotFoundError: if the package is not installed.
      LookupError: if the file does not define a name.
    """
    file = str(importlib.metadata.distribution(package).locate_file(path))
    tree = ast.parse(Path(file).read_text())
    defined = {name: node for node in tree.body for name in _defined_by(node)}
    if missing := [name for name in names if name not in defined]:
        raise LookupError(f"{package}/{path} has no {missing[0]}")

    needed: set[str] = set()
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in defined and name not in needed:
            needed.add(name)
            nodes = ast.walk(defined[name])
            wanted += [node.id for node in nodes if isinstance(node, ast.Name)]
    tree.body = [node for node in tree.body if needed.intersection(_defined_by(node))]

    lazy = __future__.annotations.compiler_flag
    exec(compile(tree, file, "exec", flags=lazy, dont_inherit=True), given)
    return [given[name] for name in names]


def _defined_by(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []
