"""A written document as a folder: Markdown with links to the images, and the same as JSON."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emu3_jax.data import media
from emu3_jax.files import write_atomically
from emu3_jax.generate.open_ended.interleaving import Written
from emu3_jax.sequence import Image, Text

MARKDOWN, STRUCTURE = "document.md", "document.json"


def free_folder(output: pathlib.Path) -> pathlib.Path:
    """The folder document_NNNNN behind those that are in `output`."""
    found = output.iterdir() if output.is_dir() else ()
    numbers = [int(name[1]) for f in found if (name := re.fullmatch(r"document_(\d+)", f.name))]
    return output / f"document_{max(numbers, default=-1) + 1:05d}"


def write_folder(
    folder: pathlib.Path,
    written: Written,
    pixels: Sequence[np.ndarray],
    settings: Mapping[str, Any],
) -> None:
    """Writes document.md, document.json and image_N.png.

    Args:
      folder: is made; it must not exist.
      written: of texts and images.
      pixels: uint8 [H, W, 3] of each image, in order.
      settings: all that is needed to write the document again; part of the JSON.
    """
    folder.mkdir(parents=True)
    markdown, entries, images = [], [], iter(pixels)
    for segment in written.segments:
        if isinstance(segment, Text):
            markdown.append(segment.text)
            entries.append({"text": segment.text})
        elif isinstance(segment, Image):
            name = f"image_{sum('image' in entry for entry in entries)}.png"
            media.write_png(folder / name, next(images))
            markdown.append(f"\n\n![]({name})\n\n")
            h, w = segment.codes.shape
            entries.append({"image": name, "size": f"{h}x{w}", "codes": segment.codes.tolist()})
    write_atomically(folder / MARKDOWN, ("".join(markdown).strip("\n") + "\n").encode())
    whole = {"segments": entries, "is_finished": written.is_finished, **settings}
    text = json.dumps(whole, ensure_ascii=False) + "\n"
    write_atomically(folder / STRUCTURE, text.encode())
