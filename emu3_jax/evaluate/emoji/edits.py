"""Is an image drawn from an image and an instruction nearest, among all targets, to the right one?

The edits of a split are its file `edits_<split>.jsonl` (`data.emoji_documents`): another skin tone,
another person, another style. The distance is that of `emoji.retrieval`; the gallery is all targets
of the splits, in every style.

Two figures stand beside each: `copy`, the source in place of what is drawn, and `ceiling`, the
target itself, both after the vision tokenizer. An edit changes little of most images, so that a
copy is often found among the nearest ten; `nearer`, the share of images that are nearer to the
target than the copy is, counts what was changed alone. A copy has 0 % there.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from emu3_jax.data.codec import vision_codec
from emu3_jax.data.evenly import evenly_chosen
from emu3_jax.data.sources import SourceError, open_source
from emu3_jax.evaluate import items, language_use
from emu3_jax.evaluate.emoji.retrieval import (
    RECALLS,
    SHEET_COLUMNS,
    features,
    ranks_of_right,
    recall_metrics,
)
from emu3_jax.evaluate.evaluator import Result, Subject, Table
from emu3_jax.figures.contact_sheet import contact_sheet, tiled
from emu3_jax.generate import modalities
from emu3_jax.interop.bundle import Language
from emu3_jax.sequence import Image, Text


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """One row of `edits_<split>.jsonl`.

    Attributes:
      key: the row's "id".
      split: where it is from.
      kind: the row's "kind": what is changed; "" if it has none.
      instruction: what to do.
      source: the file of the image to change.
      target: that of the image to make of it.
    """

    key: str
    split: str
    kind: str
    instruction: str
    source: str
    target: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiEdits(language_use.ImageEvaluator):
    """Recall at 1, 5, 10 of edited images among all targets; see the module docstring.

    Attributes:
      splits: splits whose edits are made, `limit` of each.
      sampling: how to draw images, with the seed.
      shown: edits on the sheet of sources, targets and drawn images.
    """

    headline: ClassVar[tuple[str, ...]] = ("recall_*", "nearer*")

    name: str = "emoji_edits"
    splits: tuple[str, ...] = ("validation", "validation_combination")
    sampling: language_use.DrawingSampling = language_use.DrawingSampling()
    shown: int = 32

    def __post_init__(self):
        super().__post_init__()
        self.at_least(shown=1)

    def check(self, language: Language) -> None:
        """Also checks the edits."""
        self.use("data", self._edits)
        super().check(language)

    def run(self, subject: Subject) -> Result:
        """Makes every edit and ranks the targets by distance to it."""
        edits, problems = self.use("data", self._edits)
        reader = items.Reader(self.tokenizer[0].config, subject.language_model.media)
        pixels = reader.read_files(path for edit in edits for path in (edit.source, edit.target))
        reader.skipped += problems
        edits = [edit for edit in edits if {edit.source, edit.target} <= pixels.keys()]
        encode, decode = (
            functools.partial(function, self.tokenizer, batch_size=self.batch_size)
            for function in (vision_codec.encode, vision_codec.decode)
        )
        counter = subject.progress.counter
        encoded = encode(list(pixels.values()), done=counter("encoded", len(pixels)))
        codes = dict(zip(pixels, encoded, strict=True))
        decoded = decode(list(codes.values()), done=counter("decoded", len(codes)))
        rebuilt = dict(zip(pixels, decoded, strict=True))
        of_edits = self._draw(subject, edits, codes)
        drawn = decode(of_edits, done=counter("edits decoded", len(edits)))
        gallery = sorted({edit.target for edit in edits})
        right = [gallery.index(edit.target) for edit in edits]
        gallery_ND = features([pixels[path] for path in gallery])
        found = {
            "": features(drawn),
            "_copy": features([rebuilt[edit.source] for edit in edits]),
            "_ceiling": features([rebuilt[edit.target] for edit in edits]),
        }
        labels = [[edit.split, *filter(None, [edit.kind])] for edit in edits]
        metrics = edit_metrics(labels, found, gallery_ND, right) | reader.metrics
        ranks = ranks_of_right(found[""], gallery_ND, right=right)
        columns = ("id", "split", "kind", "instruction", "rank")
        rows = [
            (edit.key, edit.split, edit.kind, edit.instruction, int(rank))
            for edit, rank in zip(edits, ranks, strict=True)
        ]
        sheet = {"drawn": self._sheet(edits, pixels, drawn)}
        return Result(metrics, {"ranks": Table(columns, tuple(rows))}, sheet, notes=reader.notes)

    def _draw(self, subject: Subject, edits: Sequence[Edit], codes: Mapping[str, np.ndarray]):
        options = modalities.Options(
            sampling=self.sampling, batch_size=self.batch_size, progress=subject.progress.line
        )
        prompts = [(Image(codes[edit.source]), Text(edit.instruction)) for edit in edits]
        sizes = [codes[edit.target].shape for edit in edits]
        return modalities.draw_images(subject.language_model, prompts, sizes, options)

    def _edits(self, data: str) -> tuple[list[Edit], list[str]]:
        """As `read_edits`, of all splits."""
        found = [read_edits(data, split, self.limit) for split in self.splits]
        edits, problems = (
            list(itertools.chain.from_iterable(part)) for part in zip(*found, strict=True)
        )
        items.check_share(problems, len(edits) + len(problems))
        return edits, problems

    def _sheet(self, edits, pixels, drawn) -> np.ndarray:
        """Rows of sources, of targets below them, and of what was drawn below these."""
        shown = evenly_chosen(list(zip(edits, drawn, strict=True)), self.shown)
        lists = zip(*((pixels[e.source], pixels[e.target], d) for e, d in shown), strict=True)
        return contact_sheet(tiled(SHEET_COLUMNS, *lists))


def read_edits(data: str | os.PathLike, split: str, limit: int = 0) -> tuple[list[Edit], list[str]]:
    """Returns the edits of a split in file order, the first `limit` of them; 0 for all.

    Returns:
      (edits, a sentence on each row up to the last of them that is no edit of one image).

    Raises:
      SourceError: there is no file, or no edit in it.
    """
    source = open_source(f"edit:edits_{split}.jsonl", data)
    edits, problems = [], []
    for row in itertools.chain.from_iterable(map(source.items, range(source.num_shards))):
        if 0 < limit <= len(edits):
            break
        if row.problem or len(row.segments) != 3:
            problems.append(f"{row.where}: {row.problem or 'expected an edit of one image'}")
            continue
        before, instruction, target = row.segments
        kind = str(row.attributes.get("kind", ""))
        edits.append(
            Edit(row.key, split, kind, instruction["text"], before["image"], target["image"])
        )
    if not edits:
        first = f"; the first row: {problems[0]}" if problems else ""
        raise SourceError(f"{data}: edits_{split}.jsonl holds no edit{first}")
    return edits, problems


def edit_metrics(
    labels: Sequence[Sequence[str]],
    found: Mapping[str, np.ndarray],
    gallery_ND: np.ndarray,
    right: Sequence[int],
) -> dict[str, float]:
    """Returns recalls, median ranks and `nearer`, of all edits and of those of each label.

    Args:
      labels: of N edits, some each; metrics of a label have its name in theirs.
      found: suffix of the metric → features float64 [N, D]; "" is what was drawn, "_copy" the
        sources.
      gallery_ND: features of the distinct targets.
      right: position in the gallery of each edit's target.
    """
    target_ND = gallery_ND[np.array(right)]
    far = np.linalg.norm(found["_copy"] - target_ND, axis=1)
    chosen = {"": np.ones(len(labels), bool)}
    for label in sorted(set(itertools.chain.from_iterable(labels))):
        chosen[f"_{label}"] = np.array([label in each for each in labels])
    metrics = {}
    for suffix, query_ND in found.items():
        ranks = ranks_of_right(query_ND, gallery_ND, right=right)
        nearer = np.linalg.norm(query_ND - target_ND, axis=1) < far - 1e-9
        for label, these in chosen.items():
            metrics |= recall_metrics(ranks[these], label + suffix)
            metrics[f"nearer{label}{suffix}"] = 100.0 * float(np.mean(nearer[these]))
    recalls = {f"recall_at_{k}_chance": 100.0 * min(1.0, k / len(gallery_ND)) for k in RECALLS}
    return metrics | recalls | {"edits": len(labels), "gallery": len(gallery_ND)}
