"""Fréchet distance between two sets of features, taken as Gaussians, in float64.

Heusel et al. 2017 (arXiv 1706.08500), equation 6: |m - n|² + tr(S + T - 2 (S T)^1/2). The trace of
the root is computed as the sum of the singular values of S^1/2 T^1/2. This avoids the root of a
product that is not symmetric, so no complex numbers occur; negative eigenvalues from rounding are
set to zero before a root.
"""

import dataclasses
import io
import os
import pathlib
import zipfile
from collections.abc import Iterable

import numpy as np

from emu3_jax.files import in_words, write_atomically

# With fewer samples per dimension, the covariance is mostly noise and the distance too large.
SAMPLES_PER_DIMENSION = 2


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Count, mean and scatter of feature vectors; those of several sets can be merged.

    Attributes:
      count: number of vectors.
      mean_D: float64 [D].
      scatter_DD: float64 [D, D], the sum of outer products of deviations from the mean.
    """

    count: int
    mean_D: np.ndarray
    scatter_DD: np.ndarray

    @classmethod
    def of(cls, features_ND: np.ndarray) -> "Statistics":
        """Returns the statistics of float [N, D], N at least 1."""
        features_ND = np.asarray(features_ND, np.float64)
        if features_ND.ndim != 2 or not len(features_ND):
            raise ValueError(f"features are [N, D] with N at least 1, got {features_ND.shape}")
        mean_D = features_ND.mean(axis=0)
        centred_ND = features_ND - mean_D
        return cls(len(features_ND), mean_D, centred_ND.T @ centred_ND)

    @classmethod
    def streamed(cls, batches: Iterable[np.ndarray]) -> "Statistics":
        """Returns the statistics of all batches float [N, D], read one at a time; at least one."""
        total = None
        for features_ND in batches:
            part = cls.of(features_ND)
            total = part if total is None else total.merged(part)
        if total is None:
            raise ValueError("there are no features to take statistics of")
        return total

    def merged(self, other: "Statistics") -> "Statistics":
        """Returns the statistics of both sets (Chan et al. 1979, parallel update of moments)."""
        if self.mean_D.shape != other.mean_D.shape:
            raise ValueError(
                f"features of {self.mean_D.size} and of {other.mean_D.size} dimensions do not mix"
            )
        count = self.count + other.count
        step_D = other.mean_D - self.mean_D
        between = np.outer(step_D, step_D) * (self.count * other.count / count)
        return Statistics(
            count,
            self.mean_D + step_D * (other.count / count),
            self.scatter_DD + other.scatter_DD + between,
        )

    @property
    def covariance(self) -> np.ndarray:
        """float64 [D, D], divided by N - 1 as numpy.cov and published scores; 0 for one vector."""
        return self.scatter_DD / max(self.count - 1, 1)

    @property
    def enough(self) -> bool:
        """Whether there are at least SAMPLES_PER_DIMENSION vectors per dimension."""
        return self.count >= SAMPLES_PER_DIMENSION * self.mean_D.size


def distance(a: Statistics, b: Statistics) -> float:
    """Returns the Fréchet distance of two Gaussians, at least 0.

    Raises:
      ValueError: the dimensions differ, or features are not finite.
    """
    if a.mean_D.shape != b.mean_D.shape:
        raise ValueError(
            f"features of {a.mean_D.size} and of {b.mean_D.size} dimensions have no distance"
        )
    for side in (a, b):
        if not (np.isfinite(side.mean_D).all() and np.isfinite(side.scatter_DD).all()):
            raise ValueError("the features are not finite: the weights or the pixels are broken")
    between = float(np.sum((a.mean_D - b.mean_D) ** 2))
    shared = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False)
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * shared.sum()
    return max(between + float(spread), 0.0)


def _root(covariance_DD: np.ndarray) -> np.ndarray:
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    return (vectors_DD * np.sqrt(np.clip(values_D, 0.0, None))) @ vectors_DD.T


def save(path: str | os.PathLike, statistics: Statistics, key: str) -> None:
    """Writes an .npz with its `key`, atomically."""
    content = io.BytesIO()
    arrays = dataclasses.asdict(statistics)
    np.savez(content, key=np.array(key), **arrays)
    write_atomically(path, content.getvalue())


def load(path: str | os.PathLike, key: str) -> Statistics | None:
    """Returns the statistics of a file of `save`; None if it is missing or has another key.

    Raises:
      ValueError: the file is not one of `save`.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        return None
    try:
        with np.load(path) as arrays:
            if str(arrays["key"]) != key:
                return None
            return Statistics(int(arrays["count"]), arrays["mean_D"], arrays["scatter_DD"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} does not hold statistics of features: {in_words(error)}"
        ) from error
