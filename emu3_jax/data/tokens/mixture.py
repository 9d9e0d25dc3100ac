"""Which documents training sees: datasets, what is learnt from them, and in which proportion."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import grain
import numpy as np

from emu3_jax.data.codec.fingerprint import check_same
from emu3_jax.data.tokens.records import Record, RecordError, TokenDataset, open_dataset
from emu3_jax.sequence import Document, Grammar, LossWeights, Segment, Text

# What of a dataset's recipe gives codes their meaning: the sizes and rates of media.
MEDIA_RULES = ("min_pixels", "max_pixels", "fps", "max_frames")


@dataclass(frozen=True)
class Task:
    """What is learnt from a record.

    Attributes:
      kind: of the records that it needs.
      reversed: the segments are read in the reversed order (stored is the caption, then the image
        or the video).
      has_prompt: a caption comes first, which guidance at generation leaves out.
    """

    kind: str
    reversed: bool = False
    has_prompt: bool = False

    def order(self, segments: Sequence[Segment]) -> tuple[Segment, ...]:
        """The segments of a record in the order in which they are read."""
        return tuple(segments[::-1] if self.reversed else segments)


TASKS = {
    "text": Task("text"),
    "text_to_image": Task("image", has_prompt=True),
    "image_to_text": Task("image", reversed=True),
    "text_to_video": Task("video", has_prompt=True),
    "video_to_text": Task("video", reversed=True),
    "document": Task("document"),
    "chat": Task("chat"),
}


@dataclass(frozen=True)
class MixtureEntry:
    """One dataset used for one task.

    Attributes:
      dataset: folder with a dataset.json.
      task: one of `TASKS`.
      weight: how often a document of this entry comes up, relative to the other entries.
      null_prompt: share of the documents whose caption is left empty, for guidance at generation
        (released fine-tuning: 0.05); only where the caption comes first.
      train_condition: whether what comes first (the caption, or the picture to be described) is
        trained on too; pretraining does, fine-tuning as released does not.
      name: what metrics call the entry; "" for its task.
    """

    dataset: str
    task: str
    weight: float = 1.0
    null_prompt: float = 0.0
    train_condition: bool = True
    name: str = ""

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, found {self.task!r}")
        if not self.weight > 0:
            raise ValueError(f"weight must be above zero, found {self.weight}")
        if not 0 <= self.null_prompt <= 1:
            raise ValueError(f"null_prompt must be from 0 to 1, found {self.null_prompt}")
        if self.null_prompt and not TASKS[self.task].has_prompt:
            raise ValueError(f"null_prompt is for captions that come first, not for {self.task}")

    @property
    def label(self) -> str:
        """The entry's name in metrics."""
        return self.name or self.task


class Tokens(NamedTuple):
    """One document as tokens: arrays [n] as in `emu3_jax.sequence.Sequence`, the index of its
    mixture entry, and whether it must stay whole because it shows a picture or a clip."""

    ids: np.ndarray
    weights: np.ndarray
    classes: np.ndarray
    source: int
    whole: bool


@dataclass(frozen=True)
class _Build:
    """Record -> Tokens; the random numbers decide on the empty caption."""

    entry: MixtureEntry
    source: int
    grammar: Grammar
    loss_weights: LossWeights

    def __call__(self, record: Record, rng: np.random.Generator) -> Tokens:
        segments = list(record.segments)
        task = TASKS[self.entry.task]
        if self.entry.null_prompt and rng.random() < self.entry.null_prompt:
            segments[0] = Text("", ids=())
        segments = list(task.order(segments))
        if not self.entry.train_condition and len(segments) > 1:
            segments[0] = replace(segments[0], loss=False)
        built = self.grammar.build(Document(tuple(segments)), self.loss_weights)
        whole = any(_shows(segment) for segment in segments)
        return Tokens(built.ids, built.weights, built.classes, self.source, whole)


def _shows(segment: Segment) -> bool:
    return hasattr(segment, "codes")


def check_names(entries: Sequence[MixtureEntry]) -> tuple[str, ...]:
    """The entries' names for metrics; ValueError for an empty mixture and for a name twice."""
    names = tuple(entry.label for entry in entries)
    if not names:
        raise ValueError("mixture names no dataset, expected at least one entry")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two mixture entries are called {name!r}; give one another name")
    return names


def media_rules(entries: Sequence[MixtureEntry]) -> dict[str, float]:
    """How media became codes, of what all datasets with codes agree about.

    Returns:
      Of MEDIA_RULES the names on which they agree, with their values.
    """
    recipes = [open_dataset(entry.dataset).info for entry in entries]
    recipes = [info.recipe for info in recipes if info.vision_tokenizer]
    return {
        name: recipes[0][name]
        for name in MEDIA_RULES
        if recipes and all(r.get(name) == recipes[0].get(name) is not None for r in recipes)
    }


def vision_tokenizer_of(entries: Sequence[MixtureEntry]) -> str:
    """Fingerprint of the one vision tokenizer whose codes the datasets hold; "" for text alone.

    Raises ValueError naming two datasets that hold codes of two tokenizers: equal numbers would
    mean different things.
    """
    stated = {
        f"{entry.dataset} was made with": open_dataset(entry.dataset).info.vision_tokenizer
        for entry in entries
    }
    check_same("vision tokenizer", stated)
    return next(filter(None, stated.values()), "")


def open_mixture(
    entries: Sequence[MixtureEntry],
    grammar: Grammar,
    loss_weights: LossWeights,
    seq_len: int,
    seed: int,
) -> list[grain.MapDataset]:
    """Each entry as an endless dataset of `Tokens`, shuffled anew each epoch.

    Raises ValueError naming the dataset that does not fit the grammar or the others, has no
    records for its task, or of whose documents not even the shortest fits into `seq_len`.
    """
    check_names(entries)
    vision_tokenizer_of(entries)  # raises where there are two
    datasets = []
    for index, entry in enumerate(entries):
        opened = open_dataset(entry.dataset, grammar)
        records = opened.records(TASKS[entry.task].kind)
        _check_length(opened, entry, seq_len)
        # Entries that read the same records must not draw the same order.
        dataset = grain.MapDataset.source(records).seed(1000 * seed + index).shuffle().repeat()
        build = _Build(entry, index, grammar, loss_weights)
        datasets.append(dataset.random_map(build))
    return datasets


def _check_length(dataset: TokenDataset, entry: MixtureEntry, seq_len: int) -> None:
    kind = TASKS[entry.task].kind
    shortest = dataset.info.counts[kind].shortest - 1
    if kind != "text" and shortest > seq_len:
        raise RecordError(
            f"{dataset.path}: even the shortest {kind} document has {shortest} tokens to predict, "
            f"more than the sequence length {seq_len}"
        )


def row_stream(
    datasets: Sequence[grain.MapDataset], entries: Sequence[MixtureEntry], row: int, rows: int
) -> grain.MapDataset:
    """The endless stream of documents of one row of the batch.

    Of each entry, row r takes the documents r, r + rows, r + 2 rows, … so that all rows together
    see each document once an epoch, whoever reads them.
    """
    parts = [dataset[row::rows] for dataset in datasets]
    return grain.MapDataset.mix(parts, [entry.weight for entry in entries])
