"""A run directory of the task vision_tokenizer, read for its report."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from emu3_jax.config import to_dataclass
from emu3_jax.data.pixels.pixel_batches import PixelConfig
from emu3_jax.evaluate.during_training import IMAGES_FOLDER, METRICS_PREFIX
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig
from emu3_jax.report.runs import EVALUATION_FOLDER, Run, read_run
from emu3_jax.report.tokenizer_verdicts import Verdict, verdicts
from emu3_jax.train.run import goodput
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.tasks.vision.vision_objective import VisionLossConfig

TASK = "vision_tokenizer"
# Where a figure is in results.json if not under "reconstruction".
_ELSEWHERE = {
    "codebook_used_corpus": ("codebook_health", "used_corpus"),
    "codebook_perplexity_corpus": ("codebook_health", "perplexity_corpus"),
}


@dataclasses.dataclass(frozen=True)
class RunImage:
    """A PNG of a run: its path, and what it shows."""

    path: pathlib.Path
    text: str


@dataclasses.dataclass(frozen=True)
class TokenizerRun:
    """A run of the task vision_tokenizer.

    Attributes:
      run: its directory, config, log and offline figures.
      model, loss, data, plan: sections of its config, with all defaults.
      hours: wall time of all starts; None if it was not logged.
      images: the last reconstructions, then those of the offline evaluation.
    """

    run: Run
    model: VisionTokenizerConfig
    loss: VisionLossConfig
    data: PixelConfig
    plan: RunConfig
    hours: float | None
    images: Sequence[RunImage]

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return self.run.rows[-1]["step"] if self.run.rows else 0

    def figure(self, metric: str) -> tuple[float | None, bool]:
        """Returns (figure of the evaluator "reconstruction", whether it is from results.json).

        The last validation is preferred: it belongs to the same step as everything else shown.
        """
        value = self.run.last(f"{METRICS_PREFIX}reconstruction/{metric}")
        if value is not None:
            return value, False
        sources = [("reconstruction", metric)]
        sources += [_ELSEWHERE[metric]] if metric in _ELSEWHERE else []
        found = (self.run.results.get(evaluator, {}).get(name) for evaluator, name in sources)
        value = next((value for value in found if value is not None), None)
        return value, value is not None

    def verdicts(self) -> list[Verdict]:
        """Returns the verdicts on the health of the run."""
        adversarial = self.loss.adversarial
        return verdicts(
            self.run.rows,
            self.plan.steps,
            used_percent=self.figure("codebook_used_corpus")[0],
            discriminator_start=adversarial.start if adversarial.weight else None,
            boundary_db=self.figure("boundary_db")[0],
        )

    def trained_with(self) -> dict[str, str]:
        """Returns heading → setting, for the table of runs."""
        model, loss = self.model, self.loss
        factor = "×".join(map(str, [model.temporal_downsample_factor, *[model.spatial_factor] * 2]))
        terms = [
            f"{name}\u00a0{getattr(loss, name):g}" for name in ("l2", "l1") if getattr(loss, name)
        ]
        groups = [
            f"{g.count} {g.kind}, " + (f"{g.frames}×" if g.frames > 1 else "") + f"{g.size}²"
            for g in self.data.active
        ]
        return {
            "codes": f"{model.codebook_size:,} {model.quantizer}",
            "compression": factor,
            "pixels": ", ".join(terms) or "no",
            "perceptual": f"{loss.perceptual:g}" if loss.perceptual else "no",
            "discriminator": self._discriminator(),
            "trained": "decoder" if loss.decoder_only else "all of it",
            "batch": "; ".join(groups),
        }

    def _discriminator(self) -> str:
        chosen = self.loss.adversarial
        if not chosen.weight:
            return "no"
        kind = chosen.kind.replace("_", " ")
        how = "adaptive " if chosen.adaptive else ""
        return f"{kind}, {how}{chosen.weight:g} after step {chosen.start:,}"


def read(path: pathlib.Path) -> TokenizerRun:
    """Reads a run directory; ValueError if it is not one, or one of another task."""
    run = read_run(path)
    task = run.config.get("task")
    if task != TASK:
        raise ValueError(f"{path} is a run of the task {task}, this report is about {TASK}")
    sections = [
        to_dataclass(cls, run.config.get(name, {}), f"{path}: {name}")
        for cls, name in (
            (VisionTokenizerConfig, "model"),
            (VisionLossConfig, "loss"),
            (PixelConfig, "data"),
            (RunConfig, "run"),
        )
    ]
    hours = None
    if (path / goodput.GOODPUT_FILE).is_file():
        hours = sum(goodput.summary(path).values()) / 3600
    return TokenizerRun(run, *sections, hours=hours, images=_images(path))


def _images(path: pathlib.Path) -> list[RunImage]:
    steps = {}
    for folder in (path / IMAGES_FOLDER).glob("step_*"):
        if re.fullmatch(r"step_\d+", folder.name) and any(folder.glob("*.png")):
            steps[int(folder.name.removeprefix("step_"))] = folder
    found = []
    if steps:
        last = max(steps)
        shown = _pngs(steps[last])
        found += [RunImage(file, f"{_words(file)} at step {last:,}") for file in shown]
    offline = path / EVALUATION_FOLDER
    found += [RunImage(file, f"{_words(file)}, offline evaluation") for file in _pngs(offline)]
    return found


def _pngs(folder: pathlib.Path) -> list[pathlib.Path]:
    # Stills before clips, and usage before patches.
    order = ("images", "clips", "usage", "patches")
    rank = {word: index for index, word in enumerate(order)}
    files = sorted(folder.glob("*.png"))
    return sorted(files, key=lambda file: rank.get(file.stem.rpartition("_")[2], len(order)))


def _words(file: pathlib.Path) -> str:
    known = {
        "reconstruction_images": "Stills above their reconstructions",
        "reconstruction_clips": "Clips above their reconstructions",
        "codebook_health_usage": "Share of each code in all tokens",
        "codebook_health_patches": "The most used codes, and below them the least used",
    }
    return known.get(file.stem, file.stem.replace("_", " "))
