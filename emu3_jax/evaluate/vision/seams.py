"""Do long clips show where training clips ended? PSNR by frame, and its sag at the seams.

A tokenizer trained on clips of P frames has never seen what crosses a multiple of P; and within a
clip latent frames, P = the temporal factor, may part as well.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Seam:
    """One seam, averaged over the clips that have it.

    Attributes:
      frame: the first frame behind the seam, a multiple of the period.
      border: mean PSNR in dB of the two frames at the seam, k - 1 and k.
      inside: mean PSNR in dB of the other frames of the two periods beside it, less the first and
        the last of each, which are at a seam or at an end of the clip. Having both sides, a slow
        change along the clip cancels out.
    """

    frame: int
    border: float
    inside: float

    @property
    def sag(self) -> float:
        """How far the border lies below the inside, in dB; negative where it is better."""
        return self.inside - self.border


def seams(curves: Sequence[np.ndarray], period: int) -> list[Seam]:
    """The seams at multiples of `period` behind which a whole period follows in some clip.

    Args:
      curves: PSNR by frame of each clip, float [T] in dB.
      period: frames; one below 3 has no inside, so there are no seams.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for curve in curves:
        for k in range(period, len(curve) - period + 1, period) if period >= 3 else ():
            inside = [*curve[k - period + 1 : k - 1], *curve[k + 1 : k + period - 1]]
            found.setdefault(k, []).append((np.mean(curve[k - 1 : k + 1]), np.mean(inside)))
    return [Seam(k, *np.mean(pairs, axis=0).tolist()) for k, pairs in sorted(found.items())]


def seam_metrics(found: Sequence[Seam], suffix: str = "") -> dict[str, float]:
    """`seam_db`: mean sag over all seams; `seam_db_worst`: the largest. {} where there is none."""
    sags = [seam.sag for seam in found]
    if not sags:
        return {}
    return {f"seam_db{suffix}": float(np.mean(sags)), f"seam_db{suffix}_worst": max(sags)}


def of_length(clip: np.ndarray, frames: int) -> np.ndarray:
    """A clip of `frames` frames: cut, or played forwards and backwards until it is long enough.

    Frames at the turns are shown once, so every step is one of the clip's own, one way or the
    other: motion goes on across the multiples of the clip's length.

    Args:
      clip: uint8 [T, H, W, 3].
      frames: at least 1.
    """
    last = len(clip) - 1
    if last == 0:
        return np.repeat(clip, frames, axis=0)
    step = np.arange(frames) % (2 * last)
    return clip[np.minimum(step, 2 * last - step)]
