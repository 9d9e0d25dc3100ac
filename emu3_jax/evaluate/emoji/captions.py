"""Does a caption written for a toned emoji name the right person and the right tone of skin?

On the split `validation_combination` every person and every tone occurs in training, but never
together: an answer copied from the most similar training image cannot be right.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from emu3_jax.data.emoji_styles import split_style
from emu3_jax.data.fluent_emoji import TONES
from emu3_jax.evaluate import items, language_use
from emu3_jax.evaluate.emoji.names import ParsedCaption, parse_caption
from emu3_jax.evaluate.emoji.retrieval import features
from emu3_jax.evaluate.evaluator import Result, Subject, Table
from emu3_jax.interop.bundle import Language


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiCaptions(language_use.ImageEvaluator):
    """Shares of toned items whose greedy caption has the right tone, person, both, every word.

    If items have a style, also of those whose caption names it; it does not count as a word. For
    comparison: the shares of the best constant answer and of the caption of the nearest training
    image.

    Attributes:
      splits: splits to evaluate separately. The data must have the split `train` too.
    """

    name: str = "emoji_captions"
    splits: tuple[str, ...] = ("validation_combination", "validation")

    def check(self, language: Language) -> None:
        """Also checks the training images."""
        self.use("data", lambda data: items.check_splits(data, ("train",)))
        super().check(language)

    def run(self, subject: Subject) -> Result:
        """Writes and scores a caption for every toned still."""
        data = self.use("data", pathlib.Path)
        reader = items.Reader(self.tokenizer[0].config, subject.language_model.media)
        train = reader.read_images(data, "train")
        metrics, tables = {}, {}
        for split in self.splits:
            chosen = reader.read_images(data, split, self.limit)
            chosen = [item for item in chosen if item.attributes.get("tone")]
            if not chosen:
                raise ValueError(f"{data}: split {split!r} holds no item with a tone")
            written = language_use.caption(
                subject.language_model,
                self.tokenizer,
                [item.pixels for item in chosen],
                self.batch_size,
                subject.progress,
            )
            truths = [parse_caption(item.text) for item in chosen]
            scores, table = score(chosen, truths, written)
            scores |= constant_answers(truths) | nearest_training_image(train, chosen, truths)
            metrics |= {f"{metric}_{split}": value for metric, value in scores.items()}
            tables[split] = table
        return Result(metrics | reader.metrics, tables, notes=reader.notes)


def score(
    chosen: Sequence[items.Item], truths: Sequence[ParsedCaption], written: Sequence[str]
) -> tuple[dict[str, float], Table]:
    """Returns (percentages over items, table of all captions)."""
    parsed = [parse_caption(text) for text in written]
    tone = np.array([p.tones == t.tones for p, t in zip(parsed, truths, strict=True)])
    person = np.array([p.person == t.person for p, t in zip(parsed, truths, strict=True)])
    exact = np.array(
        [
            split_style(text)[0].strip() == split_style(item.text)[0].strip()
            for text, item in zip(written, chosen, strict=True)
        ]
    )
    metrics = {
        "tone_right": 100.0 * tone.mean(),
        "person_right": 100.0 * person.mean(),
        "both_right": 100.0 * (tone & person).mean(),
        "caption_exact": 100.0 * exact.mean(),
        "count": len(chosen),
    }
    if any("style" in item.attributes for item in chosen):
        style = [p.style == t.style for p, t in zip(parsed, truths, strict=True)]
        metrics["style_right"] = 100.0 * np.mean(style)
    rows = zip(chosen, written, tone, person, strict=True)
    table = Table(
        ("id", "truth", "generated", "tone_right", "person_right"),
        tuple((item.key, item.text, text, int(t), int(p)) for item, text, t, p in rows),
    )
    return {name: float(value) for name, value in metrics.items()}, table


def constant_answers(truths: Sequence[ParsedCaption]) -> dict[str, float]:
    """Returns the scores of the best constant answer, in percent, on these items."""
    tones = collections.Counter(truth.tones for truth in truths)
    people = collections.Counter(truth.person for truth in truths)
    both = collections.Counter((truth.person, truth.tones) for truth in truths)
    return {
        "tone_chance_uniform": 100.0 / len(TONES),
        "tone_chance_majority": 100.0 * max(tones.values()) / len(truths),
        "person_chance_majority": 100.0 * max(people.values()) / len(truths),
        "both_chance_majority": 100.0 * max(both.values()) / len(truths),
    }


def nearest_training_image(
    train: Sequence[items.Item], chosen: Sequence[items.Item], truths: Sequence[ParsedCaption]
) -> dict[str, float]:
    """Returns the scores of a lookup: the caption of the nearest training still by `features`."""
    train_MD = features([item.pixels for item in train])
    chosen_ND = features([item.pixels for item in chosen])
    distance_NM = np.sum(train_MD**2, axis=1)[None] - 2.0 * chosen_ND @ train_MD.T
    captions = [train[i].text for i in np.argmin(distance_NM, axis=1)]
    metrics, _ = score(chosen, truths, captions)
    kept = ("tone_right", "person_right", "both_right")
    return {name.replace("right", "nearest_image"): metrics[name] for name in kept}
