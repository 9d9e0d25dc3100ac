"""A sheet of real and drawn images with what a judge reads on the drawn ones."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from emu3_jax.evaluate.emoji.judge import Reading
from emu3_jax.figures.contact_sheet import contact_sheet, tiled

SIDE, GAP, LINE, COLUMNS = 116, 4, 14, 5
RIGHT, WRONG, UNASKED = "#117733", "#cc3311", "#999999"


def sheet(
    real: Sequence[np.ndarray],
    drawn: Sequence[np.ndarray],
    stated: Sequence[Mapping[str, str]],
    readings: Mapping[str, Reading],
    shown: int,
) -> np.ndarray:
    """Draws tiles, evenly chosen: the real image, the drawn one, and a line for each part.

    A line says what was read: green if it is stated, red with what is stated instead, grey if the
    caption does not state the part.

    Args:
      real: N images, uint8 [H, W, 3].
      drawn: N images, uint8 [H, W, 3].
      stated: part → value, for N captions.
      readings: part → reading of the drawn images.
      shown: the largest number of tiles.

    Returns:
      uint8 [height, width, 3].
    """
    chosen = np.linspace(0, len(real) - 1, min(shown, len(real))).astype(int)
    tiles = []
    for i in chosen:
        read = {part: reading.values[i] for part, reading in readings.items()}
        tiles.append(_tile(real[i], drawn[i], stated[i], read))
    return contact_sheet(tiled(COLUMNS, tiles))


def _tile(real, drawn, stated: Mapping[str, str], read: Mapping[str, str]) -> np.ndarray:
    tile = Image.new("RGB", (2 * SIDE + GAP, SIDE + LINE * len(read) + GAP), "white")
    for column, image in enumerate((real, drawn)):
        height, width = image.shape[:2]
        size = (
            max(1, SIDE * width // max(height, width)),
            max(1, SIDE * height // max(height, width)),
        )
        image = Image.fromarray(image).resize(size, Image.Resampling.NEAREST)
        tile.paste(image, (column * (SIDE + GAP), 0))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(10)
    for row, (part, value) in enumerate(read.items()):
        text, color = value or f"no {part}", UNASKED
        if part in stated:
            color = RIGHT if stated[part] == value else WRONG
            text += "" if stated[part] == value else f", not {stated[part]}"
        draw.text((2, SIDE + LINE * row + 2), text, color, font)
    return np.asarray(tile)
