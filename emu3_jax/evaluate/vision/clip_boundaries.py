"""Do long clips show where training clips ended? PSNR by frame, and its sag at clip boundaries.

A tokenizer trained on clips of P frames was never trained across a multiple of P. Latent frames,
with P = the temporal factor, may also show boundaries within a clip.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClipBoundary:
    """One boundary, averaged over the clips that have it.

    Attributes:
      frame: index of the first frame after the boundary, a multiple of the period.
      border: mean PSNR in dB of the two frames at the boundary, k - 1 and k.
      inside: mean PSNR in dB of the other frames of the two adjacent periods, without the first and
        the last of each, which are at a boundary or at an end of the clip. With both sides, a slow
        change along the clip cancels out.
    """

    frame: int
    border: float
    inside: float

    @property
    def sag(self) -> float:
        """How far `border` is below `inside`, in dB; negative if it is above."""
        return self.inside - self.border


def clip_boundaries(curves: Sequence[np.ndarray], period: int) -> list[ClipBoundary]:
    """Returns the boundaries at multiples of `period` that a whole period follows in some clip.

    Args:
      curves: PSNR by frame of each clip, float [T] in dB.
      period: frames; below 3 there is no inside and the result is empty.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for curve in curves:
        for k in range(period, len(curve) - period + 1, period) if period >= 3 else ():
            inside = [*curve[k - period + 1 : k - 1], *curve[k + 1 : k + period - 1]]
            found.setdefault(k, []).append((np.mean(curve[k - 1 : k + 1]), np.mean(inside)))
    return [ClipBoundary(k, *np.mean(pairs, axis=0).tolist()) for k, pairs in sorted(found.items())]


def boundary_metrics(found: Sequence[ClipBoundary], suffix: str = "") -> dict[str, float]:
    """Returns the mean sag over all boundaries and the largest, in dB; {} if there are none.

    Names: boundary_db<suffix>, boundary_db<suffix>_worst.
    """
    sags = [boundary.sag for boundary in found]
    if not sags:
        return {}
    return {f"boundary_db{suffix}": float(np.mean(sags)), f"boundary_db{suffix}_worst": max(sags)}


def of_length(clip: np.ndarray, frames: int) -> np.ndarray:
    """Returns a clip of `frames` frames: cut, or played forwards and backwards until long enough.

    Frames at the turning points are shown once, so every step is one of the clip's own, forwards or
    backwards, and motion continues across multiples of the clip's length.

    Args:
      clip: uint8 [T, H, W, 3].
      frames: at least 1.
    """
    last = len(clip) - 1
    if last == 0:
        return np.repeat(clip, frames, axis=0)
    step = np.arange(frames) % (2 * last)
    return clip[np.minimum(step, 2 * last - step)]
