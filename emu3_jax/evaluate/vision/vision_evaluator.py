"""What evaluators of a vision tokenizer share: the folder of images and clips, and their size."""

import dataclasses
from typing import ClassVar

from emu3_jax.data.media import PixelLimits
from emu3_jax.evaluate.evaluator import Evaluator, Subject
from emu3_jax.evaluate.items import Reader


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionEvaluator(Evaluator):
    """An evaluator of a vision tokenizer on raw images and clips.

    Attributes:
      data: folder of raw items: `<split>.jsonl` and its media files.
      min_pixels, max_pixels: limits of the area in pixels within which images and clips are
        resized, as tokenizing does with its settings of these names; both 0: they are measured as
        stored, cut to whole tokens.
    """

    measures: ClassVar[str] = "vision_tokenizer"

    data: str = ""
    min_pixels: int = 0
    max_pixels: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.min_pixels or self.max_pixels:
            PixelLimits(self.min_pixels, self.max_pixels)  # raises if they fit no image

    def reader(self, subject: Subject) -> Reader:
        """Returns what reads the pixels, and counts what cannot be used."""
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return Reader(subject.vision_tokenizer[0].config, limits if self.max_pixels else None)
