"""What the page says, without its form: published rows, rows of ours, comparisons of runs."""

import dataclasses
import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from emu3_jax.evaluate.benchmarks.registry import QUESTIONS
from emu3_jax.evaluate.tables.evaluated_runs import Row, Scored
from emu3_jax.evaluate.tables.intervals import LEVEL, RESAMPLES, Interval, bootstrap
from emu3_jax.evaluate.tables.paper_tables import Column, PaperTable

NONE = "–"
INTERVAL_NOTE = (
    f"[low, high]: {100 * LEVEL:.0f} % interval of a figure that is the mean or the count of its "
    f"items' scores, by {RESAMPLES:,} bootstrap resamples of the items."
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
      text: plain text.
      marks: of footnotes.
      details: less important texts after it.
      strong: stands out.
    """

    text: str
    marks: str = ""
    details: tuple[str, ...] = ()
    strong: bool = False


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table with its title and footnotes, all plain text.

    Attributes:
      anchor: its name in links.
      title: above it.
      lead: sentences under the title.
      columns: names; that of the first is "".
      groups: (heading, rows); every row has a cell per column.
      notes: (mark, sentence); the mark is "" for a note on the whole table.
    """

    anchor: str
    title: str
    lead: str
    columns: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[Cell]]]]
    notes: Sequence[tuple[str, str]]


def paper_sheet(table: PaperTable, rows: Sequence[Row]) -> Sheet:
    """The published table with a row for each of `rows` that has one of its benchmarks."""
    published = []
    for system in table.rows:
        figures = [_published(figure, table.marks) for figure in system.figures]
        published.append([Cell(system.system), *figures, Cell(system.source)])
    ours, notes = [], []
    columns = table.columns
    filled = [row for row in rows if any(column.benchmark in row.scored for column in columns)]
    for letter, row in zip(_letters(), filled, strict=False):
        cells = [_cell(row.scored.get(column.benchmark), column) for column in columns]
        ours.append([Cell(row.label, strong=True), *cells, Cell(letter)])
        notes.append((letter, protocol(row, columns)))
    if any(text.startswith("[") for line in ours for cell in line for text in cell.details):
        notes.append(("", INTERVAL_NOTE))
    groups = [("Published", published)] + ([("These runs", ours)] if ours else [])
    notes = [*table.sources.items(), *table.marks.items(), *notes]
    notes += [("", note) for note in table.notes]
    names = ["", *(column.name for column in columns), "Source"]
    return Sheet(table.name, table.title, table.about, names, groups, notes)


def other_sheet(tables: Sequence[PaperTable], rows: Sequence[Row]) -> Sheet | None:
    """The benchmarks of `rows` that none of the tables has; None if there are none."""
    known = {column.benchmark for table in tables for column in table.columns}
    cells, notes = [], []
    letters = _letters()
    for row in rows:
        others = {name: scored for name, scored in row.scored.items() if name not in known}
        columns = [Column(name, name, headline(scored), 1, 4) for name, scored in others.items()]
        if columns:
            letter = next(letters)
            notes.append((letter, protocol(row, columns)))
            cells += [
                [Cell(row.label, strong=True), Cell(column.name), Cell(column.figure),
                 _cell(others[column.benchmark], column), Cell(letter)]
                for column in columns
            ]  # fmt: skip
    if not cells:
        return None
    lead = "The paper has no figures of these; scales are those of each benchmark's authors."
    names = ["", "Benchmark", "Figure", "Value", "Source"]
    return Sheet("other", "Other benchmarks", lead, names, [("", cells)], notes)


def headline(scored: Scored) -> str:
    """The metric that papers print; the first one if the benchmark is not of questions."""
    known = QUESTIONS.get(scored.benchmark)
    return known.headline if known else next(iter(scored.metrics), "")


def rule_of(figure: str) -> str:
    """The rule that a figure comes from: the first part of its name."""
    return figure.partition("/")[0]


def interval(scored: Scored, figure: str) -> Interval | None:
    """The interval of a figure, in its own scale.

    None if the figure is not the mean of its items' scores, their mean in percent, or their sum: an
    F1, for instance, or a mean of tasks of different sizes.
    """
    value = scored.value(figure)
    scores = scored.items.scores.get(rule_of(figure), {}) if scored.items else {}
    if value is None or len(scores) < 2:
        return None
    array = np.array(list(scores.values()))
    for scale in (1, 100, len(array)):
        if abs(scale * array.mean() - value) <= 1e-9 * max(1, abs(value)):
            found = bootstrap(array)
            return Interval(value, scale * found.low, scale * found.high)
    return None


def protocol(row: Row, columns: Sequence[Column]) -> str:
    """How the figures of a row in these columns were made, in sentences."""
    by_settings: dict[str, list[str]] = {}
    sentences = []
    for name in dict.fromkeys(column.benchmark for column in columns):
        scored = row.scored.get(name)
        if scored is None:
            continue
        figures = [column.figure for column in columns if column.benchmark == name]
        rules = tuple(dict.fromkeys(map(rule_of, figures))) if scored.items else ()
        settings = "".join(f"rule {rule}; " for rule in rules) + _settings(scored.settings)
        by_settings.setdefault(settings, []).append(f"{name} ({scored.total:,} {scored.unit})")
        if scored.partial:
            sentences.append(
                f"{name} is not whole: {scored.done:,} of {scored.total:,} {scored.unit}."
            )
        lacking = [figure for figure in figures if scored.value(figure) is None]
        if lacking:
            sentences.append(f"{name}: results.json has no {', '.join(lacking)}.")
        sentences += [f"{name}: {note}." for note in _notes(scored, rules)]
    how = [f"{', '.join(names)}: {settings}." for settings, names in by_settings.items()]
    return " ".join([f"{row.label}, weights of {row.subject}.", *how, *sentences])


def _notes(scored: Scored, rules: Sequence[str]) -> list[str]:
    """Notes on the figures; of a benchmark of questions those of these rules alone."""
    notes = [note.rstrip(".") for note in scored.notes]
    if not scored.items:
        return notes
    return [
        note.removeprefix(f"{r}: ") for r in rules for note in notes if note.startswith(f"{r}: ")
    ]


def _settings(settings: Mapping[str, Any]) -> str:
    """The settings in words, without those that are off or empty."""
    texts = []
    for key, value in settings.items():
        words = key.replace("_", " ")
        if value is True or value is False:
            texts += [words] * value
        elif isinstance(value, Mapping) and value:
            texts.append(f"{words} ({_settings(value).replace('; ', ', ')})")
        elif value not in ("", None, [], {}):
            texts.append(f"{words} {value}")
    return "; ".join(texts)


def _published(figure: str, marks: Mapping[str, str]) -> Cell:
    number = figure.rstrip("".join(marks))
    return Cell(number or NONE, figure[len(number) :])


def _cell(scored: Scored | None, column: Column) -> Cell:
    value = scored.value(column.figure) if scored else None
    if scored is None or value is None:
        return Cell(NONE)

    def text(number: float) -> str:
        return f"{column.scale * number:.{column.digits}f}"

    found = interval(scored, column.figure)
    details = [f"[{text(found.low)}, {text(found.high)}]"] if found else []
    if scored.partial:
        details.append(f"of {scored.done:,} {scored.unit}")
    return Cell(text(value), details=tuple(details), strong=True)


def _letters() -> Iterator[str]:
    """Yields a … z, aa … zz."""
    for length in (1, 2):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))
