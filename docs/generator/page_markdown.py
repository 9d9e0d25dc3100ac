"""Markdown of generated pages."""

import re
from collections.abc import Iterable

_CODE = re.compile(r"(`[^`]*`)")


def page(title: str, body: Iterable[str]) -> str:
    """A page with its heading."""
    return "\n".join([f"# {title}\n", *body])


def escaped(text: str) -> str:
    """Plain text in which only `code` is marked."""
    return "".join(
        part if part.startswith("`") else re.sub(r"([<>*_\[\]{}\\])", r"\\\1", part)
        for part in _CODE.split(text)
    )


def definition(named: Iterable[tuple[str, str]], text: str) -> str:
    """Names with defaults ("" for none), and what they mean."""
    terms = ", ".join(f"`{name}` (`{value}`)" if value else f"`{name}`" for name, value in named)
    return f"{terms}\n: {escaped(' '.join(text.split()))}\n"
