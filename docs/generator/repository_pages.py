"""Pages of the site that are files elsewhere in the repository, and notebooks as pages."""

import json
import os
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = DOCS / "generated"
# Files outside docs/ that pages link to.
FILES = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/photographs/README.md",
    "examples/emoji_styles/README.md",
    "assets/LICENSES/README.md",
)  # fmt: skip
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
# A link whose text is the name of a file, which a page of the site does not have.
_FILE_NAME = re.compile(r"\[(?:\w+/)*(\w+)\.md\]\(")


def page_of(path: pathlib.Path) -> pathlib.Path:
    """Where a file of the repository is in the site; a folder stands for its README."""
    path = path / "README.md" if path.is_dir() else path
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
    return GENERATED / "repository" / name.replace("/", "_") if name in FILES else path


def with_links(text: str, source: pathlib.Path, page: pathlib.Path) -> str:
    """Markdown of the folder `source`, with relative links from the folder `page`.

    The text "measurements.md" of a link becomes "measurements".
    """

    def link(found: re.Match) -> str:
        target = (source / found[1]).resolve()
        if ":" in found[1] or not target.exists():
            return found[0]
        return f"]({os.path.relpath(page_of(target), page)}{found[2] or ''})"

    text = _FILE_NAME.sub(lambda found: f"[{found[1].replace('_', ' ')}](", text)
    return _LINK.sub(link, text)


def pages() -> dict[str, str]:
    """File → Markdown of each page."""
    made = {}
    for name in FILES:
        path, page = ROOT / name, page_of(ROOT / name)
        text = with_links(path.read_text(encoding="utf-8"), path.parent, page.parent)
        made[page.relative_to(GENERATED).as_posix()] = text
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{path.stem}.md"] = _notebook(path)
    return made


def _notebook(path: pathlib.Path) -> str:
    """The cells one after the other; outputs are not shown."""
    cells = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        cells.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    cells.insert(1, f"The notebook itself: [{path.name}](../../notebooks/{path.name}).")
    return "\n\n".join(cells) + "\n"
