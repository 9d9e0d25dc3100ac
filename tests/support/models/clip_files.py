"""The small CLIPs of tests/golden/clip as files, with a text tokenizer that fits some of them."""

import json
import pathlib
import shutil

import numpy as np
import safetensors.numpy
from paths import GOLDEN

from emu3_jax.interop.vision.clip_weights import OPENAI_MARKS

CLIP = GOLDEN / "clip"
NAMES = ("hf_quick_gelu", "hf_gelu", "openai", "open_clip")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")


class GoldenClip:
    """One of NAMES: tensors by their released names, config files, inputs and outputs.

    Attributes:
      tensors: name → float32.
      files: name of a config file → content.
      pixels: float32 [B, H, W, 3].
      arrays: the others, as stored.
    """

    def __init__(self, name: str):
        with np.load(CLIP / f"{name}.npz") as stored:
            self.arrays = dict(stored)
        about = json.loads(str(self.arrays.pop("about")))
        unit, flat = np.float32(about["unit"]), self.arrays.pop("weights")
        ends = np.cumsum([int(np.prod(shape)) for shape in about["shapes"].values()])
        parts = np.split(flat * unit, ends[:-1])
        self.tensors = {
            key: part.reshape(shape)
            for (key, shape), part in zip(about["shapes"].items(), parts, strict=True)
        }
        if name == "openai":
            self.tensors |= {mark: np.array(1) for mark in OPENAI_MARKS}
        self.files = about["files"]
        self.pixels = np.moveaxis(self.arrays.pop("pixels"), 1, -1) * unit

    def save(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes model.safetensors and the configs; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: np.ascontiguousarray(array) for key, array in self.tensors.items()}
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        for file, content in self.files.items():
            (folder / file).write_text(json.dumps(content))
        return folder


def save_with_tokenizer(folder: pathlib.Path, name: str = "hf_quick_gelu") -> pathlib.Path:
    """A CLIP with as many embeddings as the golden tokenizer has ids, and that tokenizer."""
    golden = GoldenClip(name)
    size = max(json.loads((CLIP / "vocab.json").read_text(encoding="utf-8")).values()) + 1
    random = np.random.RandomState(0)
    for key, array in golden.tensors.items():
        if key.endswith("token_embedding.weight"):
            golden.tensors[key] = random.randn(size, array.shape[1]).astype(np.float32)
    golden.save(folder)
    shutil.copy(CLIP / "tokenizer.json", folder)
    return folder
