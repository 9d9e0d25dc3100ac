"""Folders that `python -m emu3_jax.evaluate` wrote, as far as they hold benchmarks."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.evaluator import RESULTS_FILE, read_document
from emu3_jax.files import read_json

# Conditions of a run that are printed in other words, or that tell a reader nothing.
UNPRINTED = ("benchmark", "questions", "data")
DRAWINGS = "drawings"  # the evaluator that makes images and clips


@dataclasses.dataclass(frozen=True)
class Items:
    """What each question of a benchmark scored.

    Attributes:
      path: of the file.
      truths: id → the right answer as JSON.
      scores: rule → id → score; without the questions that the rule does not score.
    """

    path: pathlib.Path
    truths: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Scored:
    """A benchmark that a run was scored on.

    Attributes:
      name: of the entry.
      benchmark: name of the benchmark.
      metrics: name → number, None for one that is not finite.
      settings: how the model was asked: template, version, sampling and so on.
      unit: "questions", or "prompts" if images or clips were made.
      total, done: numbers of questions or prompts.
      items: scores of the questions; None if images or clips were made.
      notes: sentences about the metrics.
    """

    name: str
    benchmark: str
    metrics: Mapping[str, float | None]
    settings: Mapping[str, Any]
    unit: str
    total: int
    done: int
    items: Items | None
    notes: Sequence[str]

    def value(self, figure: str) -> float | None:
        """The metric of that name; None if there is none."""
        return self.metrics.get(figure)

    @property
    def partial(self) -> bool:
        """Whether questions or prompts are missing."""
        return self.done != self.total


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of ours in every table: benchmarks of one run, each once.

    Attributes:
      label: path of the run as given; with the names of entries if it scored a benchmark again.
      run: the folder.
      subject: where the weights came from.
      scored: name of a benchmark → what it gave.
    """

    label: str
    run: pathlib.Path
    subject: str
    scored: Mapping[str, Scored]


def read_rows(folders: Sequence[pathlib.Path]) -> list[Row]:
    """Reads the folders.

    A run that scored a benchmark twice, with two templates for instance, has a row for each.

    Raises:
      ValueError: a folder is given twice, has no results, no benchmark, or files that do not fit.
    """
    for first, second in itertools.combinations(folders, 2):
        if first.resolve() == second.resolve():
            raise ValueError(f"{second} is given twice; a run is compared with others")
    return [row for folder in folders for row in _rows(folder)]


def _rows(folder: pathlib.Path) -> list[Row]:
    document = read_document(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected the folder that holds it")
    levels: list[dict[str, Scored]] = []
    for entry in document["evaluation"]:
        if "benchmark" in entry:
            scored = _scored(folder, entry, document["results"][entry["name"]])
            level = next((one for one in levels if scored.benchmark not in one), None)
            if level is None:
                levels.append(level := {})
            level[scored.benchmark] = scored
    if not levels:
        known = ", ".join(entry["evaluator"] for entry in document["evaluation"]) or "nothing"
        raise ValueError(
            f"{folder / RESULTS_FILE} holds no benchmark, only {known}; "
            'evaluate with an entry such as dict(benchmark="pope")'
        )
    subject = str(document["subject"]["label"])
    rows = []
    for number, level in enumerate(levels):
        names = ", ".join(scored.name for scored in level.values())
        label = f"{folder}: {names}" if number else str(folder)
        rows.append(Row(label, folder, subject, level))
    return rows


def _scored(folder: pathlib.Path, entry: Mapping[str, Any], result: Mapping[str, Any]) -> Scored:
    name, benchmark, metrics = entry["name"], entry["benchmark"], result["metrics"]
    path = folder / f"{name}_run.json"
    conditions = read_json(path)
    if conditions.get("benchmark") != benchmark:
        raise ValueError(
            f"{path} is of the benchmark {conditions.get('benchmark')!r}, but {RESULTS_FILE} "
            f"says that {name} is of {benchmark!r}"
        )
    settings = {key: value for key, value in conditions.items() if key not in UNPRINTED}
    where, path = f"{folder / RESULTS_FILE}, {name}", folder / f"{name}_items.jsonl"
    if entry["evaluator"] == DRAWINGS:
        (total,) = reading.fields(where, metrics, prompts=float)
        lines = reading.json_lines(path)
        drawn = {reading.fields(at, line, prompt_id=str)[0] for at, line in lines}
        counts, items = ("prompts", int(total), len(drawn)), None
    else:
        total, done = reading.fields(where, metrics, questions=float, answered=float)
        counts, items = ("questions", int(total), int(done)), _items(path, int(done))
    notes = result.get("notes", ())
    return Scored(name, benchmark, metrics, settings, *counts, items, notes)


def _items(path: pathlib.Path, answered: int) -> Items:
    truths: dict[str, str] = {}
    scores: dict[str, dict[str, float]] = {}
    for where, row in reading.json_lines(path):
        key, by_rule = reading.fields(where, row, id=str, scores=dict)
        if key in truths:
            raise ValueError(f"{where}: the id {key!r} occurs twice; ids must differ")
        truths[key] = json.dumps(row.get("truth"), sort_keys=True)
        for rule, score in by_rule.items():
            of_rule = scores.setdefault(rule, {})
            if score.get("score") is not None:
                of_rule[key] = float(score["score"])
    if len(truths) != answered:
        raise ValueError(f"{path} has {len(truths)} items, expected the {answered} answered ones")
    return Items(path, truths, scores)
