"""From a token dataset to batches that can be scored: each record once for every task it allows."""

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from emu3_jax import sequence
from emu3_jax.data.records import DATASET_FILE, Record, open_dataset
from emu3_jax.sequence import Document, Grammar, TokenClass

# Rows are a multiple of this, so that few shapes are compiled.
ROW_MULTIPLE = 64


def dataset_path(tokens: str | os.PathLike, split: str) -> epath.Path:
    """The dataset `tokens` itself, or its sub-folder `split`; ValueError if neither is one."""
    for path in (epath.Path(tokens), epath.Path(tokens) / split):
        if (path / DATASET_FILE).is_file():
            return path
    raise ValueError(f"neither {tokens} nor {tokens}/{split} is a token dataset ({DATASET_FILE})")


def documents_by_task(
    path: str | os.PathLike, grammar: Grammar, vision_fingerprint: str | None = None, limit: int = 0
) -> dict[str, list[sequence.Sequence]]:
    """Every record of a dataset, built once for every task.

    Args:
      path: a token dataset.
      grammar: its vocabulary and tokenizers must be those of the dataset.
      vision_fingerprint: of the vision tokenizer the model knows, if known.
      limit: the first so many records of each kind; 0 for all.

    Returns:
      task → sequences, tasks without documents left out.
    """
    dataset = open_dataset(path, grammar, vision_fingerprint)
    documents: dict[str, list[sequence.Sequence]] = {}
    for kind in dataset.info.counts:
        records = dataset.records(kind)
        for index in range(min(limit or len(records), len(records))):
            for task, document in tasks_of(records[index]).items():
                documents.setdefault(task, []).append(grammar.build(document))
    if not documents:
        raise ValueError(f"{path} holds no records")
    return documents


def tasks_of(record: Record) -> dict[str, Document]:
    """The documents a record gives, by task: captioned pictures and clips are read both ways."""
    stored = Document(record.segments)
    if record.kind not in ("image", "video"):
        return {record.kind: stored}
    turned = Document(tuple(reversed(record.segments)))
    return {f"text_to_{record.kind}": stored, f"{record.kind}_to_text": turned}


def packed_batches(
    documents: Mapping[str, Sequence[sequence.Sequence]], row_length: int, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Packs documents, longest first, into rows, and rows into batches of one shape.

    Targets that training leaves out (weight 0, such as the questions of a chat) get class PAD.

    Args:
      documents: task → sequences; `sources` holds the index of the task in this mapping.
      row_length: tokens a row, 0 for what the longest document needs.
      batch_size: rows a batch; the last one is filled up with empty rows.

    Raises:
      ValueError: a document is longer than `row_length`.
    """
    flat = [(s, index) for index, group in enumerate(documents.values()) for s in group]
    flat.sort(key=lambda pair: -len(pair[0]))
    longest = len(flat[0][0]) - 1
    row_length = row_length or -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE
    if longest > row_length:
        raise ValueError(f"a document of {longest} tokens does not fit into rows of {row_length}")
    rows: list[list] = []
    room = 0
    for built, source in flat:
        if len(built) - 1 > room:
            rows.append([])
            room = row_length
        rows[-1].append((built, source))
        room -= len(built) - 1
    for start in range(0, len(rows), batch_size):
        yield _batch(rows[start : start + batch_size], batch_size, row_length)


def _batch(rows: Sequence[Sequence], batch_size: int, row_length: int) -> dict[str, np.ndarray]:
    names = ("inputs", "targets", "classes", "sources", "segment_ids", "positions")
    batch = {name: np.zeros((batch_size, row_length), np.int32) for name in names}
    for r, row in enumerate(rows):
        start = 0
        for number, (built, source) in enumerate(row, start=1):
            count = len(built) - 1
            place = (r, slice(start, start + count))
            batch["inputs"][place] = built.ids[:-1]
            batch["targets"][place] = built.ids[1:]
            scored = built.weights[1:] > 0
            batch["classes"][place] = np.where(scored, built.classes[1:], TokenClass.PAD)
            batch["sources"][place] = source
            batch["segment_ids"][place] = number
            batch["positions"][place] = np.arange(count)
            start += count
    return batch
