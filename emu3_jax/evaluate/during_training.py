"""Evaluation at intervals inside a training run: the evaluators of the command, on the live state.

Numbers go to the run's metrics under `validation/`, pictures to WORKDIR/pictures/step_N/ and to
TensorBoard. Data that an evaluator would lack is an error before the first step.
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
from emu3_jax.train.run.metrics import MetricsWriter, read_metrics
from emu3_jax.train.task import TrainState

PICTURES_FOLDER = "pictures"
METRICS_PREFIX = "validation/"


def check_data(evaluators: Sequence[Evaluator], trained: str, language: Language | None) -> None:
    """Refuses evaluators of `config.evaluation` that do not suit the run, or lack their data.

    Args:
      evaluators: as `registry.make` built them.
      trained: the kind of model that the run trains (`Task.kind`).
      language: of the language model that is trained; None where another kind is.

    Raises:
      ConfigError: names the key.
    """
    for index, evaluator in enumerate(evaluators):
        if evaluator.measures != trained:
            raise ConfigError(
                f"evaluation[{index}].evaluator: {evaluator.name} measures "
                f"{described(evaluator.measures)}, and this run trains {described(trained)}"
            )
    registry.check(evaluators, language)


class EvaluationCallback(Callback):
    """A `train.loop.Callback` that evaluates the state after a step: one entry of the config."""

    def __init__(
        self,
        evaluator: Evaluator,
        subject_of: Callable[[TrainState, str], Subject],
        workdir: str | os.PathLike,
    ):
        self.every, self.evaluator = evaluator.every, evaluator
        self._subject_of, self._workdir = subject_of, epath.Path(workdir)

    def __call__(self, step: int, state: TrainState, writer: MetricsWriter) -> dict[str, float]:
        """Writes pictures and returns the metrics under METRICS_PREFIX."""
        subject = self._subject_of(state, f"{self._workdir} at step {step}")
        results = run_all(subject, [self.evaluator])
        folder = self._workdir / PICTURES_FOLDER / f"step_{step:06d}"
        for name, result in results.items():
            for picture, pixels in result.pictures.items():
                if jax.process_index() == 0:
                    media.write_png(folder / f"{name}_{picture}.png", pixels)
                writer.write_picture(step, f"{name}/{picture}", pixels)
        return {METRICS_PREFIX + name: value for name, value in flat_metrics(results).items()}

    def done(self, step: int) -> bool:
        """Whether it is kept. Numbers are logged last, so where they are, the pictures are too."""
        prefix = f"{METRICS_PREFIX}{self.evaluator.name}/"
        return any(
            row["step"] == step and any(name.startswith(prefix) for name in row)
            for row in read_metrics(self._workdir)
        )
