"""What a run directory holds, for those who compare several."""

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from emu3_jax.config import ABSENT, config_differences, read_config
from emu3_jax.evaluate.evaluator import RESULTS_FILE, read_results
from emu3_jax.report.tables import Results
from emu3_jax.train.run.metrics import read_metrics

EVALUATION_FOLDER = "evaluation"
# Keys that say where and how a run was run, not what it was.
IGNORED = ("run.log.", "run.checkpoint.", "run.mesh.")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory holds.

    Attributes:
      path: the directory.
      config: as it was resolved.
      rows: the log, in step order.
      results: evaluator → metrics; empty where the run was not evaluated offline.
    """

    path: pathlib.Path
    config: ml_collections.ConfigDict
    rows: Sequence[Mapping[str, Any]]
    results: Results

    @property
    def name(self) -> str:
        """Of the directory."""
        return self.path.resolve().name

    def values(self, key: str) -> list[float]:
        """All that was logged under a key; what was not finite is left out."""
        return [row[key] for row in self.rows if row.get(key) is not None]

    def last(self, key: str) -> float | None:
        """The last of these."""
        return next(reversed(self.values(key)), None)

    def median(self, key: str) -> float | None:
        """The median of these."""
        values = self.values(key)
        return statistics.median(values) if values else None


def read_run(path: pathlib.Path) -> Run:
    """Reads a run directory; ValueError when it has no config or no log."""
    results = {}
    for folder in (path, path / EVALUATION_FOLDER):
        if (folder / RESULTS_FILE).is_file():
            results = read_results(folder)
            break
    return Run(path, read_config(path), read_metrics(path), results)


def points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[tuple[float, float], ...]:
    """(step, value) of the lines of a log that hold `key`; the value is None where not finite."""
    return tuple((row["step"], row[key]) for row in rows if key in row)


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Dotted config key → its value in each run, for the keys that are not the same in all.

    None where a run has no such key.
    """
    pairs = [config_differences(runs[0].config, run.config) for run in runs]
    keys = sorted({key for found in pairs for key in found if not key.startswith(IGNORED)})
    values = {}
    for key in keys:
        base = next(found[key][0] for found in pairs if key in found)
        row = [found[key][1] if key in found else base for found in pairs]
        values[key] = [None if value == ABSENT else value for value in row]
    return values
