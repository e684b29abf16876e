"""Makes pages of README, CHANGELOG and CONTRIBUTING, and adapts links that leave docs/.

On GitHub, the links of a page may point to any file of the repository. The site contains only the
pages and the images of bench/results; links to other files become plain text.
"""

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
LOG = logging.getLogger("mkdocs.hooks")  # a warning fails a strict build
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)([^)#]+)([^)]*)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the files from outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for picture in ROOT.glob("bench/results/*.png"):
        name = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Adapts the links of a page."""
    path = page.file.src_uri
    source = {page: source for source, page in PAGES.items()}.get(path, f"docs/{path}")
    folder = (ROOT / source).parent

    def adapted(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        target = (folder / target).resolve().relative_to(ROOT).as_posix()
        if not (ROOT / target).exists():
            LOG.warning("%s links to %s, which does not exist", source, target)
        target = PAGES.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(target) is None:
            return text
        return f"[{text}]({'../' * path.count('/')}{target}{anchor})"

    return LINK.sub(adapted, markdown)
