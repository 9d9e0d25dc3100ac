"""Quality of reconstructions: PSNR, SSIM and perceptual distance of each frame."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax.data.codec.programs import Program
from emu3_jax.evaluate.evaluator import Table
from emu3_jax.evaluate.vision import psnr_ssim
from emu3_jax.models.features.lpips import lpips
from emu3_jax.train.run import distributed

PERCEPTUAL = "perceptual"
# Decimals in tables.
DIGITS = {"psnr": 3, "ssim": 4, PERCEPTUAL: 4}


@jax.jit
def _distance(weights, pairs, sizes):
    """float32 [B] of float [B, H, W, 6], two images each."""
    return lpips(weights, *jnp.split(pairs, 2, axis=-1), sizes)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measured values of the items of one kind.

    Attributes:
      sizes: (height, width) of each item.
      values: measure → one float [frames] per item; a still has one frame.
    """

    sizes: list[tuple[int, int]]
    values: dict[str, list[np.ndarray]]

    def means(self, kind: str) -> dict[str, float]:
        """Returns `psnr_<kind>` …: means over frames, then items; and `count_<kind>`."""
        metrics = {f"{name}_{kind}": self._mean(name) for name in self.values}
        return metrics | {f"count_{kind}": len(self.sizes)}

    def by_size(self, kind: str) -> list[tuple]:
        """Returns rows (kind, height, width, count, mean of each measure), smallest area first."""
        rows = []
        for size in sorted(set(self.sizes), key=lambda s: (s[0] * s[1], s)):
            chosen = [i for i, other in enumerate(self.sizes) if other == size]
            means = (round(self._mean(n, chosen), DIGITS[n]) for n in self.values)
            rows.append((kind, *size, len(chosen), *means))
        return rows

    def by_frame(self) -> Table:
        """Returns the mean at each frame index over the clips that have that frame.

        With causal temporal layers, the first frames of a clip differ from the later ones.
        """
        lengths = [len(curve) for curve in self.values["psnr"]]
        rows = []
        for frame in range(max(lengths)):
            means = (
                round(float(np.mean([c[frame] for c in curves if len(c) > frame])), DIGITS[name])
                for name, curves in self.values.items()
            )
            rows.append((frame, *means, sum(length > frame for length in lengths)))
        return Table(("frame", *self.values, "clips"), tuple(rows))

    def _mean(self, name: str, chosen: Sequence[int] | None = None) -> float:
        values = self.values[name]
        chosen = range(len(values)) if chosen is None else chosen
        return float(np.mean([values[i].mean() for i in chosen]))


def measure(
    originals: Sequence[np.ndarray],
    rebuilt: Sequence[np.ndarray],
    perceptual: tuple[Any, str] | None,
    batch_size: int,
) -> Measured:
    """Compares uint8 [(T,) H, W, 3] item by item; each of several processes does a share.

    Args:
      originals, rebuilt: items; those of one index have the same shape.
      perceptual: weights and their description; None leaves the perceptual distance out.
      batch_size: frames at a time for the perceptual distance.
    """
    pairs = [
        (a.reshape(-1, *a.shape[-3:]), b.reshape(-1, *b.shape[-3:]))
        for a, b in zip(originals, rebuilt, strict=True)
    ]
    values = {}
    for name, quality in (("psnr", psnr_ssim.psnr), ("ssim", psnr_ssim.ssim)):
        curves = distributed.map_shared(lambda pair, of=quality: of(*pair).tolist(), pairs)
        values[name] = [np.array(curve) for curve in curves]
    if perceptual is not None:
        values[PERCEPTUAL] = _perceptual(pairs, perceptual[0], batch_size)
    return Measured([a.shape[-3:-1] for a, _ in pairs], values)


def _perceptual(pairs, weights, batch_size: int) -> list[np.ndarray]:
    frames = [np.concatenate(frame, axis=-1) for pair in pairs for frame in zip(*pair, strict=True)]
    flat = np.zeros(len(frames))
    batcher = Program("perceptual distance", _distance, weights).batcher(batch_size)
    for index, frame in enumerate(frames):
        batcher.add(frame, functools.partial(flat.__setitem__, index))
    batcher.flush()
    return np.split(flat, np.cumsum([len(a) for a, _ in pairs])[:-1])
