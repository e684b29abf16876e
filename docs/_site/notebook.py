"""Makes a notebook of the tutorial, whose code cells are the examples of the page."""

import doctest
import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files
from nbformat import v4

PAGE, NOTEBOOK = "tutorial.md", "tutorial.ipynb"
CODE = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)[^)]*\)")  # to other pages, which the notebook lacks


def on_files(files: Files, config: Any) -> Files:
    """Adds the notebook to the site."""
    text = (Path(config.docs_dir) / PAGE).read_text()
    files.append(File.generated(config, NOTEBOOK, content=nbformat.writes(notebook(text))))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links the notebook from the first paragraph of the page."""
    if page.file.src_uri != PAGE:
        return markdown
    first, rest = markdown.split("\n\n## ", 1)
    return f"{first} It is also [a notebook]({NOTEBOOK}).\n\n## {rest}"


def notebook(markdown: str) -> Any:
    """Returns the notebook of a page: text cells, with code cells in between."""
    cells = []
    for number, part in enumerate(CODE.split(markdown)):
        if number % 2:
            cells += code_cells(part)
        elif text := LINK.sub(r"\1", part).strip():
            cells.append(v4.new_markdown_cell(text))
    return v4.new_notebook(cells=cells)


def code_cells(examples: str) -> list[Any]:
    """Returns the cells of doctest examples, each of which ends with an output."""
    cells, source = [], ""
    parsed = doctest.DocTestParser().get_examples(examples)
    for example in parsed:
        source += example.source
        if example.want or example is parsed[-1]:
            tags = ["raises-exception"] if example.exc_msg else []
            cells.append(v4.new_code_cell(source.strip(), metadata={"tags": tags}))
            source = ""
    return cells
