"""Sheets as a page of HTML, as Markdown and as LaTeX."""

import html
import re
from collections.abc import Sequence

from emu3_jax.evaluate.tables.sheets import Cell, Sheet
from emu3_jax.figures import markdown_tables, page

TITLE = "Benchmarks"
SUMMARY = (
    "The tables of the Emu3 paper (arXiv 2409.18869v1) with rows of our own runs. Every row states "
    "its source; figures are comparable only where prompts, rules and sampling are the same."
)
# In braces, [ is not read as the argument of the line break before it.
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "[": "{[}", "<": "$<$", ">": "$>$", "→": r"$\rightarrow$", "α": r"$\alpha$", "Σ": r"$\Sigma$",
    "†": r"\dag{}", "‡": r"\ddag{}", "§": r"\S{}", "¶": r"\P{}", "–": "--",
}  # fmt: skip
ROOMY = 10  # columns of a page without small print
# A wide table shrinks to the page; a narrow one keeps its size.
LATEX_FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
LATEX_HEAD = "% Needs \\usepackage{booktabs,graphicx}.\n"


def as_html(sheets: Sequence[Sheet]) -> str:
    """A page that loads no other file."""
    sections = []
    for sheet in sheets:
        rows = []
        for heading, lines in sheet.groups:
            rows += [[html.escape(heading)]] * bool(heading)
            rows += [[_html_cell(cell) for cell in line] for line in lines]
        notes = "".join(
            f"<p>{f'<sup>{html.escape(mark)}</sup>' * bool(mark)}{html.escape(text)}</p>"
            for mark, text in sheet.notes
        )
        style = "wrapped dense" if len(sheet.columns) > ROOMY else "wrapped"
        table = f'<div class="{style}">{page.table(sheet.columns, rows)}</div>' if rows else ""
        notes = f'<div class="notes">{notes}</div>'
        sections.append(page.section(sheet.anchor, sheet.title, sheet.lead, table, notes))
    links = [(sheet.anchor, sheet.title) for sheet in sheets]
    top = page.head(TITLE, SUMMARY, links)
    return page.page(TITLE, f"{top}<main>{''.join(sections)}</main>")


def _html_cell(cell: Cell) -> str:
    text = html.escape(cell.text)
    text = f"<b>{text}</b>" if cell.strong else text
    text += f"<sup>{html.escape(cell.marks)}</sup>" if cell.marks else ""
    return text + "".join(f"<br><small>{html.escape(detail)}</small>" for detail in cell.details)


def as_markdown(sheets: Sequence[Sheet]) -> str:
    """Tables in the Markdown of GitHub."""
    escaped = markdown_tables.escaped
    parts = [f"# {TITLE}\n\n{escaped(SUMMARY)}\n"]
    for sheet in sheets:
        parts.append(f"\n## {escaped(sheet.title)}\n\n{escaped(sheet.lead)}\n\n")
        lines = [
            [_markdown_cell(cell) for cell in line] for _, rows in sheet.groups for line in rows
        ]
        if lines:
            parts.append(markdown_tables.table([escaped(name) for name in sheet.columns], lines))
        for mark, text in sheet.notes:
            sign = f"<sup>{escaped(mark)}</sup> " if mark else ""
            parts.append(f"\n{sign}{escaped(text)}\n")
    return "".join(parts)


def _markdown_cell(cell: Cell) -> str:
    text = markdown_tables.escaped(cell.text)
    text = f"**{text}**" if cell.strong else text
    text += f"<sup>{markdown_tables.escaped(cell.marks)}</sup>" if cell.marks else ""
    return " ".join([text, *map(markdown_tables.escaped, cell.details)])


def as_latex(sheets: Sequence[Sheet]) -> str:
    """Floating tables of booktabs, each with its footnotes below it."""
    return LATEX_HEAD + "\n".join(_latex_table(sheet) for sheet in sheets)


def _latex_table(sheet: Sheet) -> str:
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        f"\\caption{{{_tex(sheet.title)}. {_tex(sheet.lead)}}}",
        f"\\label{{tab:{sheet.anchor}}}",
    ]
    groups = [rows for _, rows in sheet.groups if rows]
    if groups:
        lines += [
            LATEX_FIT,
            f"\\begin{{tabular}}{{l{'r' * (len(sheet.columns) - 1)}}}",
            r"\toprule",
            _latex_row(map(_tex, sheet.columns)),
        ]
        for rows in groups:
            lines.append(r"\midrule")
            lines += [_latex_row(map(_latex_cell, row)) for row in rows]
        lines += [r"\bottomrule", r"\end{tabular}}"]
    for mark, text in sheet.notes:
        sign = f"\\textsuperscript{{{_tex(mark)}}} " if mark else ""
        lines.append(f"\\par\\raggedright\\footnotesize {sign}{_tex(text)}")
    return "\n".join([*lines, r"\end{table*}", ""])


def _latex_row(cells) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = f"\\textbf{{{_tex(cell.text)}}}" if cell.strong else _tex(cell.text)
    text += f"\\textsuperscript{{{_tex(cell.marks)}}}" if cell.marks else ""
    return " ".join([text, *(f"{{\\scriptsize {_tex(one)}}}" for one in cell.details)])


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, LATEX_SPECIAL)), lambda m: LATEX_SPECIAL[m[0]], text)


# Ending of a file → its form.
FORMS = {".html": as_html, ".md": as_markdown, ".tex": as_latex}
