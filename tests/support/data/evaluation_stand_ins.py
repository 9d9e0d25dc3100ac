"""Small parts for the tests of evaluation: a corpus of toned circles, a tokenizer that averages."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from emu3_jax.data import media
from emu3_jax.models.features import lpips

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
SKIN = ((250, 210, 180), (225, 180, 140), (190, 140, 100), (150, 100, 70), (90, 60, 40))
SHIRTS = {"man": (200, 30, 30), "woman": (30, 160, 60), "guard": (40, 60, 200)}
SIDE = 16


def person(name: str, tone: int) -> np.ndarray:
    """A face above a shirt, uint8 [SIDE, SIDE, 3]."""
    image = np.full((SIDE, SIDE, 3), 255, np.uint8)
    image[2:8, 4:12] = SKIN[tone]
    image[8:16, 2:14] = SHIRTS[name]
    return image


def write_corpus(folder) -> None:
    """Splits train, validation_combination and validation, each with stills and a clip."""
    splits = {"train": [], "validation_combination": [], "validation": []}
    for i, name in enumerate(SHIRTS):
        for tone, word in enumerate(TONES):
            split = "validation_combination" if tone == i else "train"
            row = {"id": f"{name}{tone}", "text": f"{name}: {word} skin tone", "tone": tone + 1}
            media.write_png(folder / f"{name}{tone}.png", person(name, tone))
            splits[split].append(row | {"image": f"{name}{tone}.png"})
    media.write_png(folder / "moon.png", np.full((SIDE, SIDE, 3), 70, np.uint8))
    splits["train"].append({"id": "moon", "text": "moon", "tone": None, "image": "moon.png"})
    media.write_png(folder / "elf3.png", person("guard", 3)[::-1])
    toned = {"id": "elf3", "text": "elf: medium-dark skin tone", "tone": 4, "image": "elf3.png"}
    splits["validation"] += [toned, {"id": "m", "text": "moons", "tone": None, "image": "moon.png"}]
    for split, rows in splits.items():
        clip = np.stack([np.roll(person("man", 2), shift, axis=1) for shift in range(8)])
        media.write_webp(folder / f"{split}.webp", clip, fps=8)
        rows.append({"id": f"{split}-clip", "text": "man walking", "video": f"{split}.webp"})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    (folder / "text.jsonl").write_text('{"id": "t", "text": "only words"}\n')


@dataclasses.dataclass(frozen=True)
class GreyConfig:
    """The fields that evaluators read."""

    spatial_factor: int = 4
    temporal_downsample_factor: int = 4
    codebook_size: int = 64


class GreyTokenizer(nn.Module):
    """Mean brightness of each 4x4 cell (and of 4 frames) in 32 levels, of 64 codes."""

    config: GreyConfig = GreyConfig()

    def encode(self, pixels, sizes=None):
        """[B, (T,) H, W, 3] in [-1, 1] → int32 [B, (t,) h, w]; no cell depends on another."""
        grey = pixels.mean(-1)
        *lead, height, width = grey.shape
        grey = grey.reshape(*lead, height // 4, 4, width // 4, 4).mean((-3, -1))
        if grey.ndim == 4:
            grey = grey.reshape(grey.shape[0], -1, 4, *grey.shape[2:]).mean(2)
        return jnp.clip((grey + 1) * 16, 0, 31).astype(jnp.int32)

    def decode(self, codes, sizes=None):
        """The inverse, in grey."""
        grey = (codes + 0.5) / 16 - 1
        axes = (1, 2) if codes.ndim == 3 else (1, 2, 3)
        grey = functools.reduce(lambda x, axis: jnp.repeat(x, 4, axis), axes, grey)
        return jnp.repeat(grey[..., None], 3, axis=-1)


def tiny_perceptual():
    """(weights, description): a VGG16 of width 2 with random kernels and heads of one."""
    rng, vgg, channels = np.random.default_rng(0), {}, 3
    for conv in lpips.CONVS:
        kernel = rng.normal(size=(3, 3, channels, 2)).astype(np.float32) / 3
        vgg[conv], channels = {"kernel": kernel, "bias": np.full(2, 0.1, np.float32)}, 2
    return {"vgg": vgg, "heads": (np.ones(2, np.float32),) * 5}, "Perceptual distance: a toy."
