"""Tables of the Emu3 paper with our runs: python -m emu3_jax.evaluate.tables RUN ... --output=FILE

Each RUN is a folder that `python -m emu3_jax.evaluate --output=RUN` wrote. The file is a page
(.html), Markdown (.md) or LaTeX (.tex), by its ending. It has tables 4 to 8 and figure 5 of the
paper, and in each a row for every run that was scored on one of its benchmarks: with an interval of
95 % where the figure is a mean of items, the number of items if questions are missing, and how the
model was asked. Benchmarks of questions that two runs share are compared item by item.

Example:
  python -m emu3_jax.evaluate.tables runs/nano/evaluation runs/chat/evaluation --output=tables.html
"""

import pathlib
from collections.abc import Sequence

from emu3_jax.evaluate.tables import paper_tables
from emu3_jax.evaluate.tables.comparison import paired_sheet
from emu3_jax.evaluate.tables.evaluated_runs import read_rows
from emu3_jax.evaluate.tables.forms import FORMS
from emu3_jax.evaluate.tables.sheets import other_sheet, paper_sheet
from emu3_jax.files import write_atomically
from emu3_jax.report.runs import command


def build(runs: Sequence[pathlib.Path], output: pathlib.Path) -> None:
    """Reads the runs and writes the tables.

    Raises:
      ValueError: a run cannot be read or compared, or the ending of `output` is unknown.
    """
    form = FORMS.get(output.suffix)
    if form is None:
        raise ValueError(f"--output={output} must end in one of {', '.join(FORMS)}")
    rows, tables = read_rows(runs), paper_tables.load()
    sheets = [paper_sheet(table, rows) for table in tables]
    sheets += [other_sheet(tables, rows), paired_sheet(tables, rows)]
    write_atomically(output, form([sheet for sheet in sheets if sheet]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with command("evaluate.tables", __doc__, "file to write", arguments) as given:
        build(given.runs, given.output)
        print(f"written: {given.output}")


if __name__ == "__main__":
    main()
