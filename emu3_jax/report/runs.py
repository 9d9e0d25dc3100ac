"""Contents of a run directory, and differences between several, for reports."""

import argparse
import contextlib
import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from emu3_jax import exit_codes, provenance
from emu3_jax.config import ABSENT, config_differences, read_config
from emu3_jax.evaluate.evaluator import RESULTS_FILE, read_results
from emu3_jax.figures import page
from emu3_jax.files import in_words, read_lines
from emu3_jax.report.tables import Results
from emu3_jax.train.run.metrics import read_metrics
from emu3_jax.train.run.run_directory import STARTS_FILE

EVALUATION_FOLDER = "evaluation"
# Keys that do not change what a run computes.
IGNORED = ("run.log.", "run.checkpoint.", "run.mesh.")


@dataclasses.dataclass(frozen=True)
class Run:
    """Contents of a run directory.

    Attributes:
      path: the directory.
      config: the config in config.json.
      rows: the log, in step order.
      results: evaluator → metrics; empty if the run was not evaluated offline.
      starts: lines of starts.jsonl; empty without that file.
    """

    path: pathlib.Path
    config: ml_collections.ConfigDict
    rows: Sequence[Mapping[str, Any]]
    results: Results
    starts: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.resolve().name

    def values(self, key: str) -> list[float]:
        """Returns all finite values logged under `key`."""
        return [row[key] for row in self.rows if row.get(key) is not None]

    def last(self, key: str) -> float | None:
        """Returns the last of `values(key)`, or None."""
        return next(reversed(self.values(key)), None)

    def median(self, key: str) -> float | None:
        """Returns the median of `values(key)`, or None."""
        values = self.values(key)
        return statistics.median(values) if values else None

    def commands(self) -> list[tuple[str, str]]:
        """Returns (when and where, command) of each start; the interpreter without its folder."""
        if not self.starts:
            return [(f"{self.name}: its command was not recorded", f"--workdir={self.path}")]
        commands = []
        for start in self.starts:
            code = (start.get("revision") or "")[:12] or "unknown"
            what = f"{self.name}, {start['time']}, {start['devices']}, revision {code}"
            commands.append((what, provenance.command_line(start["command"])))
        return commands


def read_run(path: pathlib.Path) -> Run:
    """Reads a run directory; ValueError if it has no config or no log."""
    results = {}
    for folder in (path, path / EVALUATION_FOLDER):
        if (folder / RESULTS_FILE).is_file():
            results = read_results(folder)
            break
    starts = read_lines(path, STARTS_FILE) if (path / STARTS_FILE).is_file() else []
    return Run(path, read_config(path), read_metrics(path), results, starts)


def commands_section(runs: Sequence[Run]) -> str:
    """Returns a section of a page: the command of each start."""
    pairs = [pair for run in runs for pair in run.commands()]
    lead = "The command of each start of each run."
    return page.section("commands", "Commands", lead, page.commands(pairs))


@contextlib.contextmanager
def command(
    module: str, description: str | None, output: str, arguments: Sequence[str] | None
) -> Iterator[argparse.Namespace]:
    """`runs` and `output` of the command python -m emu3_jax.MODULE RUN … --output=PATH.

    What a user's input or the storage makes fail inside ends the process with one sentence.

    Args:
      module: the module, after "emu3_jax.".
      description: for --help.
      output: for --help, what --output names.
      arguments: those of the command; None for sys.argv.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m emu3_jax.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run directories")
    parser.add_argument("--output", required=True, type=pathlib.Path, help=output)
    try:
        yield parser.parse_args(arguments)
    except (ValueError, OSError) as error:
        print(f"Error: {in_words(error)}", file=sys.stderr)
        sys.exit(exit_codes.of(error))


def points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[tuple[float, float], ...]:
    """Returns (step, value) of the log lines with `key`; the value is None if not finite."""
    return tuple((row["step"], row[key]) for row in rows if key in row)


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns dotted config key → value in each run, for the keys that differ.

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
