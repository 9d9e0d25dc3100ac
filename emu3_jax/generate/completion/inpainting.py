"""Inpainting: codes of an image stay, the others are drawn.

The order is raster order, as in training, so nothing that is drawn sees what stays behind it: a
hole joins what lies above and to the left of it, and only by chance what lies below. (The paper
shows inpainting in a spiral order of codes, which no model here has learnt.)
"""

from collections.abc import Sequence

import numpy as np

from emu3_jax.generate import modalities
from emu3_jax.generate.completion.partly_given import DRAW, spelled
from emu3_jax.generate.modalities import Options
from emu3_jax.interop.bundle import Bundle


def inpaint(
    bundle: Bundle,
    captions: Sequence[str],
    codes: Sequence[np.ndarray],
    keep: Sequence[np.ndarray],
    options: Options | None = None,
) -> list[np.ndarray]:
    """Draws anew what is not kept of each image: codes int32 [h, w] each.

    Args:
      bundle: a model that draws images.
      captions: of the whole images; may be "".
      codes: int32 [h, w] each; sizes may differ.
      keep: bool [h, w] each, True where a code stays.
      options: how to sample.

    Raises:
      ValueError: a mask of another size, or one that keeps everything.
    """
    if not len(captions) == len(codes) == len(keep):
        raise ValueError(
            f"There are {len(codes)} images, {len(captions)} captions and {len(keep)} masks."
        )
    for i, (image, mask) in enumerate(zip(codes, keep, strict=True)):
        if np.shape(image) != np.shape(mask):
            raise ValueError(
                f"Mask {i} has the size {spelled(np.shape(mask))}, but its image has "
                f"{spelled(np.shape(image))} codes."
            )
    given = [np.where(mask, image, DRAW) for image, mask in zip(codes, keep, strict=True)]
    sizes = [image.shape for image in given]
    return modalities.draw_images(bundle, captions, sizes, options or Options(), given=given)


def kept_codes(drawn: np.ndarray, h: int, w: int) -> np.ndarray:
    """Which codes stay, bool [h, w]: those of whose pixels, bool [H, W], none is to be drawn.

    A code has the pixels of its place, whatever the size of the image in the file.
    """
    for axis, cells in enumerate((h, w)):
        edges = np.arange(cells + 1) * drawn.shape[axis]
        parts = zip(edges[:-1] // cells, -(-edges[1:] // cells), strict=True)
        lines = [drawn.take(range(*part), axis).any(axis) for part in parts]
        drawn = np.stack(lines, axis)
    return ~drawn
