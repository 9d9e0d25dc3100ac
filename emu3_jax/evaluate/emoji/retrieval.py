"""Is an image drawn from a caption nearest, among all validation images, to the right one?

If the items have a style, among those of its style.

The feature space was chosen on real images only, before any model was evaluated. An image is
resized to 64x64, blurred with a Gaussian of 2 pixels, averaged to 16x16 RGB, and compared by
Euclidean distance. The space depends on no model and no tokenizer, so figures of different models
are comparable. Of the spaces tried (8x8 to 64x64 pixels, with and without blur, RGB and OKLab,
Euclidean and cosine, minimum over shifts) it ranked the right image first most often when the
validation images were moved by 1 to 4 pixels, scaled to 90 %, blurred, tinted or stored as JPEG at
quality 5 to 10; several others were within a point or two. It separates tones of skin, which a
space without colour would not.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from emu3_jax.evaluate import items, language_use
from emu3_jax.evaluate.evaluator import Result, Subject, Table
from emu3_jax.evaluate.vision.reconstruction import reconstruct
from emu3_jax.figures.contact_sheet import contact_sheet, tiled
from emu3_jax.generate import modalities

SIDE, CELLS, BLUR = 64, 16, 2.0
RECALLS = (1, 5, 10)
SHEET_COLUMNS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiRetrieval(language_use.ImageEvaluator):
    """Recall at 1, 5, 10 and median rank of drawn images among all validation images of a style.

    The ceiling is the result for the real images after the vision tokenizer, which a language model
    that predicts every code correctly would reach. Chance at k is k / N, with N the images of the
    style.

    Attributes:
      splits: splits whose captions are drawn; their images together are the gallery.
      sampling: how to draw images, with the seed.
      candidates: images drawn for each one that is kept; see `generate.modalities.Options`.
      shown: pairs on the sheet of real images above drawn ones.
    """

    name: str = "emoji_retrieval"
    splits: tuple[str, ...] = ("validation", "validation_combination")
    sampling: language_use.DrawingSampling = language_use.DrawingSampling()
    candidates: int = 1
    shown: int = 32

    def __post_init__(self):
        super().__post_init__()
        modalities.check_candidates(self.candidates, self.sampling)
        self.at_least(shown=1)

    def run(self, subject: Subject) -> Result:
        """Draws an image for every caption and ranks the real images by distance to it."""
        data = self.use("data", pathlib.Path)
        reader = items.Reader(self.tokenizer[0].config, subject.language_model.media)
        gallery, split_of = [], []
        for split in self.splits:
            chosen = reader.read_images(data, split, self.limit)
            gallery += chosen
            split_of += [split] * len(chosen)
        gallery_ND = features([item.pixels for item in gallery])
        options = modalities.Options(
            sampling=self.sampling,
            candidates=self.candidates,
            batch_size=self.batch_size,
            progress=subject.progress.line,
        )
        drawn = language_use.draw(subject.language_model, self.tokenizer, gallery, options)
        styles = [item.attributes.get("style", "") for item in gallery]
        ranks = ranks_of_right(features(drawn), gallery_ND, styles)
        _, rebuilt, _ = reconstruct(self.tokenizer, gallery, self.batch_size, subject.progress)
        ceiling = ranks_of_right(features(rebuilt), gallery_ND, styles)
        metrics = recall_metrics(ranks)
        for split in self.splits:
            metrics |= recall_metrics(ranks[np.array(split_of) == split], f"_{split}")
        metrics |= recall_metrics(ceiling, "_ceiling")
        metrics |= chance(styles)
        metrics |= {"gallery": len(gallery)}
        metrics |= reader.metrics
        rows = zip(gallery, split_of, ranks, ceiling, strict=True)
        table = Table(
            ("id", "split", "caption", "rank", "rank_ceiling"),
            tuple((item.key, split, item.text, int(r), int(c)) for item, split, r, c in rows),
        )
        sheet = {"drawn": self._sheet(gallery, drawn)}
        return Result(metrics, {"ranks": table}, sheet, notes=reader.notes)

    def _sheet(self, gallery, drawn) -> np.ndarray:
        chosen = np.linspace(0, len(gallery) - 1, min(self.shown, len(gallery))).astype(int)
        real = [gallery[i].pixels for i in chosen]
        return contact_sheet(tiled(SHEET_COLUMNS, real, [drawn[i] for i in chosen]))


def features(images: Sequence[np.ndarray]) -> np.ndarray:
    """Maps uint8 [H, W, 3] each → float64 [N, 768], values in [0, 1]; see the module docstring."""
    stack = np.stack([to_side(image) for image in images]).astype(np.float64) / 255.0
    shrink = _shrink_matrix()
    cells = np.einsum("yh,nhwc,xw->nyxc", shrink, stack, shrink, optimize=True)
    return cells.reshape(len(images), -1)


def ranks_of_right(
    query_ND: np.ndarray,
    gallery_ND: np.ndarray,
    groups: Sequence[str] = (),
    right: Sequence[int] | None = None,
) -> np.ndarray:
    """Returns int64 [N]: rank of each query's right gallery image; 1 is best, ties count as worse.

    Args:
      query_ND: features of N queries.
      gallery_ND: features of the gallery.
      groups: one for each gallery image: only images of the right one's group count.
      right: for each query, the position of its right image; None if it is the query's own.
    """
    right = np.arange(len(query_ND)) if right is None else np.array(right)
    distance_NG = (
        np.sum(query_ND**2, axis=1)[:, None]
        + np.sum(gallery_ND**2, axis=1)[None]
        - 2.0 * query_ND @ gallery_ND.T
    )
    # The expansion above has rounding errors of 1e-12; equal images must tie.
    nearer_NG = distance_NG <= distance_NG[np.arange(len(right)), right][:, None] + 1e-9
    if len(groups):
        nearer_NG &= np.array(groups)[right][:, None] == np.array(groups)
    return np.sum(nearer_NG, axis=1)


def chance(groups: Sequence[str]) -> dict[str, float]:
    """Returns the metrics of `recall_metrics` for drawn images that are anything."""
    sizes = np.array([list(groups).count(group) for group in groups])
    recalls = {f"recall_at_{k}_chance": 100.0 * float(np.mean(k / sizes)) for k in RECALLS}
    return recalls | {"median_rank_chance": float(np.median((sizes + 1) / 2))}


def recall_metrics(ranks: np.ndarray, suffix: str = "") -> dict[str, float]:
    """Returns recall at RECALLS in percent, and the median rank."""
    recalls = {f"recall_at_{k}{suffix}": 100.0 * float(np.mean(ranks <= k)) for k in RECALLS}
    return recalls | {f"median_rank{suffix}": float(np.median(ranks))}


def to_side(image: np.ndarray) -> np.ndarray:
    """Resizes uint8 [H, W, 3] → uint8 [SIDE, SIDE, 3]."""
    if image.shape[:2] == (SIDE, SIDE):
        return image
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))


def _shrink_matrix() -> np.ndarray:
    """Returns the matrix, float64 [CELLS, SIDE], that blurs an axis and averages it over cells.

    Edges are repeated.
    """
    blur = np.zeros((SIDE, SIDE))
    for offset in range(-SIDE, SIDE + 1):
        weight = np.exp(-0.5 * (offset / BLUR) ** 2)
        sources = np.clip(np.arange(SIDE) + offset, 0, SIDE - 1)
        np.add.at(blur, (np.arange(SIDE), sources), weight)
    blur /= blur.sum(axis=1, keepdims=True)
    return blur.reshape(CELLS, SIDE // CELLS, SIDE).mean(axis=1)
