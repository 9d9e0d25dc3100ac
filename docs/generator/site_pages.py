"""Writes the generated pages: python docs/generator/site_pages.py [--check]

All of docs/generated/ is made anew from the code. What is public and has no documentation is an
error, as it is with --check, which writes nothing.
"""

import shutil
import sys

import command_pages
import config_pages
import python_pages
import repository_pages


def main() -> None:
    """Writes the pages, or ends with the list of what has no documentation."""
    commands = command_pages.described()
    problems = command_pages.problems(commands) + config_pages.problems() + python_pages.problems()
    if problems:
        sys.exit("\n".join(problems))
    if "--check" in sys.argv:
        return
    pages = command_pages.pages(commands) | config_pages.pages() | python_pages.pages()
    pages |= repository_pages.pages()
    shutil.rmtree(repository_pages.GENERATED, ignore_errors=True)
    for name, text in pages.items():
        path = repository_pages.GENERATED / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
