"""Where the project and its golden files are."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
# The README, and every page of the documentation that is written by hand.
_MADE = {ROOT / "docs" / "generated", ROOT / "docs" / "_build"}
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if not _MADE & set(p.parents)),
]
