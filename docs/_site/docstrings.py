"""Reads the docstrings of public functions as they are at run time, for the API pages.

The wrapper of public functions completes them with the arguments and errors that all share, which
the source does not show. The examples at the end of a docstring become a section.
"""

import inspect
import textwrap
from typing import Any

import griffe

import jaxsample


class Docstrings(griffe.Extension):
    """Replaces the docstrings of the source."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Completes the docstring of a function, and gives examples a heading."""
        if not obj.docstring:
            return
        public = getattr(jaxsample, obj.name, None)
        if inspect.isfunction(public) and public.__module__ == obj.parent.path:
            obj.docstring.value = inspect.getdoc(public)
        text, found, examples = obj.docstring.value.partition("\n>>> ")
        if found:
            examples = textwrap.indent(f">>> {examples}", "    ")
            obj.docstring.value = f"{text}\nExamples:\n{examples}"
