"""Sheets of images: rows of tiles with a thin margin."""

from collections.abc import Sequence

import numpy as np


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], margin: int = 4, background: int = 255
) -> np.ndarray:
    """Lays tiles out in rows.

    Args:
      rows: rows of uint8 [H, W, 3]; cells have the size of the largest tile, smaller tiles are at
        the upper left.
      margin: pixels between and around tiles.
      background: grey level, 0 to 255.

    Returns:
      uint8 [height, width, 3].
    """
    if not any(len(row) for row in rows):
        raise ValueError("a contact sheet needs at least one image")
    height = max(tile.shape[0] for row in rows for tile in row)
    width = max(tile.shape[1] for row in rows for tile in row)
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + margin) + margin, columns * (width + margin) + margin, 3)
    sheet = np.full(shape, background, np.uint8)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            top, left = margin + r * (height + margin), margin + c * (width + margin)
            sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def tiled(columns: int, *lists: Sequence[np.ndarray]) -> list[Sequence[np.ndarray]]:
    """Breaks equally long lists of tiles into rows of `columns`.

    Each row of the first list has the rows of the others, in order, below it.
    """
    starts = range(0, len(lists[0]), columns)
    return [tiles[i : i + columns] for i in starts for tiles in lists]


def film_strip(clip: np.ndarray) -> np.ndarray:
    """Puts frames side by side: uint8 [T, H, W, 3] → [H, T*W, 3]."""
    return np.concatenate(list(clip), axis=1)
