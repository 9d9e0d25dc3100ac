"""Every evaluator by name. A new one is a file and a line here."""

import difflib
from collections.abc import Callable, Sequence

from emu3_jax.evaluate.codebook_health import CodebookHealth
from emu3_jax.evaluate.emoji_captions import EmojiCaptions
from emu3_jax.evaluate.emoji_retrieval import EmojiRetrieval
from emu3_jax.evaluate.evaluator import Evaluator, Result, Subject, run_all
from emu3_jax.evaluate.feature_distance import FrechetDistance
from emu3_jax.evaluate.likelihood import Likelihood
from emu3_jax.evaluate.reconstruction import Reconstruction

EVALUATORS: dict[str, Callable[[], Evaluator]] = {
    "reconstruction": Reconstruction,
    "codebook_health": CodebookHealth,
    "frechet": FrechetDistance,
    "likelihood": Likelihood,
    "emoji_captions": EmojiCaptions,
    "emoji_retrieval": EmojiRetrieval,
}


def make_evaluators(names: Sequence[str]) -> list[Evaluator]:
    """Evaluators with their default settings; ValueError lists the known names."""
    for name in names:
        if name not in EVALUATORS:
            near = difflib.get_close_matches(name, EVALUATORS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            known = ", ".join(EVALUATORS)
            raise ValueError(f"there is no evaluator {name!r}{hint}; known: {known}")
    return [EVALUATORS[name]() for name in names]


def evaluate(subject: Subject, names: Sequence[str], log=lambda line: None) -> dict[str, Result]:
    """Runs evaluators by name → {name: Result}; training and the command both call this."""
    return run_all(subject, make_evaluators(names), log)
