"""Figures of drawn images that need no detector: CLIP-T, CLIP-I, FID, and preference scores.

  <scorer>         mean over all images; of the scorer "clip" this is CLIP-T, a cosine (not x 100)
  <scorer>_image   CLIP-I: mean cosine with the real image of the same prompt
  fid              Fréchet distance to all real images, features of FID's Inception v3; every image
                   is resized to 299 x 299 as a whole, with antialiasing and without a crop
Each is compared only with figures of the same number of images; FID falls with it.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from emu3_jax.data import media
from emu3_jax.evaluate.benchmarks.drawing.drawing import Prompt
from emu3_jax.evaluate.vision import frechet
from emu3_jax.evaluate.vision.feature_distance import Network, doubts, features_of
from emu3_jax.models.features import inception
from emu3_jax.scorers.clip_scorer import ClipScorer
from emu3_jax.scorers.scorer import Scorer, score_all

# Images that are held at once.
HELD = 512


def real_images(folder: str) -> dict[str, pathlib.Path]:
    """File name without its ending → file, of the images in a folder; ValueError if it has none."""
    endings = (".png", ".jpg", ".jpeg", ".webp")
    files = sorted(p for p in pathlib.Path(folder).glob("*") if p.suffix.lower() in endings)
    if not files:
        raise ValueError(f"{folder} holds no image ({', '.join(endings)})")
    found: dict[str, pathlib.Path] = {}
    for file in files:
        if file.stem in found:
            raise ValueError(f"{folder} holds both {found[file.stem].name} and {file.name}")
        found[file.stem] = file
    return found


@dataclasses.dataclass(frozen=True)
class DrawnImages:
    """What is measured on drawn images.

    Attributes:
      scorers: of captions and images.
      reference: name without ending → real image.
      inception: weights of FID's Inception v3; None for no FID.
      batch_size: images at a time.
    """

    scorers: Sequence[Scorer]
    reference: Mapping[str, pathlib.Path]
    inception: Any
    batch_size: int

    def of(self, drawn: Mapping[pathlib.Path, Prompt]) -> tuple[dict[str, float], list[str]]:
        """(figures, notes) of image files and the prompts that they were drawn after.

        Raises:
          ValueError: a scorer cannot score an image; names both.
        """
        figures: dict[str, float] = {}
        notes: list[str] = []
        for scorer in self.scorers:
            figures |= self._means(scorer, drawn)
        if self.inception is not None:
            network = Network("fid", self.inception, inception.features, inception.SIDE)
            sides = [
                self._statistics(network, files)
                for files in (list(self.reference.values()), list(drawn))
            ]
            figures["fid"] = frechet.distance(*sides)
            notes.append(f"fid: {sides[1].count} drawn and {sides[0].count} real images")
            notes += doubts("fid", min(sides, key=lambda side: side.count))
        return figures, notes

    def _means(self, scorer: Scorer, drawn: Mapping[pathlib.Path, Prompt]) -> dict[str, float]:
        found: dict[str, list[float]] = {scorer.name: [], f"{scorer.name}_image": []}
        pairs = list(drawn.items())
        for part in _parts(pairs):
            images = [media.read_image(file) for file, _ in part]
            scores = score_all(scorer, [prompt.text for _, prompt in part], images)
            if scores.reasons:
                index, reason = next(iter(scores.reasons.items()))
                raise ValueError(f"{part[index][0]} cannot be scored: {reason}")
            found[scorer.name] += scores.values_N.tolist()
            if isinstance(scorer, ClipScorer):
                found[f"{scorer.name}_image"] += self._to_real(scorer, part, images)
        return {name: float(np.mean(values)) for name, values in found.items() if values}

    def _to_real(self, scorer: ClipScorer, part, images: Sequence[np.ndarray]) -> list[float]:
        """Cosines of drawn images with the real ones of their prompts, where there are such."""
        chosen = [i for i, (_, prompt) in enumerate(part) if prompt.id in self.reference]
        if not chosen:
            return []
        real = [media.read_image(self.reference[part[i][1].id]) for i in chosen]
        sides = [scorer.image_embeddings(side) for side in ([images[i] for i in chosen], real)]
        a_ND, b_ND = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
        return np.sum(a_ND * b_ND, axis=1).tolist()

    def _statistics(self, network: Network, files: Sequence[pathlib.Path]) -> frechet.Statistics:
        return frechet.Statistics.streamed(
            batch
            for part in _parts(files)
            for batch in features_of(
                network, [media.read_image(file) for file in part], self.batch_size, lambda n: None
            )
        )


def _parts(values: Sequence) -> Iterator[Sequence]:
    return (values[start : start + HELD] for start in range(0, len(values), HELD))
