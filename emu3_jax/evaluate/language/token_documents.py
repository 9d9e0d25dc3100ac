"""Documents to score from a token dataset: each record once for every task that it allows."""

import os
from collections.abc import Sequence

from etils import epath

from emu3_jax import sequence
from emu3_jax.data.tokens.mixture import DOCUMENT_TASKS
from emu3_jax.data.tokens.preference_pairs import PREFERENCE
from emu3_jax.data.tokens.records import DATASET_FILE, Record, open_dataset
from emu3_jax.sequence import Document, Grammar


def dataset_path(tokens: str | os.PathLike, split: str) -> epath.Path:
    """Returns `tokens` if it is a dataset, else its sub-folder `split`; ValueError if neither."""
    for path in (epath.Path(tokens), epath.Path(tokens) / split):
        if (path / DATASET_FILE).is_file():
            return path
    raise ValueError(f"neither {tokens} nor {tokens}/{split} is a token dataset ({DATASET_FILE})")


def dataset_paths(tokens: str | os.PathLike, splits: Sequence[str]) -> list[epath.Path]:
    """Returns the different `dataset_path`s of the splits; `tokens` once if it is a dataset."""
    return list(dict.fromkeys(dataset_path(tokens, split) for split in splits))


def documents_by_task(
    path: str | os.PathLike, grammar: Grammar, vision_fingerprint: str | None = None, limit: int = 0
) -> dict[str, list[sequence.Sequence]]:
    """Builds every record of a dataset once for every task.

    Args:
      path: a token dataset.
      grammar: vocabulary and tokenizers; they must be those of the dataset.
      vision_fingerprint: fingerprint of the model's vision tokenizer, if known.
      limit: use the first this many records of each kind; 0 for all.

    Returns:
      task → sequences, without tasks that have no documents.

    Raises:
      ValueError: the dataset does not fit, or holds no records.
    """
    dataset = open_dataset(path, grammar, vision_fingerprint)
    documents: dict[str, list[sequence.Sequence]] = {}
    for kind in dataset.info.counts:
        records = dataset.records(kind)
        for index in range(min(limit or len(records), len(records))):
            for task, document in tasks_of(records[index]).items():
                documents.setdefault(task, []).append(grammar.build(document))
    if not documents:
        held = ", ".join(sorted(dataset.info.counts))
        raise ValueError(
            f"{path} holds no records of which a document is made"
            + (f", only {held}" if held else "")
        )
    return documents


def tasks_of(record: Record) -> dict[str, Document]:
    """Returns task → document of a record; captioned images and videos give both directions.

    A pair gives none: one of its images is no document of the data.
    """
    return {
        name: Document(task.order(record.segments))
        for name, task in DOCUMENT_TASKS.items()
        if task.kind == record.kind and record.kind != PREFERENCE
    }
