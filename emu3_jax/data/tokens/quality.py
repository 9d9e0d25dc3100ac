"""Scores of the records of a dataset, written once beside it, and which records pass thresholds.

`python -m emu3_jax.tokenize.rate` writes quality/SHARD.json for each shard of images and clips:
numbers by name, one per record, null where there is none. Beside the scorers' own there are

  pixels   height times width of an image or frame, as the codes decode
  motion   of a clip: mean absolute difference of neighbouring frames, in grey levels 0 … 255
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from emu3_jax.data.tokens.records import Record, RecordError, Shard, StoredRecords, TokenDataset
from emu3_jax.files import read_json, write_atomically

FOLDER = "quality"
PLAN_FILE = "plan.json"
COMMAND = "python -m emu3_jax.tokenize.rate"
KINDS = ("image", "video")
OWN = ("pixels", "motion")


def plan_file(folder: epath.Path) -> epath.Path:
    """What the scores of a dataset are made with, and of which content."""
    return folder / FOLDER / PLAN_FILE


def scores_file(folder: epath.Path, shard: Shard) -> epath.Path:
    """The scores of one shard."""
    return folder / FOLDER / f"{shard.file}.json"


def write_scores(folder: epath.Path, shard: Shard, scores: Mapping[str, np.ndarray]) -> None:
    """Writes the scores of a shard: name → float [records], NaN where there is none."""
    rounded = {name: [_plain(value) for value in values] for name, values in scores.items()}
    write_atomically(scores_file(folder, shard), json.dumps(rounded) + "\n")


def read_scores(dataset: TokenDataset, kind: str) -> dict[str, np.ndarray]:
    """name → float64 [records of the kind], NaN where there is no score.

    Raises:
      RecordError: the scores are missing, incomplete, or of another content; names the command.
    """
    shards = [shard for shard in dataset.info.shards if shard.kind == kind]
    missing = [s for s in shards if not scores_file(dataset.path, s).exists()]
    if missing or not plan_file(dataset.path).exists():
        raise RecordError(
            f"{dataset.path}: {len(missing)} of {len(shards)} shards of kind {kind} have no "
            f"scores; make them by {COMMAND}"
        )
    made_of = read_json(plan_file(dataset.path)).get("dataset")
    if made_of != dataset.info.fingerprint:
        raise RecordError(
            f"{dataset.path}: its scores are of the content {made_of}, it holds "
            f"{dataset.info.fingerprint}; delete {FOLDER} and make them by {COMMAND}"
        )
    found: dict[str, list[np.ndarray]] = {}
    for shard in shards:
        for name, values in read_json(scores_file(dataset.path, shard)).items():
            found.setdefault(name, []).append(np.array(values, np.float64))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def passing(dataset: TokenDataset, kind: str, at_least: Mapping[str, float]) -> np.ndarray:
    """The records of a kind whose numbers reach all thresholds: int64 indices, rising.

    A record without a number does not pass.

    Raises:
      RecordError: the scores are missing, none has such a name, or no record passes.
    """
    scores = read_scores(dataset, kind)
    for name in at_least:
        if name not in scores:
            raise RecordError(
                f"{dataset.path}: there are no scores {name!r} of kind {kind}, only "
                f"{', '.join(sorted(scores))}"
            )
    reached = {name: scores[name] >= least for name, least in at_least.items()}
    kept = np.flatnonzero(np.logical_and.reduce(list(reached.values())))
    if not len(kept):
        found = ", ".join(
            f"{name} of {least:g} is reached by {int(reached[name].sum())}"
            for name, least in at_least.items()
        )
        records = len(next(iter(scores.values())))
        raise RecordError(
            f"{dataset.path}: no record of {records} of kind {kind} passes at_least; {found}"
        )
    return kept


class KeptRecords(Sequence):
    """The records at some indices."""

    def __init__(self, records: StoredRecords, indices: np.ndarray):
        self._records, self._indices = records, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._records[int(self._indices[index])]


def motion(clip_THWC: np.ndarray) -> float:
    """Of a clip uint8 [T, H, W, 3], as the module docstring says; 0 for one frame."""
    frames = clip_THWC.astype(np.int16)
    return float(np.abs(np.diff(frames, axis=0)).mean()) if len(frames) > 1 else 0.0


def _plain(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
