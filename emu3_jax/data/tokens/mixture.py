"""The training mixture: datasets, the tasks learnt from them, and their proportions."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isnan

import grain
import numpy as np

from emu3_jax.config import check_choice
from emu3_jax.data.codec.fingerprint import check_same
from emu3_jax.data.tokens import quality
from emu3_jax.data.tokens.cutting import Tokens, ends_of
from emu3_jax.data.tokens.preference_pairs import PREFERENCE
from emu3_jax.data.tokens.records import Record, RecordError, TokenDataset, open_dataset
from emu3_jax.sequence import Document, Grammar, LossWeights, Segment, Text

# What of a dataset's recipe gives codes their meaning: the sizes and rates of media.
MEDIA_RULES = ("min_pixels", "max_pixels", "fps", "max_frames")


@dataclass(frozen=True)
class DocumentTask:
    """How a record becomes a document to train on.

    Attributes:
      kind: kind of the records that it needs.
      reversed: the segments are reversed (a record stores the caption first, then the image or the
        video).
      has_prompt: texts before the last segment are a prompt, which guidance omits at generation.
      first: only so many segments are read, the first; 0 for all.
      ability: what generation calls that which is learnt; "" for the task's own name.
    """

    kind: str
    reversed: bool = False
    has_prompt: bool = False
    first: int = 0
    ability: str = ""

    def order(self, segments: Sequence[Segment]) -> tuple[Segment, ...]:
        """The segments of a record in the order of the document."""
        segments = segments[: self.first or None]
        return tuple(segments[::-1] if self.reversed else segments)


DOCUMENT_TASKS = {
    "text": DocumentTask("text"),
    "text_to_image": DocumentTask("image", has_prompt=True),
    "image_to_text": DocumentTask("image", reversed=True),
    "text_to_video": DocumentTask("video", has_prompt=True),
    "video_to_text": DocumentTask("video", reversed=True),
    "document": DocumentTask("document", has_prompt=True),
    "chat": DocumentTask("chat"),
    # Of a pair the prompt and the image that was preferred: best-of-n learnt by imitation.
    "chosen": DocumentTask(PREFERENCE, has_prompt=True, first=2, ability="text_to_image"),
}


@dataclass(frozen=True)
class MixtureEntry:
    """One dataset used for one task.

    Attributes:
      dataset: folder with a dataset.json.
      task: what is learnt from its records: text, text_to_image, image_to_text, text_to_video,
        video_to_text, document, chat or chosen (the prompt and the chosen image of a pair).
      weight: frequency of this entry's documents, relative to the other entries.
      null_prompt: share of the documents whose prompt is left empty, for guidance at generation
        (released fine-tuning: 0.05): the caption, or all texts of a document before its last image,
        clip or text, while its other images stay; only for tasks with such a prompt.
      train_condition: whether the loss covers what comes before the last segment too (the caption,
        the image to be described, the instruction and the images to be edited); pretraining does,
        released fine-tuning does not. Of a chat only the answers are learnt in either case.
      name: name of the entry in metrics; "" for its task.
      at_least: name of a score → the least that a record must have to be read, such as
        {"aesthetics": 5.5, "pixels": 262144, "motion": 2}; see `data.tokens.quality`.
    """

    dataset: str
    task: str
    weight: float = 1.0
    null_prompt: float = 0.0
    train_condition: bool = True
    name: str = ""
    at_least: dict = field(default_factory=dict)

    def __post_init__(self):
        check_choice("task", self.task, DOCUMENT_TASKS)
        if not self.weight > 0:
            raise ValueError(f"weight must be above zero, found {self.weight}")
        if not 0 <= self.null_prompt <= 1:
            raise ValueError(f"null_prompt must be from 0 to 1, found {self.null_prompt}")
        for name, least in self.at_least.items():
            if isinstance(least, bool) or not isinstance(least, int | float) or isnan(least):
                raise ValueError(f"at_least.{name} must be a number, found {least!r}")
        if self.null_prompt and not DOCUMENT_TASKS[self.task].has_prompt:
            raise ValueError(f"null_prompt is for captions that come first, not for {self.task}")

    @property
    def ability(self) -> str:
        """What generation calls that which is learnt."""
        return DOCUMENT_TASKS[self.task].ability or self.task

    @property
    def label(self) -> str:
        """The entry's name in metrics."""
        return self.name or self.task


@dataclass(frozen=True)
class _Build:
    """Record -> Tokens; the generator decides whether the caption is left empty."""

    entry: MixtureEntry
    source: int
    grammar: Grammar
    loss_weights: LossWeights

    def __call__(self, record: Record, rng: np.random.Generator) -> Tokens:
        task = DOCUMENT_TASKS[self.entry.task]
        segments = task.order(record.segments)
        condition, last = segments[:-1], segments[-1:]
        if self.entry.null_prompt and rng.random() < self.entry.null_prompt:
            condition = [s for s in condition if not isinstance(s, Text)]
        if not self.entry.train_condition and task.kind != "chat":
            condition = [replace(segment, loss=False) for segment in condition]
        built = self.grammar.build(Document((*condition, *last)), self.loss_weights)
        return Tokens(built.ids, built.weights, built.classes, self.source, ends_of(built))


def check_names(entries: Sequence[MixtureEntry]) -> tuple[str, ...]:
    """The entries' names for metrics; ValueError for an empty mixture or a repeated name."""
    names = tuple(entry.label for entry in entries)
    if not names:
        raise ValueError("the mixture is empty, expected at least one entry")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two mixture entries have the name {name!r}; rename one")
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

    Raises ValueError naming two datasets with codes of different tokenizers: equal numbers would
    mean different things.
    """
    stated = {
        f"{entry.dataset} was made with": open_dataset(entry.dataset).info.vision_tokenizer
        for entry in entries
    }
    check_same("vision tokenizer", stated)
    return next(filter(None, stated.values()), "")


def content_of(entry: MixtureEntry) -> str:
    """Fingerprint of the records that an entry reads; errors as `open_mixture`."""
    opened = open_dataset(entry.dataset)
    if not entry.at_least:
        return opened.info.fingerprint
    return f"{opened.info.fingerprint}-{zlib.crc32(_kept(opened, entry).tobytes()):08x}"


def _kept(opened: TokenDataset, entry: MixtureEntry) -> np.ndarray:
    return quality.passing(opened, DOCUMENT_TASKS[entry.task].kind, entry.at_least)


def open_mixture(
    entries: Sequence[MixtureEntry],
    grammar: Grammar,
    loss_weights: LossWeights,
    seq_len: int,
    seed: int,
) -> list[grain.MapDataset]:
    """Each entry as an endless dataset of `Tokens`, reshuffled each epoch.

    Raises ValueError naming a dataset that does not fit the grammar or the other datasets, has no
    records for its task, or none that is good enough, or whose shortest document is longer than
    `seq_len`.
    """
    check_names(entries)
    vision_tokenizer_of(entries)  # raises if there are two
    datasets = []
    for index, entry in enumerate(entries):
        opened = open_dataset(entry.dataset, grammar)
        records = opened.records(DOCUMENT_TASKS[entry.task].kind)
        if entry.at_least:
            records = quality.KeptRecords(records, _kept(opened, entry))
        _check_length(opened, entry, seq_len)
        # Entries that read the same records must not draw the same order.
        dataset = grain.MapDataset.source(records).seed(1000 * seed + index).shuffle().repeat()
        build = _Build(entry, index, grammar, loss_weights)
        datasets.append(dataset.random_map(build))
    return datasets


def _check_length(dataset: TokenDataset, entry: MixtureEntry, seq_len: int) -> None:
    kind = DOCUMENT_TASKS[entry.task].kind
    shortest = dataset.info.counts[kind].shortest - 1
    if kind not in ("text", "chat") and shortest > seq_len:  # these may be cut
        raise RecordError(
            f"{dataset.path}: even the shortest {kind} document has {shortest} tokens to predict, "
            f"more than the sequence length {seq_len}"
        )


def row_stream(
    datasets: Sequence[grain.MapDataset], entries: Sequence[MixtureEntry], row: int, rows: int
) -> grain.MapDataset:
    """The endless stream of documents of one row of the batch.

    Row r takes the documents r, r + rows, r + 2 rows, … of each entry, so that all rows together
    read each document once per epoch, whichever process reads a row.
    """
    parts = [dataset[row::rows] for dataset in datasets]
    return grain.MapDataset.mix(parts, [entry.weight for entry in entries])
