"""What an evaluator is: something with a name that turns a subject into numbers, tables, pictures.

Training at intervals and `python -m emu3_jax.evaluate` go through the same `evaluate`, so a figure
means the same wherever it was taken.
"""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from emu3_jax.data import media
from emu3_jax.evaluate.progress import Progress
from emu3_jax.files import write_atomically
from emu3_jax.generate.sampling import Sampling

RESULTS_FILE = "results.json"
# Slow enough to look at; stored clips of any rate are shown at it.
CLIP_FPS = 8.0


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated, and on what. An evaluator checks that the parts it needs are there.

    Attributes:
      bundle: the language model with `.model`, `.variables`, `.vocab` and `.grammar`, or None.
      vision_tokenizer: (module, variables), or None.
      data: folder of raw items, `<split>.jsonl` beside its media files, or None.
      tokens: folder of token datasets, one sub-folder a split, or None.
      sampling: how pictures are drawn, its seed included. Captions are always greedy.
      candidates: pictures drawn for each one that is kept; see `generate.modalities.Options`.
      perceptual: (weights, their description) of `interop.perceptual_weights.load`, or None.
      inception, i3d: units of `interop.feature_networks`, or None.
      earlier: a vision tokenizer to measure drift against, (module, variables), or None.
      cache: folder in which statistics of features of the originals are kept, or None.
      batch_size: pictures or sequences at a time; results do not depend on it.
      limit: use the first so many items of a split; 0 for all.
      frames: clips are brought to this length (`seams.of_length`); 0 as stored.
      clip_frames: frames of the clips the vision tokenizer was trained on; 0 if unknown.
      label: where the weights came from, written into the results.
      progress: told how far long work is.
    """

    bundle: Any = None
    vision_tokenizer: tuple[Any, Any] | None = None
    data: pathlib.Path | None = None
    tokens: pathlib.Path | None = None
    sampling: Sampling = Sampling()
    candidates: int = 1
    perceptual: tuple[Any, str] | None = None
    inception: Any = None
    i3d: Any = None
    earlier: tuple[Any, Any] | None = None
    cache: pathlib.Path | None = None
    batch_size: int = 32
    limit: int = 0
    frames: int = 0
    clip_frames: int = 0
    label: str = ""
    progress: Progress = dataclasses.field(default_factory=Progress)

    @property
    def feature_networks(self) -> tuple | None:
        """Those of `perceptual`, `inception` and `i3d` that are there; None without any."""
        return tuple(n for n in (self.perceptual, self.inception, self.i3d) if n) or None

    def need(self, evaluator: str, *names: str) -> None:
        """Raises ValueError naming the first of the fields `names` that is None."""
        for name in names:
            if getattr(self, name) is None:
                raise ValueError(f"evaluator {evaluator} needs {_OPTIONS[name]}, which is not set")


_OPTIONS = {
    "bundle": "a language model (--model)",
    "vision_tokenizer": "a vision tokenizer (--vision_tokenizer)",
    "data": "a folder of pictures and captions (--data)",
    "tokens": "a folder of token datasets (--tokens)",
    "feature_networks": "a network that sees pictures (--perceptual, --inception or --i3d)",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under named columns; cells are str, int, float or None."""

    columns: tuple[str, ...]
    rows: tuple[tuple, ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """What one evaluator found.

    Attributes:
      metrics: name → number; shares are in percent.
      tables: name → Table, written as CSV.
      pictures: name → uint8 [H, W, 3], written as PNG.
      clips: name → uint8 [T, H, W, 3], written as MP4 at CLIP_FPS.
      notes: sentences a reader of the numbers needs: what is absent and why, what to doubt.
    """

    metrics: Mapping[str, float]
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    clips: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()


class Evaluator(Protocol):
    """One evaluator: `run` raises ValueError when the subject lacks a part it needs.

    Attributes:
      name: as in the registry.
      needs: the fields of the subject that it reads, each with the splits it reads of it.
    """

    name: str

    @property
    def needs(self) -> Mapping[str, Sequence[str]]:
        """See above."""

    def run(self, subject: Subject) -> Result:
        """Measures `subject`."""


def run_all(
    subject: Subject, evaluators: Sequence[Evaluator], log=lambda line: None
) -> dict[str, Result]:
    """Runs evaluators in order → {name: Result}, with each one's `seconds` among its metrics."""
    for evaluator in evaluators:  # before the first of them starts
        subject.need(evaluator.name, *evaluator.needs)
    results = {}
    for evaluator in evaluators:
        log(f"{evaluator.name} ...")
        start = time.perf_counter()
        result = evaluator.run(subject)
        seconds = time.perf_counter() - start
        metrics = dict(result.metrics) | {"seconds": round(seconds, 2)}
        results[evaluator.name] = dataclasses.replace(result, metrics=metrics)
        log(f"{evaluator.name} done in {seconds:.1f} s")
    return results


def flat_metrics(results: Mapping[str, Result]) -> dict[str, float]:
    """{"reconstruction/psnr_images": ...}: one level of names, as a metrics log wants them."""
    return {
        f"{name}/{metric}": value
        for name, result in results.items()
        for metric, value in result.metrics.items()
    }


def format_results(results: Mapping[str, Result]) -> str:
    """The metrics as an aligned text table and the notes, one block an evaluator."""
    lines = []
    width = max((len(m) for r in results.values() for m in r.metrics), default=0)
    for name, result in results.items():
        lines.append(name)
        lines += [f"  {m:<{width}}  {_number(v):>12}" for m, v in result.metrics.items()]
        lines += [f"  note: {note}" for note in result.notes]
    return "\n".join(lines)


def write_results(
    results: Mapping[str, Result], output: str | os.PathLike, subject: Subject
) -> pathlib.Path:
    """Writes results.json, `<evaluator>_<table>.csv`, `…_<picture>.png` and `…_<clip>.mp4`.

    Each file is written under a temporary name and then renamed; results.json comes last, so that
    whoever finds it finds everything it names. Returns its path.
    """
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, result in results.items():
        files = {t: f"{name}_{t}.csv" for t in result.tables}
        pictures = {p: f"{name}_{p}.png" for p in result.pictures}
        for table, file in files.items():
            _write_csv(output / file, result.tables[table])
        for picture, file in pictures.items():
            media.write_png(output / file, result.pictures[picture])
        clips = {c: f"{name}_{c}.mp4" for c in result.clips}
        for clip, file in clips.items():
            media.write_mp4(output / file, result.clips[clip], CLIP_FPS)
        entries[name] = {
            "metrics": {m: _jsonable(v) for m, v in result.metrics.items()},
            "tables": files,
            "pictures": pictures,
            "clips": clips,
            "notes": list(result.notes),
        }
    document = {"subject": describe(subject), "results": entries}
    write_atomically(output / RESULTS_FILE, (json.dumps(document, indent=1) + "\n").encode())
    return output / RESULTS_FILE


def describe(subject: Subject) -> dict[str, Any]:
    """The subject's plain fields, for the record."""
    return {
        "label": subject.label,
        "data": str(subject.data) if subject.data else None,
        "tokens": str(subject.tokens) if subject.tokens else None,
        "sampling": dataclasses.asdict(subject.sampling),
        "candidates": subject.candidates,
        "limit": subject.limit,
        "frames": subject.frames,
        "clip_frames": subject.clip_frames,
        "perceptual": subject.perceptual[1] if subject.perceptual else None,
    }


def read_results(path: str | os.PathLike) -> dict[str, dict[str, float]]:
    """{evaluator: {metric: value}} of a results.json or of the folder that holds one."""
    path = pathlib.Path(path)
    path = path / RESULTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path} does not exist: run `python -m emu3_jax.evaluate` first")
    entries = json.loads(path.read_text(encoding="utf-8"))["results"]
    return {name: entry["metrics"] for name, entry in entries.items()}


def _write_csv(path: pathlib.Path, table: Table) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    write_atomically(path, text.getvalue().encode())


def _jsonable(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"
