"""The interface of evaluators: named settings, and a `run` from a subject to metrics and images.

Evaluation during training and `python -m emu3_jax.evaluate` make evaluators from the same entries
(`registry.make`) and run them with the same `run_all`, so their figures are comparable.
"""

import csv
import dataclasses
import io
import itertools
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from etils import epath

from emu3_jax.config import ConfigError
from emu3_jax.data import media
from emu3_jax.files import in_words, read_json, write_atomically, write_json
from emu3_jax.interop.bundle import Bundle, Language
from emu3_jax.models.vision.tokenizer import VisionTokenizer
from emu3_jax.progress import Progress
from emu3_jax.train.run import readable

T = TypeVar("T")

RESULTS_FILE = "results.json"
# Slow enough to see each frame; used for stored clips of any rate.
CLIP_FPS = 8.0


class Subject:
    """The models to evaluate.

    Attributes:
      models: kind of model (`Task.kind`) → the model, as `Task.trained_model` returns it.
      label: where the weights came from; written into the results.
      progress: receives the progress of long work.
      folder: of the results; evaluators whose work is long keep it there as they go. None if
        nothing is kept.
      replaces: whether what was kept there under other conditions is replaced, not refused.
    """

    def __init__(
        self,
        label: str = "",
        progress: Progress | None = None,
        folder: str | os.PathLike | None = None,
        **models: Any,
    ):
        self.label, self.progress = label, progress or Progress()
        self.folder = None if folder is None else epath.Path(folder)
        self.replaces = False
        self.models = {kind: model for kind, model in models.items() if model is not None}

    @property
    def language_model(self) -> Bundle:
        """The language model."""
        return self.models["language_model"]

    @property
    def vision_tokenizer(self) -> tuple[VisionTokenizer, Any]:
        """The vision tokenizer: (module, variables)."""
        return self.models["vision_tokenizer"]


def described(kind: str) -> str:
    """Returns a kind of model in words: "a language model"."""
    return f"a {kind.replace('_', ' ')}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
      columns: names.
      rows: cells, each a str, int, float or None.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple, ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one evaluator.

    Attributes:
      metrics: name → number; shares are in percent.
      tables: name → Table, written as CSV.
      images: name → uint8 [H, W, 3], written as PNG.
      clips: name → uint8 [T, H, W, 3], written as MP4 at CLIP_FPS.
      notes: sentences about the numbers: what was not measured and why, what is uncertain.
    """

    metrics: Mapping[str, float]
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    images: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    clips: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Base class of evaluators. The fields are the settings; an entry of a config sets some.

    Attributes:
      measures: kind of model that it measures (`Task.kind`).
      headline: patterns of the metrics that come first, in order (`train.run.readable`).
      name: prefix of metrics and files; entries of the same evaluator need different names.
      every: training steps between evaluations; 0 evaluates after the last step only. The last step
        is always evaluated.
      limit: use the first this many items of a split; 0 for all.
      batch_size: items at a time; results do not depend on it.
    """

    measures: ClassVar[str]
    headline: ClassVar[tuple[str, ...]] = ()

    name: str
    every: int = 1000
    limit: int = 0
    batch_size: int = 32

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name is made of letters, digits and _ . -, not {self.name!r}")
        self.at_least(every=0, limit=0, batch_size=1)

    def at_least(self, **least: int) -> None:
        """Raises ValueError for the first of these settings that is below its minimum."""
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ValueError(f"{key} must be at least {value}, not {getattr(self, key)}")

    def check(self, language: Language | None) -> None:
        """Checks that the data and weights that the settings name exist and fit.

        Args:
          language: language of the measured language model; None for other kinds of models.

        Raises:
          ConfigError: begins with the key of the wrong setting.
        """

    def run(self, subject: Subject) -> Result:
        """Measures `subject`, which has a model of the kind `measures`."""
        raise NotImplementedError

    def use(self, key: str, read: Callable[[str], T]) -> T:
        """Returns read(value of the setting `key`); ConfigError if it is empty or unreadable."""
        value = getattr(self, key)
        if not value:
            raise ConfigError(f"{key} is not set; {self.name} needs it")
        try:
            return read(value)
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"{key}={value!r} cannot be used by {self.name}: {in_words(error)}"
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitEvaluator(Evaluator):
    """An evaluator of chosen splits of its data.

    Attributes:
      splits: names of the splits.
    """

    splits: tuple[str, ...] = ("validation",)

    def __post_init__(self):
        super().__post_init__()
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits must be one or more different names, not {self.splits}")


def run_all(
    subject: Subject, evaluators: Sequence[Evaluator], log=lambda line: None
) -> dict[str, Result]:
    """Runs evaluators in order → {name: Result}; adds the metric `seconds` to each.

    The metrics of the evaluator's headline come first.

    Raises:
      ValueError: the subject lacks a model that one of them measures; none was run.
    """
    for evaluator in evaluators:
        if evaluator.measures not in subject.models:
            what = described(evaluator.measures)
            raise ValueError(f"{evaluator.name} measures {what}, and there is none")
    results = {}
    for evaluator in evaluators:
        log(f"{evaluator.name} ...")
        start = time.perf_counter()
        result = evaluator.run(subject)
        seconds = time.perf_counter() - start
        ordered = itertools.chain(*readable.groups(list(result.metrics), evaluator.headline))
        metrics = {name: result.metrics[name] for name in ordered} | {"seconds": round(seconds, 2)}
        results[evaluator.name] = dataclasses.replace(result, metrics=metrics)
        log(f"{evaluator.name} done in {seconds:.1f} s")
    return results


def flat_metrics(results: Mapping[str, Result]) -> dict[str, float]:
    """Returns "<evaluator>/<metric>" → number, for a metrics log."""
    return {
        f"{name}/{metric}": value
        for name, result in results.items()
        for metric, value in result.metrics.items()
    }


def format_results(results: Mapping[str, Result]) -> str:
    """Returns an aligned text table of the metrics and the notes, one block per evaluator."""
    lines = []
    width = max((len(m) for r in results.values() for m in r.metrics), default=0)
    for name, result in results.items():
        lines.append(name)
        lines += [f"  {m:<{width}}  {readable.number(m, v):>12}" for m, v in result.metrics.items()]
        lines += [f"  note: {note}" for note in result.notes]
    return "\n".join(lines)


def write_results(
    results: Mapping[str, Result], output: str | os.PathLike, label: str, evaluation: Sequence[dict]
) -> pathlib.Path:
    """Writes results.json, `<name>_<table>.csv`, `…_<image>.png` and `…_<clip>.mp4`.

    Each file is written under a temporary name and then renamed. results.json is written last, so
    all files that it names exist.

    Args:
      results: from `run_all`.
      output: the folder.
      label: where the weights came from.
      evaluation: the entries with all settings (`registry.resolved`).

    Returns:
      The path of results.json.
    """
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, result in results.items():
        files = {t: f"{name}_{t}.csv" for t in result.tables}
        images = {i: f"{name}_{i}.png" for i in result.images}
        for table, file in files.items():
            _write_csv(output / file, result.tables[table])
        for image, file in images.items():
            media.write_png(output / file, result.images[image])
        clips = {c: f"{name}_{c}.mp4" for c in result.clips}
        for clip, file in clips.items():
            media.write_mp4(output / file, result.clips[clip], CLIP_FPS)
        entries[name] = {
            "metrics": {m: _jsonable(v) for m, v in result.metrics.items()},
            "tables": files,
            "images": images,
            "clips": clips,
            "notes": list(result.notes),
        }
    document = {"subject": {"label": label}, "evaluation": list(evaluation), "results": entries}
    write_json(output / RESULTS_FILE, document)
    return output / RESULTS_FILE


def read_document(path: str | os.PathLike) -> dict[str, Any]:
    """Returns what `write_results` wrote into a results.json, or into that of a folder.

    Raises:
      ValueError: there is no such file, or it is not one of `write_results`.
    """
    path = pathlib.Path(path)
    path = path / RESULTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path} does not exist: run `python -m emu3_jax.evaluate` first")
    document = read_json(path)
    if not isinstance(document.get("results"), dict):
        raise ValueError(f"{path} has no results; expected what python -m emu3_jax.evaluate writes")
    return document


def read_results(path: str | os.PathLike) -> dict[str, dict[str, float]]:
    """Returns {evaluator: {metric: value}} of a results.json or of the folder that holds one."""
    entries = read_document(path)["results"]
    return {name: entry["metrics"] for name, entry in entries.items()}


def _write_csv(path: pathlib.Path, table: Table) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    write_atomically(path, text.getvalue().encode())


def _jsonable(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
