"""Replaces the docstrings of public functions by their run-time versions, for the API pages.

The wrapper of public functions appends the arguments and errors that all functions share, which are
not in the source. The examples at the end of a docstring become a section.
"""

import inspect
import textwrap
from typing import Any

import griffe

import jaxsample


class Docstrings(griffe.Extension):
    """Replaces the docstrings of the source."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Completes the docstring of a function and adds a heading before the examples."""
        if not obj.docstring:
            return
        public = getattr(jaxsample, obj.name, None)
        if inspect.isfunction(public) and public.__module__ == obj.parent.path:
            obj.docstring.value = inspect.getdoc(public)
        text, found, examples = obj.docstring.value.partition("\n>>> ")
        if found:
            examples = textwrap.indent(f">>> {examples}", "    ")
            obj.docstring.value = f"{text}\nExamples:\n{examples}"
