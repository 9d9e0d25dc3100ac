"""Evaluation at intervals during training: the evaluators of the command, on the current state.

Numbers go to the run's metrics under `validation/`, images to WORKDIR/images/step_N/ and to
TensorBoard, what evaluators keep of each item to WORKDIR/evaluation/step_N/. Missing data of an
evaluator is an error before the first step.
"""

import os
from collections.abc import Callable, Sequence

import jax
from etils import epath

from emu3_jax.config import ConfigError
from emu3_jax.data import media
from emu3_jax.evaluate import registry
from emu3_jax.evaluate.evaluator import Evaluator, Subject, described, flat_metrics, run_all
from emu3_jax.interop.bundle import Language
from emu3_jax.train.loop import Callback
from emu3_jax.train.run import readable
from emu3_jax.train.run.metrics import MetricsWriter, read_metrics
from emu3_jax.train.task import TrainState

IMAGES_FOLDER = "images"
EVALUATION_FOLDER = "evaluation"
METRICS_PREFIX = "validation/"


def check_data(evaluators: Sequence[Evaluator], trained: str, language: Language | None) -> None:
    """Checks that the evaluators of `config.evaluation` fit the run and find their data.

    Args:
      evaluators: from `registry.make`.
      trained: kind of the trained model (`Task.kind`).
      language: language of the trained language model; None for another kind.

    Raises:
      ConfigError: an evaluator does not fit or lacks data; names the key.
    """
    for index, evaluator in enumerate(evaluators):
        if evaluator.measures != trained:
            raise ConfigError(
                f"evaluation[{index}].evaluator: {evaluator.name} measures "
                f"{described(evaluator.measures)}, and this run trains {described(trained)}"
            )
    registry.check(evaluators, language)


class EvaluationCallback(Callback):
    """A `train.loop.Callback` that runs one evaluator on the state after a step."""

    def __init__(
        self,
        evaluator: Evaluator,
        subject_of: Callable[[TrainState, str], Subject],
        workdir: str | os.PathLike,
    ):
        self.every, self.evaluator = evaluator.every, evaluator
        self._subject_of, self._workdir = subject_of, epath.Path(workdir)

    def __call__(self, step: int, state: TrainState, writer: MetricsWriter) -> dict[str, float]:
        """Writes images and returns the metrics under METRICS_PREFIX."""
        subject = self._subject_of(state, f"{self._workdir} at step {step}")
        of_step = f"step_{step:06d}"
        subject.folder, subject.replaces = self._workdir / EVALUATION_FOLDER / of_step, True
        results = run_all(subject, [self.evaluator])
        folder = self._workdir / IMAGES_FOLDER / of_step
        for name, result in results.items():
            for image, pixels in result.images.items():
                if jax.process_index() == 0:
                    media.write_png(folder / f"{name}_{image}.png", pixels)
                writer.write_image(step, f"{name}/{image}", pixels)
        return {METRICS_PREFIX + name: value for name, value in flat_metrics(results).items()}

    def in_words(self, values: dict[str, float]) -> str:
        """Returns the metrics as one line, the evaluator's headline first."""
        prefix = f"{METRICS_PREFIX}{self.evaluator.name}/"
        values = {name.removeprefix(prefix): value for name, value in values.items()}
        return f"{self.evaluator.name}: {readable.line(values, self.evaluator.headline)}"

    def done(self, step: int) -> bool:
        """Returns whether the metrics are logged; they are written last, after the images."""
        prefix = f"{METRICS_PREFIX}{self.evaluator.name}/"
        return any(
            row["step"] == step and any(name.startswith(prefix) for name in row)
            for row in read_metrics(self._workdir)
        )
