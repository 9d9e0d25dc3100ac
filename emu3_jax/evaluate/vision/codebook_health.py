"""Is the codebook healthy? How many codes are used, how evenly, by what, and what they look like.

This evaluator does not read the codebook, only the results of the tokenizer's `encode` and
`decode`, so it works with every quantizer.
"""

import dataclasses
import functools
import pathlib
from typing import Any, ClassVar

import numpy as np

from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.evaluator import Result, Subject
from emu3_jax.evaluate.vision import codebook_images
from emu3_jax.evaluate.vision import codebook_use as use
from emu3_jax.evaluate.vision.vision_evaluator import VisionEvaluator
from emu3_jax.interop.bundle import Language
from emu3_jax.train import weights

# If all codes are used evenly, a code is missed with probability exp(-10).
TOKENS_PER_CODE = 10
# Side, in tokens, of the grid of one code whose middle token is shown.
GRID = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookHealth(VisionEvaluator):
    """Use of the codes on all splits, by stills and by clips; drift from an earlier tokenizer.

    Attributes:
      earlier: run directory or weights of the tokenizer to measure drift from; "" for none.
      shown: number of most used codes on the sheet, and of least used ones.
      compared: number of most used codes to decode for drift.
    """

    headline: ClassVar[tuple[str, ...]] = ("used_*", "perplexity_*")

    name: str = "codebook_health"
    earlier: str = ""
    shown: int = 64
    compared: int = 1024

    def __post_init__(self):
        super().__post_init__()
        self.at_least(shown=1, compared=1)

    @functools.cached_property
    def earlier_tokenizer(self) -> tuple[Any, Any] | None:
        """(module, variables) of the earlier tokenizer, read once; None without one."""
        return self.use("earlier", weights.load_vision_tokenizer) if self.earlier else None

    def check(self, language: Language | None) -> None:
        """Checks that a split can be read, and the earlier tokenizer."""
        self.use("data", _check_splits)
        _ = self.earlier_tokenizer

    def run(self, subject: Subject) -> Result:
        """Counts the codes of all splits."""
        tokenizer, earlier = subject.vision_tokenizer, self.earlier_tokenizer
        size = tokenizer[0].config.codebook_size
        if earlier is not None:
            check_comparable(tokenizer[0].config, earlier[0].config)
        metrics, counts, reader = {}, {}, self.reader(subject)
        for kind, pixels in self._corpus(reader).items():
            codes = self._codes(subject, tokenizer, pixels, f"{kind} encoded")
            counts[kind] = use.code_counts(codes, size)
            if earlier is not None:
                before = self._codes(subject, earlier, pixels, f"{kind} encoded before")
                metrics[f"tokens_kept_{kind}"] = kept_percent(codes, before)
        total = sum(counts.values())
        for kind, counts_N in {**counts, "corpus": total}.items():
            metrics |= _use_metrics(counts_N, kind)
        if len(counts) == 2:
            metrics["overlap"] = use.overlap_percent(*counts.values())
        order = [code for code in np.argsort(-total, kind="stable") if total[code]]
        most, least = order[: self.shown], order[-self.shown :]
        images = {
            "usage": codebook_images.usage_curve(counts),
            "patches": codebook_images.patch_sheet(
                *(flat_patches(tokenizer, part, self.batch_size) for part in (most, least))
            ),
        }
        if earlier is not None:
            metrics["patch_drift"] = self._drift(tokenizer, earlier, order)
        notes = _notes(total) + reader.notes
        return Result(metrics | reader.metrics, images=images, notes=notes)

    def _codes(self, subject: Subject, tokenizer, pixels: list[np.ndarray], what: str):
        done = subject.progress.counter(what, len(pixels))
        return vision_codec.encode(tokenizer, pixels, self.batch_size, done=done)

    def _drift(self, tokenizer, earlier, order: list[int]) -> float:
        chosen = order[: self.compared]
        now, before = (
            np.stack(flat_patches(one, chosen, self.batch_size)).astype(np.float64)
            for one in (tokenizer, earlier)
        )
        return float(np.sqrt(np.mean((now - before) ** 2)))

    def _corpus(self, reader: items.Reader) -> dict[str, list[np.ndarray]]:
        """Returns "images" or "clips" → distinct pixels of all splits, without empty kinds."""
        data = self.use("data", pathlib.Path)
        parts = reader.read_distinct(data, _splits(data), self.limit)
        everything = [item for _, part in parts for item in part]
        if not everything:
            raise ValueError(f"{data} holds no image and no video that can be read")
        kinds = {
            "images": items.of_kind(everything, "image"),
            "clips": items.of_kind(everything, "video"),
        }
        return {kind: [item.pixels for item in chosen] for kind, chosen in kinds.items() if chosen}


def _splits(data: str | pathlib.Path) -> list[str]:
    """Returns all splits of a folder; ValueError if it has none."""
    splits = items.split_names(data)
    if not splits:
        raise ValueError(f"{data} holds no split, <name>.jsonl")
    return splits


def _check_splits(data: str | pathlib.Path) -> None:
    """Raises the first ValueError if no split of a folder can be read."""
    problems, splits = [], _splits(data)
    for split in splits:
        try:
            items.check_splits(data, [split])
        except ValueError as error:
            problems.append(error)
    if len(problems) == len(splits):
        raise problems[0]


def _use_metrics(counts_N: np.ndarray, where: str) -> dict[str, float]:
    perplexity = use.perplexity(counts_N)
    return {
        f"tokens_{where}": int(counts_N.sum()),
        f"used_{where}": use.used_percent(counts_N),
        f"perplexity_{where}": perplexity,
        f"effective_{where}": 100.0 * perplexity / counts_N.size,
        f"codes_for_99_percent_{where}": use.codes_covering(counts_N, 99.0),
    }


def _notes(total_N: np.ndarray) -> list[str]:
    tokens, size = int(total_N.sum()), total_N.size
    if tokens >= TOKENS_PER_CODE * size:
        return []
    return [
        f"{tokens:,} tokens are too few to tell whether all {size:,} codes are used:"
        f" even use of all would reach {100 * (1 - np.exp(-tokens / size)):.1f} %"
    ]


def check_comparable(config, earlier) -> None:
    """Raises ValueError unless both tokenizers have codes of the same number and size."""
    for name in ("codebook_size", "spatial_factor", "temporal_downsample_factor"):
        now, before = getattr(config, name), getattr(earlier, name)
        if now != before:
            raise ValueError(
                f"drift needs two tokenizers of one {name}; found {now} and, earlier, {before}"
            )


def kept_percent(codes: list[np.ndarray], earlier: list[np.ndarray]) -> float:
    """Returns the percentage of equal codes; 100 means that old tokens stay valid."""
    same = sum(int(np.sum(a == b)) for a, b in zip(codes, earlier, strict=True))
    return 100.0 * same / sum(code.size for code in codes)


def flat_patches(tokenizer, codes: list[int], batch_size: int) -> list[np.ndarray]:
    """Decodes a grid of each code alone and returns its middle token.

    Returns:
      uint8 [factor, factor, 3] each.
    """
    factor = tokenizer[0].config.spatial_factor
    grids = [np.full((GRID, GRID), code, np.int32) for code in codes]
    middle = slice(GRID // 2 * factor, (GRID // 2 + 1) * factor)
    images = vision_codec.decode(tokenizer, grids, batch_size)
    return [image[middle, middle] for image in images]
