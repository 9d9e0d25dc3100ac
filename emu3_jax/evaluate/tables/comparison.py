"""Paired tests: two runs on the same items."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from emu3_jax.evaluate.tables.evaluated_runs import Row, Scored
from emu3_jax.evaluate.tables.intervals import LEVEL, RESAMPLES, Difference, paired
from emu3_jax.evaluate.tables.paper_tables import PaperTable
from emu3_jax.evaluate.tables.sheets import NONE, Cell, Sheet, headline, rule_of

LEAD = (
    "The mean of the items' scores in percent, by the rule of the tables above, and that of the "
    "second run minus that of the first."
)
NOTES = (
    f"[low, high]: {100 * LEVEL:.0f} % interval of the difference, by {RESAMPLES:,} bootstrap "
    "resamples of the items.",
    "p: how often a difference as large, either way, occurs when each item's difference has a "
    "random sign; not corrected for the number of comparisons.",
    "Where a table prints something else than a mean of items, such as F1, the mean here is that "
    "of right answers.",
)


def paired_sheet(tables: Sequence[PaperTable], rows: Sequence[Row]) -> Sheet | None:
    """Every benchmark of questions that two runs share; None if there is none.

    Raises:
      ValueError: the items of the two runs differ.
    """
    cells, skipped = [], []
    for first, second in itertools.combinations(rows, 2):
        if first.run == second.run:
            continue
        for name, one, other in _shared(first, second):
            versions = [scored.settings.get("version", "") for scored in (one, other)]
            if versions[0] != versions[1]:
                skipped.append(
                    f"{name} of {first.label} and {second.label} is not compared: its versions are "
                    f"{versions[0]!r} and {versions[1]!r}."
                )
                continue
            rule = _rule(tables, one)
            names = Cell(f"{first.label} → {second.label}"), Cell(name), Cell(rule)
            cells.append([*names, *_numbers(compare(one, other, rule))])
    if not cells and not skipped:
        return None
    columns = ["", "Benchmark", "Rule", "Items", "First", "Second", "Difference", "p"]
    notes = [("", note) for note in (*skipped, *(NOTES if cells else ()))]
    return Sheet("paired", "Runs compared item by item", LEAD, columns, [("", cells)], notes)


def compare(first: Scored, second: Scored, rule: str) -> tuple[float, float, Difference] | None:
    """(mean score of the first, of the second, their difference); None of fewer than two items.

    Raises:
      ValueError: they hold different questions, or different right answers to one.
    """
    one, other = first.items, second.items
    for this, that in ((one, other), (other, one)):
        alone = next((key for key in this.truths if key not in that.truths), None)
        if alone is not None:
            raise ValueError(
                f"{this.path} has the item {alone!r} and {that.path} has not; a paired test "
                "needs the same items in both"
            )
    for key, truth in one.truths.items():
        if other.truths[key] != truth:
            raise ValueError(
                f"{one.path} and {other.path} have different right answers to the item {key!r}; a "
                "paired test needs the same questions"
            )
    scores = one.scores.get(rule, {}), other.scores.get(rule, {})
    both = [key for key in scores[0] if key in scores[1]]
    pair = [np.array([of[key] for key in both]) for of in scores]
    return (*(float(part.mean()) for part in pair), paired(*pair)) if len(both) > 1 else None


def _shared(first: Row, second: Row) -> Iterator[tuple[str, Scored, Scored]]:
    for name, scored in first.scored.items():
        other = second.scored.get(name)
        if other is not None and scored.items and other.items:
            yield name, scored, other


def _rule(tables: Sequence[PaperTable], scored: Scored) -> str:
    columns = (column for table in tables for column in table.columns)
    figures = (column.figure for column in columns if column.benchmark == scored.benchmark)
    return rule_of(next(figures, headline(scored)))


def _numbers(found: tuple[float, float, Difference] | None) -> list[Cell]:
    """Items, both means, difference and p."""
    if found is None:
        return [Cell(NONE)] * 5
    first, second, difference = found
    bounds = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return [
        Cell(f"{difference.items:,}"),
        Cell(f"{100 * first:.1f}"),
        Cell(f"{100 * second:.1f}"),
        Cell(f"{100 * difference.mean:+.1f}", details=(bounds,), strong=True),
        Cell(f"{difference.p:.4f}" if difference.p >= 0.0001 else "< 0.0001"),
    ]
