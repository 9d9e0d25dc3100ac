"""The published tables: files of published/, one a table, with the source of every figure."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

FOLDER = pathlib.Path(__file__).parent / "published"
# In the order of the page; also the names of the files.
NAMES = ("table4", "table7", "table8", "figure5", "table6", "table5")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column and what of ours fills it.

    Attributes:
      name: as printed above it.
      benchmark: name of the benchmark; "" if no program scores it.
      figure: its metric in results.json, such as "official/mean_of_3/f1".
      scale: our figure times this is in the scale of the column.
      digits: after the decimal point.
    """

    name: str
    benchmark: str
    figure: str
    scale: float
    digits: int


@dataclasses.dataclass(frozen=True)
class System:
    """A row.

    Attributes:
      system: its name.
      source: key of `PaperTable.sources`.
      figures: one per column, as printed, with marks behind them; "" for none.
    """

    system: str
    source: str
    figures: Sequence[str]


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
      name: of the file.
      title: of the table.
      about: what was measured and how; sentences.
      columns: without that of the names.
      rows: the systems.
      sources: key → where figures were published.
      marks: mark behind a figure → its footnote.
      notes: other footnotes.
    """

    name: str
    title: str
    about: str
    columns: Sequence[Column]
    rows: Sequence[System]
    sources: Mapping[str, str]
    marks: Mapping[str, str]
    notes: Sequence[str]


def load() -> list[PaperTable]:
    """Reads all tables, in the order of NAMES."""
    return [_read(name) for name in NAMES]


def _read(name: str) -> PaperTable:
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    columns = [Column(**column) for column in content.pop("columns")]
    rows = [System(**row) for row in content.pop("rows")]
    return PaperTable(name, columns=columns, rows=rows, **content)
