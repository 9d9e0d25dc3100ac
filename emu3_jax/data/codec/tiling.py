"""Images too large for memory, in overlapping tiles: an approximation of the whole image.

The tokenizer's norms and its attention span a whole frame; a tile contains only itself. Each code
comes from the tile whose middle it is closest to. Decoded tiles fade into each other over their
overlap, which hides the tile boundaries.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from emu3_jax.data.codec import vision_codec


def spans(size: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """[start, stop) of tiles that cover `size`: equally long, neighbours share `overlap` or more.

    Raises:
      ValueError: the overlap is negative or leaves nothing of a tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(
            f"the overlap must be from 0 to less than a tile ({tile}), found {overlap}"
        )
    if size <= tile:
        return [(0, size)]
    count = -(-(size - overlap) // (tile - overlap))
    starts = [round(i * (size - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def cuts(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same tiles without overlap: neighbours meet in the middle of what they share."""
    middles = [(a[1] + b[0]) // 2 for a, b in zip(parts, parts[1:], strict=False)]
    return list(zip([parts[0][0], *middles], [*middles, parts[-1][1]], strict=True))


def encode(
    tokenizer: tuple[Any, Any], pixels: np.ndarray, tile: int, overlap: int, **options
) -> np.ndarray:
    """Codes of uint8 [H, W, 3] or [T, H, W, 3] → int32 [h, w] or [t, h, w].

    Args:
      tokenizer: (module, variables).
      pixels: cut to whole tokens first.
      tile: side of a tile in tokens.
      overlap: minimum number of tokens that neighbours share.
      **options: of `vision_codec.encode`.
    """
    factor = tokenizer[0].config.spatial_factor
    pixels = vision_codec.whole_tokens(tokenizer[0].config, pixels)
    rows, columns = (spans(size // factor, tile, overlap) for size in pixels.shape[-3:-1])
    out = None
    for (top, bottom), (first, last) in zip(rows, cuts(rows), strict=True):
        for (left, right), (start, stop) in zip(columns, cuts(columns), strict=True):
            part = pixels[..., top * factor : bottom * factor, left * factor : right * factor, :]
            codes = vision_codec.encode(tokenizer, [part], 1, **options)[0]
            if out is None:
                out = np.zeros((*codes.shape[:-2], rows[-1][1], columns[-1][1]), codes.dtype)
            inside = codes[..., first - top : last - top, start - left : stop - left]
            out[..., first:last, start:stop] = inside
    return out


def decode(
    tokenizer: tuple[Any, Any], codes: np.ndarray, tile: int, overlap: int, **options
) -> np.ndarray:
    """Pixels of codes [h, w] or [t, h, w] → uint8 [H, W, 3] or [T, H, W, 3]; as `encode`."""
    factor = tokenizer[0].config.spatial_factor
    rows, columns = (spans(size, tile, overlap) for size in codes.shape[-2:])
    total = weights = None
    for row in rows:
        for column in columns:
            part = codes[..., row[0] : row[1], column[0] : column[1]]
            pixels = vision_codec.decode(tokenizer, [part], 1, **options)[0].astype(np.float32)
            if total is None:
                shape = (*pixels.shape[:-3], rows[-1][1] * factor, columns[-1][1] * factor)
                total, weights = np.zeros((*shape, 3), np.float32), np.zeros(shape[-2:], np.float32)
            weight = np.outer(_ramp(row, rows, factor), _ramp(column, columns, factor))
            y = slice(row[0] * factor, row[1] * factor)
            x = slice(column[0] * factor, column[1] * factor)
            total[..., y, x, :] += pixels * weight[..., None]
            weights[y, x] += weight
    return np.clip(np.rint(total / weights[..., None]), 0, 255).astype(np.uint8)


def _ramp(part: tuple[int, int], parts: Sequence[tuple[int, int]], factor: int) -> np.ndarray:
    """Weight of each line of a tile: rises from zero over the overlap with its neighbours."""
    index = list(parts).index(part)
    length = (part[1] - part[0]) * factor
    weight = np.ones(length, np.float32)
    if index > 0:
        shared = (parts[index - 1][1] - part[0]) * factor
        weight[:shared] = np.minimum(weight[:shared], (np.arange(shared) + 0.5) / max(shared, 1))
    if index < len(parts) - 1:
        shared = (part[1] - parts[index + 1][0]) * factor
        fall = (np.arange(shared)[::-1] + 0.5) / max(shared, 1)
        weight[length - shared :] = np.minimum(weight[length - shared :], fall)
    return weight
