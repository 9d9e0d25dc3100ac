"""A judge that reads tone, person and activity from the pixels of an emoji.

Kernel ridge regression, one head per part, on fixed features that suit the part: colours for the
tone, outlines for the activity, both and pixels for the person. It learns from real images alone.
The features and the width of the kernel were chosen on the real held-out images of the emoji
corpus, before any drawn image was judged. What is left is calibrated at each learning, for each
part, on the images of a fifth of the bases (captions without their tone) of the training images,
which the others do not show: the strength of the ridge and the temperature of the probabilities, by
their likelihood. The heads then learn from all images.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from emu3_jax.evaluate.emoji.retrieval import features, to_side

HELD_OUT_SHARE = 0.2
# Of the Gaussian kernel: the mean squared distance of two images is 2 for each block of features.
WIDTH = 0.3
STRENGTHS = (1e-4, 1e-2, 1e-1, 1.0)
TEMPERATURES = tuple(np.geomspace(0.02, 2.0, 41).tolist())
LEVELS, CELL, DIRECTIONS = 8, 8, 8


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a judge reads of one part.

    Attributes:
      values: the most probable value of each image.
      probabilities: float64 [N], the probability of that value.
    """

    values: tuple[str, ...]
    probabilities: np.ndarray


def colours(images: Sequence[np.ndarray]) -> np.ndarray:
    """Maps uint8 [H, W, 3] each → float64 [N, LEVELS³]: roots of the shares of RGB colours.

    A pixel counts for the eight levels around it, by its nearness.
    """
    histograms = np.zeros((len(images), LEVELS**3))
    for image, histogram in zip(images, histograms, strict=True):
        levels_P3 = to_side(image).reshape(-1, 3) / 255.0 * (LEVELS - 1)
        low_P3 = np.minimum(levels_P3.astype(int), LEVELS - 2)
        above_P3 = levels_P3 - low_P3
        for corner in np.ndindex(2, 2, 2):
            weight_P = np.prod(np.where(corner, above_P3, 1.0 - above_P3), axis=1)
            index_P = (low_P3 + corner) @ (LEVELS**2, LEVELS, 1)
            histogram += np.bincount(index_P, weight_P, LEVELS**3)
        histogram /= len(levels_P3)
    return np.sqrt(histograms)


def outlines(images: Sequence[np.ndarray]) -> np.ndarray:
    """Maps uint8 [H, W, 3] each → float64 [N, 512]: roots of strengths of edges.

    By cell of 8x8 pixels and by direction, without the sign of the edge.
    """
    return np.concatenate([_outlines(image) for image in images])


# Part → blocks of its features.
FEATURES = {
    "tone": (colours,),
    "person": (features, outlines, colours),
    "activity": (outlines,),
}


class Judge:
    """Reads images."""

    def __init__(
        self,
        images: Sequence[np.ndarray],
        labels: Mapping[str, Sequence[str | None]],
        bases: Sequence[str],
        seed: int = 0,
    ):
        """Learns to read parts.

        Args:
          images: uint8 [H, W, 3] each.
          labels: part (a key of FEATURES) → value of each image; None where it is unknown.
          bases: images of one base are held out together while calibrating.
          seed: chooses the bases held out.

        Raises:
          ValueError: a part has fewer than two values, or there are too few bases to hold any out.
        """
        self._blocks = {}
        for block in dict.fromkeys(block for part in labels for block in FEATURES[part]):
            x_MD = block(images)
            # Each block then has variance 1 in all.
            scale = np.sqrt(max(x_MD.var(axis=0).sum(), 1e-12))
            self._blocks[block] = x_MD.mean(axis=0), scale
        self._heads = {}
        held_out = _held_out(bases, seed)
        x = self._features(images)
        for part, values in labels.items():
            known = np.array([value is not None for value in values])
            classes = sorted({value for value in values if value is not None})
            if len(classes) < 2:
                raise ValueError(
                    f"a judge cannot learn to tell the {part}: its images show {len(classes)} "
                    "different values of it, at least 2 are needed"
                )
            y_M = np.array([classes.index(value) for value in values if value is not None])
            self._heads[part] = _Head(x[part][known], y_M, classes, held_out[known])

    def read(self, images: Sequence[np.ndarray]) -> dict[str, Reading]:
        """Reads images, uint8 [H, W, 3] each → {part: reading}."""
        x = self._features(images)
        return {part: head.read(x[part]) for part, head in self._heads.items()}

    def _features(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        blocks = {
            block: (block(images) - mean) / scale for block, (mean, scale) in self._blocks.items()
        }
        return {
            part: np.concatenate([blocks[block] for block in chosen], axis=1)
            for part, chosen in FEATURES.items()
            if set(chosen) <= blocks.keys()
        }


class _Head:
    """Reads one part."""

    def __init__(self, x_MD: np.ndarray, y_M: np.ndarray, classes: Sequence[str], held_out_M):
        self.classes, self._x_MD = classes, x_MD
        kernel_MM = _kernel(x_MD, x_MD)
        fit_M = ~held_out_M
        # What only the held-out bases show cannot be learned from the others, nor calibrate.
        judged_M = held_out_M & np.isin(y_M, y_M[fit_M])
        best = (np.inf, STRENGTHS[-1], 1.0)
        for strength in STRENGTHS if judged_M.any() else ():
            weights, mean = _fit(kernel_MM[np.ix_(fit_M, fit_M)], y_M[fit_M], classes, strength)
            scores = kernel_MM[np.ix_(judged_M, fit_M)] @ weights + mean
            losses = [(_loss(scores / t, y_M[judged_M]), strength, t) for t in TEMPERATURES]
            best = min(best, *losses)
        _, strength, self._temperature = best
        self._weights, self._mean = _fit(kernel_MM, y_M, classes, strength)

    def read(self, x_ND: np.ndarray) -> Reading:
        scores_NC = _kernel(x_ND, self._x_MD) @ self._weights + self._mean
        p_NC = _softmax(scores_NC / self._temperature)
        values = tuple(self.classes[i] for i in np.argmax(p_NC, axis=1))
        return Reading(values, np.max(p_NC, axis=1))


def _held_out(bases: Sequence[str], seed: int) -> np.ndarray:
    """Bool [M]: the images to calibrate on."""
    names = sorted(set(bases))
    count = round(HELD_OUT_SHARE * len(names))
    if not count:
        raise ValueError(
            f"a judge needs images of at least 3 bases to learn from, there are {len(names)}"
        )
    chosen = np.random.default_rng(seed).permutation(len(names))[:count]
    return np.isin(np.array(bases), [names[i] for i in chosen])


def _fit(kernel_MM, y_M, classes: Sequence[str], strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns (weights [M, C], mean [C]) of the regression on one-hot targets."""
    targets_MC = np.eye(len(classes))[y_M]
    mean_C = targets_MC.mean(axis=0)
    ridge = kernel_MM + strength * np.eye(len(y_M))
    return np.linalg.solve(ridge, targets_MC - mean_C), mean_C


def _kernel(x_ND: np.ndarray, known_MD: np.ndarray) -> np.ndarray:
    distance_NM = (
        np.sum(x_ND**2, axis=1)[:, None]
        + np.sum(known_MD**2, axis=1)[None]
        - 2.0 * x_ND @ known_MD.T
    )
    return np.exp(-WIDTH * distance_NM)


def _outlines(image: np.ndarray) -> np.ndarray:
    grey_YX = to_side(image).mean(axis=-1) / 255.0
    down, across = np.zeros_like(grey_YX), np.zeros_like(grey_YX)
    down[1:-1], across[:, 1:-1] = grey_YX[2:] - grey_YX[:-2], grey_YX[:, 2:] - grey_YX[:, :-2]
    strength_YX = np.hypot(down, across)
    # An edge counts for the two directions around it, by its nearness.
    direction = np.arctan2(down, across) % np.pi / np.pi * DIRECTIONS
    low = np.floor(direction).astype(int)
    found = np.zeros((*grey_YX.shape, DIRECTIONS))
    for index, weight in ((low, 1.0 - (direction - low)), (low + 1, direction - low)):
        values = (strength_YX * weight)[..., None]
        np.put_along_axis(found, index[..., None] % DIRECTIONS, values, axis=-1)
    cells = len(grey_YX) // CELL
    found = found.reshape(cells, CELL, cells, CELL, DIRECTIONS).mean(axis=(1, 3))
    return np.sqrt(found).reshape(1, -1)


def _softmax(scores_NC: np.ndarray) -> np.ndarray:
    p_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    return p_NC / p_NC.sum(axis=1, keepdims=True)


def _loss(scores_NC: np.ndarray, y_N: np.ndarray) -> float:
    return -float(np.mean(np.log(_softmax(scores_NC)[np.arange(len(y_N)), y_N] + 1e-300)))
