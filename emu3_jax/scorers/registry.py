"""Scorers by name: the only module that lists all of them.

An entry is a mapping. Its key `scorer` is a name below, or the import path of your own,
"module:attribute": a class (a dataclass or not) whose fields are the other keys, or a function
(prompts, images) → numbers, which takes none but `name`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from emu3_jax.config import ConfigError, named, to_dataclass
from emu3_jax.scorers.scorer import Scorer

# Name → import path.
SCORERS = {
    "clip": "emu3_jax.scorers.clip_similarity:ClipSimilarity",
    "aesthetics": "emu3_jax.scorers.aesthetics:Aesthetics",
    "hps": "emu3_jax.scorers.hps:HumanPreferenceScore",
    "pickscore": "emu3_jax.scorers.pickscore:PickScore",
    "likelihood": "emu3_jax.generate.caption_likelihood:CaptionLikelihood",
    "mps": "emu3_jax.scorers.mps_score:MultiDimensionalPreference",
}


@dataclasses.dataclass(frozen=True)
class FunctionScorer:
    """A function (prompts, images) → numbers as a scorer; `Scorer.score` states the arguments."""

    name: str
    function: Callable[[Sequence[str], Sequence[np.ndarray]], Any]

    def score(self, prompts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """What the function returns."""
        return np.asarray(self.function(prompts, images))


def find(name: Any) -> Any:
    """The class or function of a name or import path; ConfigError, with the nearest name."""
    found = named.find("scorer", name, SCORERS)
    if not callable(found):
        raise ConfigError(f"{name!r} is neither a class nor a function, but {found!r}")
    return found


def make(
    entries: Sequence[Mapping[str, Any]],
    where: Callable[[int], str] = lambda index: f"scorers[{index}]",
) -> tuple[Scorer, ...]:
    """Makes the scorers of a config or of a command, in order, and reads their weights.

    Args:
      entries: one mapping per scorer; see the module docstring.
      where: index → name of the entry in messages.

    Raises:
      ConfigError: an unknown scorer or key, a value of the wrong type, weights that do not fit, or
        two entries with the same name; names the entry.
    """
    made = named.make_entries("scorers", "scorer", entries, SCORERS, _made, where)
    for index, scorer in enumerate(made):
        try:
            getattr(scorer, "check", lambda: None)()
        except ValueError as error:
            raise ConfigError(f"{where(index)}.{error}") from error
    return made


def _made(path: Any, values: dict[str, Any], where: str) -> Scorer:
    try:
        found = find(path)
    except ConfigError as error:
        raise ConfigError(f"{where}.scorer: {error}") from error
    if not isinstance(found, type):
        name = values.pop("name", str(path).partition(":")[2])
        if values:
            raise ConfigError(
                f"{where}.{next(iter(values))}: {path} is a function without settings"
            )
        return FunctionScorer(name, found)
    if dataclasses.is_dataclass(found):
        scorer = to_dataclass(found, values, where)
    else:
        try:
            scorer = found(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from error
    if not isinstance(scorer, Scorer):
        raise ConfigError(f"{where}.scorer: {path} has no name and no score(prompts, images)")
    return scorer
