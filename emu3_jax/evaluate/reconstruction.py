"""What the vision tokenizer keeps of a picture: PSNR, SSIM, and how much of its codebook it uses.

This is the ceiling of everything the language model can draw.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from emu3_jax.data import vision_codec
from emu3_jax.evaluate import items, picture_quality
from emu3_jax.evaluate.contact_sheet import contact_sheet, film_strip
from emu3_jax.evaluate.evaluator import Result, Subject, Table


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """PSNR and SSIM of stills and clips of one split; codebook use there and over all splits.

    PSNR and SSIM are taken picture by picture (frame by frame in clips) on the uint8 scale, then
    averaged: over pictures for stills, over the frames of a clip and then over clips.

    Attributes:
      split: the split whose pictures are reconstructed.
      shown: pictures on the sheet of originals beside reconstructions.
    """

    split: str = "validation"
    shown: int = 16
    name: str = "reconstruction"

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """See Evaluator."""
        return {"vision_tokenizer": (), "data": (self.split,)}

    def run(self, subject: Subject) -> Result:
        """See Evaluator."""
        subject.need(self.name, *self.needs)
        everything = items.read_split(subject.data, self.split, subject.limit)
        size = subject.vision_tokenizer[0].config.codebook_size
        metrics, tables, pictures, codes = {}, {}, {}, []
        if not everything:
            raise ValueError(f"{subject.data}: split {self.split!r} holds no image and no video")
        for kind, stored in (("images", "image"), ("clips", "video")):
            chosen = items.of_kind(everything, stored)
            if not chosen:
                continue
            originals, rebuilt, kind_codes = reconstruct(subject, chosen)
            metrics |= quality(originals, rebuilt, kind)
            metrics |= codebook_metrics(kind_codes, size, kind)
            codes += kind_codes
            shown = slice(0, self.shown if kind == "images" else self.shown // 4)
            pictures[kind] = side_by_side(originals[shown], rebuilt[shown])
            if kind == "clips":
                tables["psnr_by_frame"] = psnr_by_frame(originals, rebuilt)
        metrics |= codebook_metrics(codes, size, self.split)
        metrics |= codebook_metrics(self._corpus_codes(subject, codes), size, "corpus")
        return Result(metrics, tables, pictures)

    def _corpus_codes(self, subject: Subject, known: list[np.ndarray]) -> list[np.ndarray]:
        codes = list(known)
        for split in items.split_names(subject.data):
            if split == self.split:
                continue
            chosen = items.read_split(subject.data, split, subject.limit)
            pixels = [item.pixels for item in chosen]
            codes += vision_codec.encode(subject.vision_tokenizer, pixels, subject.batch_size)
        return codes


def reconstruct(subject: Subject, chosen: Sequence[items.Item]):
    """Passes items through the tokenizer → (originals, reconstructions, codes), lists of arrays."""
    tokenizer, batch_size = subject.vision_tokenizer, subject.batch_size
    config = tokenizer[0].config
    originals = [vision_codec.whole_tokens(config, item.pixels) for item in chosen]
    codes = vision_codec.encode(tokenizer, originals, batch_size)
    return originals, vision_codec.decode(tokenizer, codes, batch_size), codes


def quality(originals: Sequence[np.ndarray], rebuilt: Sequence[np.ndarray], kind: str) -> dict:
    """Mean PSNR and SSIM over pictures (uint8 [H, W, 3]) or clips (uint8 [T, H, W, 3])."""
    pairs = list(zip(originals, rebuilt, strict=True))
    return {
        f"psnr_{kind}": float(np.mean([picture_quality.psnr(a, b).mean() for a, b in pairs])),
        f"ssim_{kind}": float(np.mean([picture_quality.ssim(a, b).mean() for a, b in pairs])),
        f"count_{kind}": len(pairs),
    }


def codebook_metrics(codes: Sequence[np.ndarray], codebook_size: int, where: str) -> dict:
    """Share of codes that occur, in percent, and the perplexity exp(entropy) of their use."""
    counts = np.zeros(codebook_size, np.int64)
    for code in codes:
        counts += np.bincount(np.ravel(code), minlength=codebook_size)
    share = counts[counts > 0] / counts.sum()
    return {
        f"codebook_used_{where}": 100.0 * share.size / codebook_size,
        f"codebook_perplexity_{where}": float(np.exp(-np.sum(share * np.log(share)))),
    }


def psnr_by_frame(originals: Sequence[np.ndarray], rebuilt: Sequence[np.ndarray]) -> Table:
    """Mean PSNR at each frame index over the clips that have that frame.

    Causal time layers make the first frames of a clip different from the later ones; this shows it.
    """
    by_frame: dict[int, list[float]] = {}
    for a, b in zip(originals, rebuilt, strict=True):
        for frame, value in enumerate(picture_quality.psnr(a, b)):
            by_frame.setdefault(frame, []).append(float(value))
    rows = [(f, round(float(np.mean(v)), 3), len(v)) for f, v in sorted(by_frame.items())]
    return Table(("frame", "psnr", "clips"), tuple(rows))


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
