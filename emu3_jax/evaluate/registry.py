"""Every evaluator by name, and how entries become evaluators. A new one is a file and a line here.

An entry is a mapping: `evaluator` names the class (one of your own by its import path,
"module:Class"), the other keys are fields of it, and what is not
stated keeps its default. `config.evaluation` is a tuple of entries; the command takes the same.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emu3_jax.config import ConfigError, to_dataclass
from emu3_jax.evaluate.emoji.captions import EmojiCaptions
from emu3_jax.evaluate.emoji.retrieval import EmojiRetrieval
from emu3_jax.evaluate.evaluator import Evaluator
from emu3_jax.evaluate.language.likelihood import Likelihood
from emu3_jax.evaluate.vision.codebook_health import CodebookHealth
from emu3_jax.evaluate.vision.feature_distance import FrechetDistance
from emu3_jax.evaluate.vision.reconstruction import Reconstruction
from emu3_jax.interop.bundle import Language

EVALUATORS: dict[str, type[Evaluator]] = {
    "reconstruction": Reconstruction,
    "codebook_health": CodebookHealth,
    "frechet": FrechetDistance,
    "likelihood": Likelihood,
    "emoji_captions": EmojiCaptions,
    "emoji_retrieval": EmojiRetrieval,
}


def evaluator_class(name: Any) -> type[Evaluator]:
    """The class by its name or import path; ConfigError with the nearest name if there is none."""
    if name in EVALUATORS:
        return EVALUATORS[name]
    module, colon, attribute = str(name).partition(":")
    if colon:
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{name!r} cannot be imported: {error}") from error
    near = difflib.get_close_matches(str(name), EVALUATORS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(f"there is no evaluator {name!r}{hint}; known: {', '.join(EVALUATORS)}")


def evaluator_name(evaluator: Evaluator) -> str:
    """The inverse of `evaluator_class`."""
    cls = type(evaluator)
    path = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, known in EVALUATORS.items() if known is cls), path)


def _in_config(index: int) -> str:
    return f"evaluation[{index}]"


def make(
    entries: Sequence[Mapping[str, Any]], where: Callable[[int], str] = _in_config
) -> tuple[Evaluator, ...]:
    """Builds the evaluators of a config or of the command, in order.

    Args:
      entries: one mapping for each evaluator; see the head of this file.
      where: index → what messages call the entry.

    Raises:
      ConfigError: an unknown evaluator or key (with the nearest one that exists), a value of a
        wrong type or out of range, or two entries of one name.
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise ConfigError(
            f"evaluation must be a list of entries, dict(evaluator=NAME, …), got {entries!r}"
        )
    made: list[Evaluator] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or "evaluator" not in entry:
            raise ConfigError(
                f"{where(index)} must be a section with the key evaluator, one of "
                f"{', '.join(EVALUATORS)}, got {entry!r}"
            )
        values = dict(entry)
        try:
            cls = evaluator_class(values.pop("evaluator"))
        except ConfigError as error:
            raise ConfigError(f"{where(index)}.evaluator: {error}") from error
        made.append(to_dataclass(cls, values, where(index)))
        if made[-1].name in [other.name for other in made[:-1]]:
            raise ConfigError(
                f"{where(index)}.name: there are two entries of the name {made[-1].name!r}; "
                "give each a name of its own"
            )
    return tuple(made)


def resolved(evaluators: Sequence[Evaluator]) -> tuple[dict[str, Any], ...]:
    """The entries that state every setting, for the record; `make` gives equal evaluators."""
    return tuple({"evaluator": evaluator_name(e)} | dataclasses.asdict(e) for e in evaluators)


def check(
    evaluators: Sequence[Evaluator],
    language: Language | None,
    key: Callable[[int], str] = lambda index: f"{_in_config(index)}.",
) -> None:
    """Refuses evaluators whose data or weights are missing or do not fit.

    Args:
      evaluators: what shall run.
      language: of the language model that is measured, if one is.
      key: index of an evaluator → what stands in front of a key in messages.

    Raises:
      ConfigError: names the key.
    """
    for index, evaluator in enumerate(evaluators):
        try:
            evaluator.check(language)
        except ConfigError as error:
            raise ConfigError(f"{key(index)}{error}") from error
