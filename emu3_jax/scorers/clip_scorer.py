"""Scorers over a CLIP: images and captions to embeddings, in batches, on the whole mesh."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax import sharding
from emu3_jax.config import ConfigError
from emu3_jax.interop.vision import clip_weights
from emu3_jax.models.features import clip
from emu3_jax.models.features.clip import ClipConfig
from emu3_jax.scorers import clip_images
from emu3_jax.scorers.clip_tokenizer import ClipTokenizer

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScorer:
    """Base class of scorers over a CLIP. The fields are the settings.

    The weights are read and put on the devices once; use one mesh for the life of a scorer.

    Attributes:
      reads_text: whether the scores depend on the caption.
      as_read: an image, uint8 [H, W, 3], and the model's side → float32 [side, side, 3].
      name: of the scores.
      clip: the weights, a folder or a file (`interop.vision.clip_weights`).
      tokenizer: tokenizer.json, or a folder with CLIP's text tokenizer; "" is the folder of `clip`.
      activation: "quick_gelu" or "gelu" for weights without a config; "" is what they state.
      dtype: of the computation; float32 is the exact one.
      batch_size: images at a time, rounded up to a multiple of the devices.
    """

    reads_text: ClassVar[bool] = True
    as_read: ClassVar[Callable[[np.ndarray, int], np.ndarray]] = clip_images.torchvision_crop

    name: str
    clip: str
    tokenizer: str = ""
    activation: str = ""
    dtype: str = "float32"
    batch_size: int = 32

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")

    def check(self) -> None:
        """Reads all files; ConfigError, beginning with the setting, for one that does not fit."""
        _ = self.model
        if self.reads_text:
            _ = self.text

    @functools.cached_property
    def model(self) -> tuple[ClipConfig, Any]:
        """(config, weights on the host)."""
        try:
            return clip_weights.load(self.clip, self.activation)
        except ValueError as error:
            raise ConfigError(f"clip: {error}") from error

    @functools.cached_property
    def text(self) -> ClipTokenizer:
        """The text tokenizer, which has the model's ids."""
        beside = pathlib.Path(self.clip)
        beside = beside if beside.is_dir() else beside.parent
        try:
            found = ClipTokenizer(self.tokenizer or beside)
        except ValueError as error:
            raise ConfigError(f"tokenizer: {error}") from error
        known = self.model[0].vocabulary
        if found.size != known:
            raise ConfigError(
                f"tokenizer: {self.tokenizer or beside} has {found.size} ids, but {self.clip} "
                f"has embeddings of {known}"
            )
        return found

    def score(self, prompts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N], see `Scorer.score`."""
        if len(images) == 0:
            return np.zeros(0, np.float32)
        images_ND = self.image_embeddings(images)
        texts_ND = self.text_embeddings(prompts) if self.reads_text else None
        return np.asarray(self.scores_of(texts_ND, images_ND), np.float32)

    def scores_of(self, texts_ND: np.ndarray | None, images_ND: np.ndarray) -> jax.Array:
        """[N] of float32 embeddings as they come out of the towers; None if not `reads_text`."""
        raise NotImplementedError

    def image_embeddings(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N, D], not normalised; ValueError for what is no image."""
        side, rule = self.model[0].side, type(self).as_read
        return self.in_batches(self._image_program, lambda i: [rule(images[i], side)], len(images))

    def text_embeddings(self, prompts: Sequence[str]) -> np.ndarray:
        """float32 [N, D], not normalised; a caption that occurs again is computed once."""
        different = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        rows = self.text.rows([self.cleaned(p) for p in different], self.model[0].context)
        found = self.in_batches(self._text_program, lambda i: [rows[i]], len(rows))
        return found[[different[prompt] for prompt in prompts]]

    def cleaned(self, prompt: str) -> str:
        """What of a caption is tokenized."""
        return prompt

    @functools.cached_property
    def _weights(self):
        return sharding.on_devices(self.model[1])

    @functools.cached_property
    def _image_program(self) -> Callable:
        def embeddings(weights, pixels):
            pixels = pixels.astype(self.dtype)
            return sharding.gathered(clip.image_embeddings(self.model[0], weights, pixels))

        return jax.jit(embeddings)

    @functools.cached_property
    def _text_program(self) -> Callable:
        def embeddings(weights, ids):
            dtype = jnp.dtype(self.dtype)
            return sharding.gathered(clip.text_embeddings(self.model[0], weights, ids, dtype))

        return jax.jit(embeddings)

    def in_batches(
        self, program: Callable, item: Callable[[int], Sequence[np.ndarray]], count: int
    ) -> np.ndarray:
        """Results [count, ...] of `program`, jitted: (weights, stacked arrays of items) → [B, ...].

        `item` makes the arrays of the items 0 … count - 1, batch by batch. The last batch repeats
        its first item up to the common number of rows.
        """
        ways = sharding.ways_of(jax.sharding.get_abstract_mesh(), "batch")
        rows = -(-min(self.batch_size, count) // ways) * ways
        results = []
        for start in range(0, count, rows):
            batch = [item(i) for i in range(start, min(start + rows, count))]
            filled = batch + batch[:1] * (rows - len(batch))
            arrays = [
                sharding.spread(np.stack(column), "batch") for column in zip(*filled, strict=True)
            ]
            found = program(self._weights, *arrays)
            results.append(np.asarray(found)[: len(batch)])
        return np.concatenate(results)
