"""Evaluators by name, and evaluators from entries. A new evaluator is a file and a line here.

An entry is a mapping. Its key `evaluator` is a name below, or the import path of your own class,
"module:Class"; an entry that names a `benchmark` may leave it out. The other keys are fields of the
class; missing ones keep their defaults. `config.evaluation` is a tuple of entries; the command
takes the same entries.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emu3_jax.config import ConfigError, named, to_dataclass
from emu3_jax.evaluate.benchmarks import registry as benchmarks
from emu3_jax.evaluate.benchmarks.answers import Answers
from emu3_jax.evaluate.benchmarks.drawings import Drawings
from emu3_jax.evaluate.emoji.captions import EmojiCaptions
from emu3_jax.evaluate.emoji.compositions import EmojiCompositions
from emu3_jax.evaluate.emoji.edits import EmojiEdits
from emu3_jax.evaluate.emoji.retrieval import EmojiRetrieval
from emu3_jax.evaluate.evaluator import Evaluator
from emu3_jax.evaluate.language.likelihood import Likelihood
from emu3_jax.evaluate.language.questions import Questions
from emu3_jax.evaluate.vision.codebook_health import CodebookHealth
from emu3_jax.evaluate.vision.feature_distance import FrechetDistance
from emu3_jax.evaluate.vision.reconstruction import Reconstruction
from emu3_jax.interop.bundle import Language

EVALUATORS: dict[str, type[Evaluator]] = {
    "reconstruction": Reconstruction,
    "codebook_health": CodebookHealth,
    "frechet": FrechetDistance,
    "likelihood": Likelihood,
    "questions": Questions,
    "answers": Answers,
    "drawings": Drawings,
    "emoji_captions": EmojiCaptions,
    "emoji_retrieval": EmojiRetrieval,
    "emoji_compositions": EmojiCompositions,
    "emoji_edits": EmojiEdits,
}


def evaluator_class(name: Any) -> type[Evaluator]:
    """Returns the class of a name or import path; ConfigError, with the nearest name, if none."""
    return named.find("evaluator", name, EVALUATORS)


def evaluator_name(evaluator: Evaluator) -> str:
    """Returns the name or import path of an evaluator's class: inverse of `evaluator_class`."""
    cls = type(evaluator)
    path = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, known in EVALUATORS.items() if known is cls), path)


def _in_config(index: int) -> str:
    return f"evaluation[{index}]"


def make(
    entries: Sequence[Mapping[str, Any]], where: Callable[[int], str] = _in_config
) -> tuple[Evaluator, ...]:
    """Makes the evaluators of a config or of the command, in order.

    Args:
      entries: one mapping per evaluator; see the module docstring.
      where: index → name of the entry in messages.

    Raises:
      ConfigError: an unknown evaluator or key (with the nearest one that exists), a value of the
        wrong type or out of range, or two entries with the same name.
    """

    def make_one(name: Any, values: dict[str, Any], where: str) -> Evaluator:
        try:
            cls = evaluator_class(name)
        except ConfigError as error:
            raise ConfigError(f"{where}.evaluator: {error}") from error
        return to_dataclass(cls, values, where)

    if not isinstance(entries, str) and isinstance(entries, Sequence):
        entries = [_whole(entry, where(index)) for index, entry in enumerate(entries)]
    return named.make_entries("evaluation", "evaluator", entries, EVALUATORS, make_one, where)


def _whole(entry: Any, where: str) -> Any:
    """An entry with its `evaluator`, which a benchmark implies."""
    if not isinstance(entry, Mapping) or "benchmark" not in entry or "evaluator" in entry:
        return entry
    try:
        return {"evaluator": benchmarks.evaluator_of(entry), **entry}
    except ConfigError as error:
        raise ConfigError(f"{where}.benchmark: {error}") from error


def resolved(evaluators: Sequence[Evaluator]) -> tuple[dict[str, Any], ...]:
    """Returns entries with every setting; `make` turns them into equal evaluators."""
    return tuple({"evaluator": evaluator_name(e)} | dataclasses.asdict(e) for e in evaluators)


def check(
    evaluators: Sequence[Evaluator],
    language: Language | None,
    key: Callable[[int], str] = lambda index: f"{_in_config(index)}.",
) -> None:
    """Checks that the data and weights of all evaluators exist and fit.

    Args:
      evaluators: the evaluators to run.
      language: language of the measured language model, if there is one.
      key: index of an evaluator → prefix of its keys in messages.

    Raises:
      ConfigError: names the key.
    """
    for index, evaluator in enumerate(evaluators):
        try:
            evaluator.check(language)
        except ConfigError as error:
            raise ConfigError(f"{key(index)}{error}") from error
