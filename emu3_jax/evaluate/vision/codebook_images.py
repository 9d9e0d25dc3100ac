"""Images of a codebook: how often its codes are used, and what they look like."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from emu3_jax.figures.chart import FALLBACK, ticks
from emu3_jax.figures.contact_sheet import contact_sheet

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
# Smaller patches are enlarged to at least this side; number of patches per row of the sheet.
PATCH_SIDE, PATCHES_A_ROW = 32, 16
INK, LINE = "#444444", "#dddddd"


def usage_curve(counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Plots the share of each code in all tokens, most used first, on a logarithmic scale.

    A horizontal line shows even use, 1 / N.

    Args:
      counts: kind → int [N]; each kind is a line that ends at its last used code.

    Returns:
      uint8 [HEIGHT, WIDTH, 3].
    """
    size = len(next(iter(counts.values())))
    lines = {}
    for kind, counts_N in counts.items():
        used = np.sort(counts_N[counts_N > 0])[::-1]
        lines[kind] = np.log10(used / used.sum())
    even = -np.log10(size)
    bottom = np.floor(min(even, *(line[-1] for line in lines.values())))
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)

    def x(rank: float) -> float:
        return LEFT + rank / size * (WIDTH - LEFT - RIGHT)

    def y(power: float) -> float:
        return TOP + power / bottom * (HEIGHT - TOP - BOTTOM)

    for power in range(int(bottom), 1):
        draw.line((LEFT, y(power), WIDTH - RIGHT, y(power)), LINE)
        draw.text((LEFT - 8, y(power)), f"{100 * 10.0**power:g} %", INK, font, "rm")
    for rank in ticks(0, size):
        draw.text((x(rank), HEIGHT - BOTTOM + 6), f"{rank:,.0f}", INK, font, "mt")
    draw.text((WIDTH / 2, HEIGHT - 8), f"codes by use, of {size:,}", INK, font, "mb")
    draw.line((LEFT, y(even), WIDTH - RIGHT, y(even)), "#999999")
    draw.text((WIDTH - RIGHT, y(even) - 3), "even use", "#999999", font, "rb")
    left = LEFT
    for color, (kind, line) in zip(FALLBACK, lines.items(), strict=False):
        points = [(x(rank + 0.5), y(power)) for rank, power in enumerate(line)]
        draw.line(points if len(points) > 1 else points * 2, color, width=2)
        text = f"{kind}: {len(line):,} used"
        draw.text((left, TOP - 14), text, color, font, "ls")
        left += draw.textlength(text, font) + 24
    return np.asarray(image)


def patch_sheet(most: Sequence[np.ndarray], least: Sequence[np.ndarray]) -> np.ndarray:
    """Shows patches of the most used codes, an empty row, and those of the least used ones.

    Args:
      most, least: uint8 [side, side, 3] each, most used first.
    """
    rows = [*_rows(most), [], *_rows(least)]
    return contact_sheet(rows, margin=2)


def _rows(patches: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    larger = [_enlarged(patch) for patch in patches]
    return [larger[i : i + PATCHES_A_ROW] for i in range(0, len(larger), PATCHES_A_ROW)]


def _enlarged(patch: np.ndarray) -> np.ndarray:
    times = -(-PATCH_SIDE // patch.shape[0])
    return patch.repeat(times, axis=0).repeat(times, axis=1)
