"""The evaluator of benchmarks of drawing: writes samples for the authors' scorer, reads it back.

The samples lie in `<name>/` of the results' folder, in the layout and under the names that the
scorer takes; how they were sampled is in `<name>_run.json`, one line a sample in
`<name>_items.jsonl`. A run that was stopped draws what is missing: the draws of a sample depend on
the seed and on its number alone.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from etils import epath

from emu3_jax.config import ConfigError
from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate.benchmarks import registry
from emu3_jax.evaluate.benchmarks.benchmark_evaluator import BenchmarkEvaluator
from emu3_jax.evaluate.benchmarks.drawing.drawing import DrawingBenchmark, Prompt
from emu3_jax.evaluate.benchmarks.drawn_images import DrawnImages, real_images
from emu3_jax.evaluate.benchmarks.item_file import ItemFile
from emu3_jax.evaluate.evaluator import Result, Subject
from emu3_jax.evaluate.language_use import DrawingSampling
from emu3_jax.generate import modalities
from emu3_jax.interop.bundle import Bundle, Language
from emu3_jax.interop.vision.feature_networks import load_inception
from emu3_jax.scorers import registry as scorer_registry
from emu3_jax.train.run import distributed

# Batches between two writes.
BATCHES_AT_ONCE = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One image or clip to draw: its prompt, its index there, its number in all, and its file."""

    prompt: Prompt
    index: int
    number: int
    file: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawings(BenchmarkEvaluator):
    """Samples of the prompts of a benchmark, and the figures of its scorer.

    Attributes:
      data: may be "" where the list of prompts is shipped.
      size: (height, width) of a sample in pixels.
      frames: of a clip, in pixels' frames.
      fps: of a clip.
      sampling: how samples are drawn.
      negative_prompt: text of the unconditional branch of guidance.
      results: file or folder that the authors' scorer wrote for these samples; "" before.
      scorers: entries of `scorers.registry`: means over the samples, where weights are at hand.
      reference: folder of real images for FID, and for CLIP-I where a file is named as the prompt.
      inception: Inception v3 of FID, a torch file; "" for none.
    """

    known: ClassVar[Mapping[str, DrawingBenchmark]] = registry.DRAWINGS

    size: tuple[int, int] = (720, 720)
    frames: int = 16
    fps: float = 8.0
    sampling: DrawingSampling = DrawingSampling()
    negative_prompt: str = ""
    results: str = ""
    scorers: tuple[Mapping[str, Any], ...] = ()
    reference: str = ""
    inception: str = ""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(frames=1)
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be height and width in pixels, not {self.size}")
        if self.of.square and self.size[0] != self.size[1]:
            raise ValueError(f"size: the scorer of {self.benchmark} takes squares, not {self.size}")
        if not self.fps > 0:
            raise ValueError(f"fps must be above 0, not {self.fps}")
        if self.results and self.of.results is None:
            raise ValueError(f"results: {self.benchmark} has no scorer whose results could be read")
        if self.inception and not self.reference:
            raise ValueError("inception: FID needs real images; set reference to their folder")

    def prompts(self) -> list[Prompt]:
        """The prompts, read from the released files."""
        if self.data:
            return list(
                self.use("data", lambda data: self.of.read(pathlib.Path(data), self.version))
            )
        return list(self.of.read(None, self.version))

    def check(self, language: Language) -> None:
        """Reads the prompts, the weights of scorers, and compares the size with the tokenizer."""
        super().check(language)
        prompts = self._chosen(self.prompts())
        config = self.tokenizer[0].config
        if any(side % config.spatial_factor for side in self.size):
            raise ConfigError(
                f"size={self.size} must be multiples of {config.spatial_factor}, the pixels of a "
                "code"
            )
        is_filmed = any(prompt.kind == "video" for prompt in prompts)
        if is_filmed and self.frames % config.temporal_downsample_factor:
            raise ConfigError(
                f"frames={self.frames} must be a multiple of {config.temporal_downsample_factor}, "
                "the frames of a latent frame"
            )
        if is_filmed and (self.scorers or self.reference):
            raise ConfigError("scorers and reference are for images; this benchmark has clips")
        self._measures()

    def run(self, subject: Subject) -> Result:
        """Draws every sample that there is not yet, and reads the scorer's results if given."""
        if subject.folder is None:
            raise ValueError(f"{self.name} writes samples and needs a folder for its results")
        bundle, whole = subject.language_model, self.prompts()
        prompts = self._chosen(whole)
        folder = subject.folder / self.name
        here = subject.folder if distributed.is_first() else None
        file = ItemFile(here, self.name, self._conditions(bundle), subject.replaces)
        samples = list(self._samples(prompts))
        missing = [s for s in samples if s.file not in file.items or not (folder / s.file).exists()]
        missing = distributed.gather(missing)[0]
        count = subject.progress.counter("samples", len(missing))
        step = self.batch_size * BATCHES_AT_ONCE
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            drawn = self._drawn(bundle, part, subject)
            if distributed.is_first():
                file.add(map(self._line, part))
                for sample, pixels in zip(part, drawn, strict=True):
                    self._write(folder / sample.file, pixels)
            count(len(part))
        distributed.gather(None)  # the first process has written all
        if distributed.is_first():
            file.finish(map(self._line, samples))
            self.of.finish(pathlib.Path(folder), prompts)
        return self._measured(folder, prompts, len(whole), len(samples))

    def _chosen(self, prompts: list[Prompt]) -> list[Prompt]:
        return prompts[: self.limit or len(prompts)]

    def _samples(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        number = 0
        for prompt in prompts:
            for index in range(prompt.samples):
                yield Sample(prompt, index, number, self.of.path(prompt, index))
                number += 1

    def _drawn(self, bundle: Bundle, part: Sequence[Sample], subject) -> list[np.ndarray]:
        """Pixels of samples: uint8 [H, W, 3], of clips [T, H, W, 3]."""
        options = modalities.Options(
            sampling=self.sampling,
            negative_prompt=self.negative_prompt,
            batch_size=self.batch_size,
            progress=subject.progress.line,
        )
        config = self.tokenizer[0].config
        h, w = (side // config.spatial_factor for side in self.size)
        codes: list = [None] * len(part)
        for kind in ("image", "video"):
            rows = [i for i, sample in enumerate(part) if sample.prompt.kind == kind]
            texts = [part[i].prompt.text for i in rows]
            numbers = [part[i].number for i in rows]
            if kind == "image":
                sizes = [(h, w)] * len(rows)
                found = modalities.draw_images(bundle, texts, sizes, options, numbers)
            else:
                t = self.frames // config.temporal_downsample_factor
                seconds = {t: self.frames / self.fps}
                sizes = [(t, h, w)] * len(rows)
                found = modalities.draw_clips(
                    bundle, texts, sizes, self.fps, seconds, options, numbers
                )
            for i, one in zip(rows, found, strict=True):
                codes[i] = one
        return vision_codec.decode(self.tokenizer, codes, self.batch_size)

    def _write(self, path: epath.Path, pixels: np.ndarray) -> None:
        if pixels.ndim == 3:
            media.write_png(path, pixels)
        else:
            media.write_mp4(path, pixels, self.fps)

    def _line(self, sample: Sample) -> dict[str, Any]:
        return {
            "id": sample.file,
            "prompt_id": sample.prompt.id,
            "prompt": sample.prompt.text,
            "seed": self.sampling.seed,
            "number": sample.number,
        }

    def _conditions(self, bundle: Bundle) -> dict[str, Any]:
        return self.conditions(bundle) | {
            "size": self.size,
            "frames": self.frames,
            "fps": self.fps,
            "sampling": dataclasses.asdict(self.sampling),
            "negative_prompt": self.negative_prompt,
        }

    def _measures(self) -> DrawnImages:
        reference = self.use("reference", real_images) if self.reference else {}
        weights = self.use("inception", load_inception) if self.inception else None
        made = scorer_registry.make(self.scorers)
        return DrawnImages(made, reference, weights, self.batch_size)

    def _measured(self, folder, prompts: list[Prompt], total: int, samples: int) -> Result:
        metrics: dict[str, float] = {}
        notes = []
        if len(prompts) < total:
            notes.append(f"the first {len(prompts)} of {total} prompts")
        if self.results:
            found = self.use(
                "results",
                lambda path: self.of.results(pathlib.Path(path), prompts, self.allow_partial),
            )
            metrics |= found.figures
            notes += found.notes
        elif self.of.results is not None:
            notes.append(
                f"scored by the authors' program on {folder}; its result is read from results=FILE"
            )
        files = {
            pathlib.Path(folder / self.of.path(prompt, index)): prompt
            for prompt in prompts
            for index in range(prompt.samples)
        }
        figures, more = self._measures().of(files)
        recipe = json.dumps(dataclasses.asdict(self.sampling))
        notes += [*more, f"samples of {self.size[0]} x {self.size[1]} pixels, {recipe}"]
        return Result(metrics | figures | {"prompts": total, "samples": samples}, notes=notes)
