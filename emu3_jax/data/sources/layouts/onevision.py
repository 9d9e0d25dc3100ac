"""LLaVA-OneVision's mixture files: a yaml with files of conversations and how many rows of each.

  datasets:
    - json_path: a.json                      (or .jsonl, .parquet; relative to the yaml)
      sampling_strategy: all | first:N | end:N | random:N | first:N% | end:N% | random:N%
  seed: 0                                    (ours: what random:N draws from)

N % of the rows are rounded up, and N above their number takes all, as in LLaVA-VL/LLaVA-NeXT,
llava/train/train.py, LazySupervisedDataset. There random:N shuffles without a seed; here the rows
depend on the seed, the path and the number of rows, and keep their order.
"""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from emu3_jax.data.sources.layouts.row_source import Table
from emu3_jax.data.sources.layouts.rows import open_rows
from emu3_jax.data.sources.source import SourceError
from emu3_jax.files import MAX_TEXT_BYTES, inside

_STRATEGY = re.compile(r"(first|end|random):([1-9][0-9]*)(%?)")
_SPELLED = "all, first:N, end:N, random:N, or N% in place of N"


def open_tables(path: Path, folder: Path) -> list[Table]:
    """The files of a mixture with the rows to read of each.

    Args:
      path: the yaml.
      folder: that of all media.

    Raises:
      SourceError: the yaml is not such a mixture, or a file cannot be read.
    """
    mixture = _content(path)
    seed, tables = mixture.get("seed", 0), []
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise SourceError(f'{path}: "seed" must be a whole number from 0, found {seed!r}')
    for entry in mixture["datasets"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str):
            raise SourceError(f'{path}: a dataset must have a "json_path", found {entry!r}')
        try:
            rows = open_rows(inside(path.parent, entry["json_path"]))
            strategy = entry.get("sampling_strategy", "all")
            numbers = chosen(strategy, len(rows), (seed, zlib.crc32(entry["json_path"].encode())))
        except ValueError as error:
            raise SourceError(f"{path}: {entry['json_path']}: {error}") from error
        tables.append(Table(rows, numbers, folder))
    return tables


def _content(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
        if len(content) > MAX_TEXT_BYTES:
            raise SourceError(f"{path}: is larger than {MAX_TEXT_BYTES} bytes")
        mixture = yaml.safe_load(content)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: cannot be read as yaml ({reason})") from error
    datasets = mixture.get("datasets") if isinstance(mixture, dict) else None
    if not isinstance(datasets, list) or not datasets:
        raise SourceError(f'{path}: expected a list "datasets" with at least one file')
    return mixture


def chosen(strategy: object, rows: int, seed: Sequence[int]) -> Sequence[int]:
    """The numbers of the rows that a sampling strategy takes of so many, rising.

    SourceError for another strategy: LLaVA-NeXT would silently take all.
    """
    if strategy == "all":
        return range(rows)
    found = _STRATEGY.fullmatch(strategy) if isinstance(strategy, str) else None
    if not found:
        raise SourceError(f"the sampling_strategy is {strategy!r}, expected {_SPELLED}")
    which, count = found[1], int(found[2])
    if found[3]:
        count = -(-count * rows // 100)
    count = min(count, rows)
    if which == "first":
        return range(count)
    if which == "end":
        return range(rows - count, rows)
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False)).tolist()
