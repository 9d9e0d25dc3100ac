"""Crops for training: squares of an image or clip, and windows that move over an image.

A box is (left, top, right, bottom) in pixels of the image, not necessarily whole numbers. Cropping
and resizing are one step, whose filter also reads the pixels around the box: a window that moves by
a tenth of a pixel moves the image by exactly that.
"""

import numpy as np
from PIL import Image

# Pans. None of these figures is published. Chosen here so that a window of 64 pixels moves by at
# most four pixels per frame and has room to move in a square image too.
PAN_SIDES = (0.4, 0.8)  # side of the first window as a share of the image's short side
PAN_SPEED = 1 / 16  # largest move in one frame along an axis, in sides of the window
PAN_ZOOM = 0.01  # largest change of its side in one frame, as a share


def random_box(
    height: int, width: int, min_crop: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A square anywhere in the image; its side is uniform in [min_crop, 1] x the short side."""
    side = min(height, width) * rng.uniform(min_crop, 1.0)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    return left, top, left + side, top + side


def pan_boxes(height: int, width: int, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Float64 [frames, 4]: a square that moves and grows or shrinks evenly, within the image."""
    short, steps = min(height, width), frames - 1
    first = short * rng.uniform(*PAN_SIDES)
    last = first * np.exp(steps * rng.uniform(-PAN_ZOOM, PAN_ZOOM))
    last = np.clip(last, PAN_SIDES[0] * short, short)
    starts, ends = [], []
    for length in (width, height):
        move = steps * first * rng.uniform(-PAN_SPEED, PAN_SPEED)
        move = np.clip(move, first - length, length - last)  # as far as the image allows
        start = rng.uniform(max(0.0, -move), min(length - first, length - last - move))
        starts.append(start)
        ends.append(start + move)
    edges = np.array([[*starts, *np.add(starts, first)], [*ends, *np.add(ends, last)]])
    share_T = np.linspace(0, 1, frames)[:, None]
    # Rounding may move an edge over the border by a part in 1e16, which Pillow rejects.
    return np.clip((1 - share_T) * edges[0] + share_T * edges[1], 0, [width, height] * 2)


def cut(pixels: np.ndarray, box, size: int) -> np.ndarray:
    """A box of uint8 [H,W,3] or [T,H,W,3], resized (bicubic) to [size,size,3] or [T,size,size,3].

    `box` is one for all frames, or [T,4] with one per frame. With [T,4], `pixels` may also be a
    still [H,W,3], which is then repeated.
    """
    boxes = np.asarray(box, np.float64)
    if pixels.ndim == 3:
        image = Image.fromarray(pixels)
        cuts = [_resized(image, one, size) for one in boxes.reshape(-1, 4)]
        return np.stack(cuts) if boxes.ndim == 2 else cuts[0]
    boxes = np.broadcast_to(boxes, (len(pixels), 4))
    frames = zip(pixels, boxes, strict=True)
    return np.stack([_resized(Image.fromarray(frame), one, size) for frame, one in frames])


def _resized(image: Image.Image, box: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=tuple(box)))
