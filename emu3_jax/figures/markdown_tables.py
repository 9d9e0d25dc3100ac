"""Tables as Markdown."""

import re
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of Markdown cells; all columns but the first are aligned to the right."""
    rules = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rules, *rows]) + "\n"


def escaped(text: str) -> str:
    """Returns plain text as Markdown that shows it unchanged, also in a cell."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", text)
