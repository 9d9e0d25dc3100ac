"""How docs/ becomes a site; `bash launch/docs.sh` builds and serves it."""

import os
import pathlib
import re
import subprocess
import sys

DOCS = pathlib.Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "generator")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # of the processes that write pages

import repository_pages  # noqa: E402

import emu3_jax  # noqa: E402

project = "emu3_jax"
author = "emu3_jax contributors"
version = release = emu3_jax.__version__
html_title = f"{project} {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "generator"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = html_show_copyright = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4  # as GitHub names headings, so that links work in both

default_role = "code"  # `name` in a docstring
napoleon_use_ivar = True  # fields are told once, in the text of their class
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80

# Some hosts refuse programs, though a browser opens the page.
linkcheck_ignore = [r"https://doi\.org/.*"]
linkcheck_anchors = False
linkcheck_timeout = 20


def setup(app) -> None:
    """Writes the generated pages first, and mends links that lead out of docs/."""
    subprocess.run([sys.executable, DOCS / "generator" / "site_pages.py"], check=True)

    def mend(app, docname: str, source: list[str]) -> None:
        folder = (DOCS / docname).parent
        if not docname.startswith("generated/"):
            source[0] = repository_pages.with_links(source[0], folder, folder)

    def plain(app, what: str, name: str, value, options, lines: list[str]) -> None:
        # Napoleon takes what stands before a colon in the first line for a type.
        if what in ("attribute", "data", "property"):
            lines.insert(0, "")

    def short(app, what: str, name: str, value, options, signature: str | None, returns):
        # Fields that linen gives to every module say nothing about this one.
        if signature and ", parent: " in signature:
            return re.sub(r", parent: .*\)$", ")", signature, flags=re.DOTALL), returns
        return None

    app.connect("source-read", mend)
    app.connect("autodoc-process-signature", short)
    app.connect("autodoc-process-docstring", plain, priority=400)
