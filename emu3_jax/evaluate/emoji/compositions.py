"""Does an image drawn from a held-out caption show the tone, the person and the activity it states?

As GenEval does for photographs, a judge that the language model never meets looks at every drawn
image, and `overall` is the mean over kinds of task, not over images. The tasks are the captions of
held-out splits: a tone, a person or an activity alone, two of them, or all three. A part is judged
if some training image shows its value; the combination is new. The judge (`emoji.judge`) learns
from the real training images alone and is calibrated on a part of them.

Every figure stands beside three others: `ceiling`, the judge on the real held-out images after the
vision tokenizer, which a model that predicts every code correctly would reach; `real`, on these
images as stored; `chance`, on the drawn images with every caption of the set in turn, so that
images that ignore their caption are right by chance alone.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from emu3_jax.evaluate import items, language_use
from emu3_jax.evaluate.emoji import judged_sheet
from emu3_jax.evaluate.emoji.judge import Judge, Reading
from emu3_jax.evaluate.emoji.names import PARTS, parse_caption, stated_parts
from emu3_jax.evaluate.evaluator import Result, Subject, Table
from emu3_jax.evaluate.vision.reconstruction import reconstruct
from emu3_jax.generate import modalities
from emu3_jax.interop.bundle import Language

TRAIN = "train"
KINDS = ("tone_only", "person_only", "activity_only", "two", "three")
# Fewer tasks of a kind are worth a note: their share has a standard error of about 11 points.
FEW = 20
# Part → the value that a judge reads where a caption states none; no tone is the yellow of emoji.
UNSTATED = {"tone": ""}

Stated = Mapping[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Composition:
    """A caption to draw.

    Attributes:
      item: the real one.
      split: where it is from.
      stated: part → value, of the parts that are judged.
    """

    item: items.Item
    split: str
    stated: Stated


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiCompositions(language_use.ImageEvaluator):
    """Shares of drawn images that show what their caption states; see the module docstring.

    Attributes:
      splits: splits whose compositions are drawn, `limit` of each. The data must have the split
        `train` too.
      sampling: how to draw images, with the seed.
      shown: images on the sheet of real and drawn ones.
    """

    headline: ClassVar[tuple[str, ...]] = ("overall_*", "whole_*")

    name: str = "emoji_compositions"
    splits: tuple[str, ...] = ("validation", "validation_combination")
    sampling: language_use.DrawingSampling = language_use.DrawingSampling()
    shown: int = 48

    def __post_init__(self):
        super().__post_init__()
        self.at_least(shown=1)
        if TRAIN in self.splits:
            raise ValueError(f"splits must not name {TRAIN!r}, from which the judge learns")

    def check(self, language: Language) -> None:
        """Also checks the training images."""
        self.use("data", lambda data: items.check_splits(data, (TRAIN,)))
        super().check(language)

    def run(self, subject: Subject) -> Result:
        """Draws an image for every composition and lets the judge read it."""
        data = self.use("data", pathlib.Path)
        reader = items.Reader(self.tokenizer[0].config, subject.language_model.media)
        train = reader.read_images(data, TRAIN)
        shown_parts = parts_shown(item.text for item in train)
        if not (shown_parts["tone"] or shown_parts["person"]):
            raise ValueError(
                f"{data}: the captions of the split {TRAIN!r} do not state two different tones of "
                "skin, nor two different persons; the judge has nothing to learn from"
            )
        chosen = self._compositions(reader, data, shown_parts)
        judge, note = self._judge(train, shown_parts)
        real = [composition.item for composition in chosen]
        options = modalities.Options(
            sampling=self.sampling, batch_size=self.batch_size, progress=subject.progress.line
        )
        drawn = language_use.draw(subject.language_model, self.tokenizer, real, options)
        originals, rebuilt, _ = reconstruct(self.tokenizer, real, self.batch_size, subject.progress)
        read = {"right": drawn, "ceiling": rebuilt, "real": originals}
        read = {name: judge.read(images) for name, images in read.items()}
        stated = [composition.stated for composition in chosen]
        table = judged_table(chosen, read["right"])
        sheet = judged_sheet.sheet(originals, drawn, stated, read["right"], self.shown)
        notes = [note, *doubts(stated, read["real"]), *reader.notes]
        metrics = figures(stated, read) | reader.metrics
        return Result(metrics, {"judged": table}, {"judged": sheet}, notes=notes)

    def _compositions(
        self, reader: items.Reader, data: pathlib.Path, shown_parts: Mapping[str, set[str]]
    ) -> list[Composition]:
        compositions = []
        for split in self.splits:
            found = [
                Composition(item, split, stated)
                for item in reader.read_images(data, split)
                if (stated := known_parts(item.text, shown_parts))
            ]
            if not found:
                raise ValueError(
                    f"{data}: no caption of the split {split!r} states a tone, a person or an "
                    f"activity that a person of the split {TRAIN!r} shows"
                )
            compositions += found[: self.limit or None]
        return compositions

    def _judge(
        self, train: Sequence[items.Item], shown_parts: Mapping[str, set[str]]
    ) -> tuple[Judge, str]:
        """Returns the judge and a note about what it has learned from."""
        stated = [known_parts(item.text, shown_parts) for item in train]
        kept = [i for i, parts in enumerate(stated) if parts]
        stated = [stated[i] for i in kept]
        labels = {
            part: [one.get(part, UNSTATED.get(part)) for one in stated]
            for part in PARTS
            if shown_parts[part]
        }
        bases = [parse_caption(train[i].text).person for i in kept]
        judge = Judge([train[i].pixels for i in kept], labels, bases)
        return judge, f"the judge has learned from {len(kept)} real training images"


def parts_shown(captions: Iterable[str]) -> dict[str, set[str]]:
    """Returns part → its values in captions that state a tone or a person; none if there is one."""
    shown = {part: set() for part in PARTS}
    for caption in captions:
        stated = stated_parts(caption)
        if stated.keys() & {"tone", "person"}:
            for part, value in stated.items():
                shown[part].add(value)
    return {part: values if len(values) > 1 else set() for part, values in shown.items()}


def known_parts(caption: str, shown_parts: Mapping[str, set[str]]) -> dict[str, str]:
    """Returns the parts that a caption states and that `shown_parts` has."""
    stated = stated_parts(caption)
    return {part: value for part, value in stated.items() if value in shown_parts[part]}


def kind(stated: Stated) -> str:
    """Returns which of KINDS a task is."""
    return f"{next(iter(stated))}_only" if len(stated) == 1 else KINDS[len(stated) + 1]


def figures(
    stated: Sequence[Stated], read: Mapping[str, Mapping[str, Reading]]
) -> dict[str, float]:
    """Returns shares in percent: `shares` of each set of readings, and chance of "right"."""
    sets = {name: shares(stated, readings, np.diagonal) for name, readings in read.items()}
    sets["chance"] = shares(stated, read["right"], lambda agree_NN: agree_NN.mean(axis=1))
    metrics = {
        f"{figure}_{name}": values[figure]
        for figure in sets["right"]
        for name, values in sets.items()
    }
    for name in ("right", "real"):
        suffix = "" if name == "right" else f"_{name}"
        for part, reading in read[name].items():
            states = np.array([part in one for one in stated])
            if states.any():
                confidence = reading.probabilities[states].mean()
                metrics[f"{part}_confidence{suffix}"] = 100.0 * float(confidence)
    kinds = [kind(one) for one in stated]
    counts = {f"count_{name}": kinds.count(name) for name in KINDS}
    return metrics | {"count": len(stated)} | counts


def shares(
    stated: Sequence[Stated],
    readings: Mapping[str, Reading],
    score: Callable[[np.ndarray], np.ndarray],
) -> dict[str, float]:
    """Returns shares in percent of images that show what is stated.

    Args:
      stated: of N captions.
      readings: part → reading of N images.
      score: bool [N, N], whether image j shows what caption i states, → float [N], by caption.

    Returns:
      `overall`, the mean over the kinds of task that occur; `whole`, over images; the share of each
      kind; the share of each part among the captions that state it.
    """
    agree = {part: _agreement(stated, reading, part) for part, reading in readings.items()}
    whole_N = score(np.logical_and.reduce(list(agree.values())))
    kinds = np.array([kind(one) for one in stated])
    by_kind = {name: whole_N[kinds == name].mean() for name in KINDS if name in kinds}
    found = {"overall": np.mean(list(by_kind.values())), "whole": whole_N.mean()} | by_kind
    for part, agree_NN in agree.items():
        states = np.array([part in one for one in stated])
        if states.any():
            found[part] = score(agree_NN)[states].mean()
    return {name: 100.0 * float(share) for name, share in found.items()}


def doubts(stated: Sequence[Stated], real: Mapping[str, Reading]) -> list[str]:
    """Returns a sentence about kinds of few tasks and each part that was not or cannot be judged.

    The judge can read a part if on real held-out images it is right more often than the best
    constant answer, by more than two standard errors.
    """
    counts = {name: [kind(one) for one in stated].count(name) for name in KINDS}
    few = [f"{name} {count}" for name, count in counts.items() if count < FEW]
    notes = [f"few captions of a kind, so overall is uncertain: {', '.join(few)}"] if few else []
    for part in PARTS:
        truths = [one[part] for one in stated if part in one]
        if not truths:
            notes.append(f"no caption states a known {part}: it was not judged")
            continue
        pairs = zip(stated, real[part].values, strict=True)
        right = np.mean([one[part] == value for one, value in pairs if part in one])
        constant = max(truths.count(value) for value in set(truths)) / len(truths)
        if right <= constant + 2 * np.sqrt(constant * (1 - constant) / len(truths)):
            notes.append(
                f"the judge cannot read the {part}: it is right on {100 * right:.1f} % of real "
                f"held-out images, one constant answer on {100 * constant:.1f} %; what it says of "
                "drawn images means nothing"
            )
    return notes


def judged_table(chosen: Sequence[Composition], readings: Mapping[str, Reading]) -> Table:
    """Returns a row per drawn image: what is stated, what was read, how surely."""
    columns = ["id", "split", "caption", "kind", "right"]
    for part in readings:
        columns += [part, f"{part}_read", f"{part}_probability"]
    rows = []
    for i, one in enumerate(chosen):
        right = all(readings[part].values[i] == value for part, value in one.stated.items())
        row = [one.item.key, one.split, one.item.text, kind(one.stated), int(right)]
        for part, reading in readings.items():
            probability = round(float(reading.probabilities[i]), 4)
            row += [one.stated.get(part), reading.values[i], probability]
        rows.append(tuple(row))
    return Table(tuple(columns), tuple(rows))


def _agreement(stated: Sequence[Stated], reading: Reading, part: str) -> np.ndarray:
    """Bool [N, N]: image j shows this part of caption i, or the caption does not state it."""
    values = np.array(reading.values)
    return np.stack([values == one[part] if part in one else values == values for one in stated])
