"""The model of the page, shared by all visitors."""

import dataclasses
from collections.abc import Callable

import numpy as np

from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.demo.uploads import read_upload
from emu3_jax.generate import codec, presets
from emu3_jax.generate.completion.partly_given import DRAW
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.modalities import Options
from emu3_jax.generate.serving import Serving
from emu3_jax.interop.bundle import Bundle

# With what the page begins, by shipped model: captions of its corpus, clips of 8 frames in 3.024 s,
# and the settings that it draws best with (docs/reference/measurements.md).
CLIPS = dict(films=("grinning face with big eyes", "sun with face", "rainbow"), fps=2.646, frames=4)
SHOWS = {
    "transformer_styles": dict(
        sampling=Sampling(guidance=3.0, temperature=0.7, top_k=200),
        prompts=(
            "person raising hand: medium-light skin tone, Noto style",
            "smiling face with sunglasses, flat style", "man health worker: medium skin tone",
            "男生举手: 较深肤色，Twemoji风格"
        ),
        **CLIPS,
    ),
    "transformer_nano": dict(
        sampling=Sampling(guidance=6.0, temperature=0.7, top_k=200),
        prompts=(
            "red apple", "smiling face with sunglasses", "person biking: medium skin tone",
            "blue heart"
        ),
        **CLIPS,
    ),
}  # fmt: skip
# What released weights draw.
OTHERS_SHOW = dict(prompts=("a portrait of a young girl", "a red fox in the snow"), films=("rain",))


@dataclasses.dataclass(frozen=True, eq=False)
class Exhibit:
    """A model, and how the page uses it.

    Attributes:
      bundle: with a vision tokenizer.
      serving: the thread that owns the model.
      limits: images are resized to these.
      area: pixels of an image that is drawn by its ratio.
      sampling: with what the page begins to draw.
      prompts: captions of images to try.
      films: captions of clips to try.
      fps: with what the page begins to film.
      frames: latent frames with which it does.
    """

    bundle: Bundle
    serving: Serving
    limits: media.PixelLimits
    area: int = presets.GEN_AREA
    sampling: Sampling = presets.DEMO
    prompts: tuple[str, ...] = ()
    films: tuple[str, ...] = ()
    fps: float = 8.0
    frames: int = 2

    @property
    def factor(self) -> int:
        """Frames of a latent frame."""
        return self.bundle.vision.config.temporal_downsample_factor

    def can(self, task: str) -> bool:
        """Whether the model learnt a task, as far as that is known."""
        learnt = self.bundle.learnt
        return learnt is None or bool({task, "document"} & set(learnt))

    def options(self, sampling: Sampling, cancel: Callable[[], bool] | None, **more) -> Options:
        """Options of a request of one visitor."""
        return Options(sampling, cancel=cancel, served_by=self.serving, **more)

    def read(self, path: str) -> np.ndarray:
        """An uploaded image, uint8 [H, W, 3], in the size that the tokenizer takes; MediaError."""
        return vision_codec.whole_tokens(self.bundle.vision.config, read_upload(path, self.limits))

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Codes int32 [h, w] of uint8 [H, W, 3] from `read`."""
        tokenizer = (self.bundle.vision, self.bundle.vision_variables)
        return self.serving.call(vision_codec.encode, tokenizer, [pixels], 1)[0]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Pixels of codes, of an image or a clip.

        A row of which a code is not drawn yet (DRAW) looks like the last complete one before it.
        """
        rows = codes.reshape(-1, codes.shape[-1])
        is_drawn = (rows != DRAW).all(axis=-1)
        nearest = np.maximum.accumulate(np.where(is_drawn, np.arange(len(rows)), 0))
        codes = np.maximum(rows[nearest], 0).reshape(codes.shape)
        return self.serving.call(codec.decode, self.bundle, [codes])[0]
