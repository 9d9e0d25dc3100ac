"""What the model makes of an image: codes, what they keep of it, tokens, and their likelihood."""

from typing import NamedTuple

import numpy as np

from emu3_jax.demo.exhibit import Exhibit
from emu3_jax.evaluate.vision.psnr_ssim import SSIM_RADIUS, psnr, ssim
from emu3_jax.generate import scoring
from emu3_jax.report.dataset_page import token_boxes
from emu3_jax.sequence import Document, Image, Text, TokenClass


class Look(NamedTuple):
    """An image from inside.

    Attributes:
      original, rebuilt: uint8 [H, W, 3], as the tokenizer takes it, and what its codes keep.
      error: float64 [H, W], the mean absolute error of the channels, 0 to 255.
      psnr: in dB.
      ssim: -1 to 1; None for an image smaller than the window.
      codes: int32 [h, w].
      tokens: (text, index of its colour) of the token stream, long runs of codes shortened.
      counts: tokens by the name of their class.
      nats: float32 [h, w], -log p of each code given the caption and the codes before it; None if
        the model's context has no room.
      why_not: a sentence if there are no nats.
    """

    original: np.ndarray
    rebuilt: np.ndarray
    error: np.ndarray
    psnr: float
    ssim: float | None
    codes: np.ndarray
    tokens: list[tuple[str, int]]
    counts: dict[str, int]
    nats: np.ndarray | None
    why_not: str = ""


def look(exhibit: Exhibit, pixels: np.ndarray, caption: str = "") -> Look:
    """Looks at uint8 [H, W, 3] from `Exhibit.read`, as if it was drawn after a caption."""
    codes = exhibit.encode(pixels)
    rebuilt = exhibit.decode(codes)
    error = np.abs(pixels.astype(np.float64) - rebuilt).mean(axis=-1)
    is_large = min(pixels.shape[:2]) > 2 * SSIM_RADIUS
    text = (Text(caption.strip()),) if caption.strip() else ()
    document = Document((*text, Image(codes)))
    tokens, counts = token_boxes(document, exhibit.bundle.grammar)
    nats, why_not = None, ""
    try:
        nats = exhibit.serving.call(_code_nats, exhibit, document)
    except ValueError as error_:
        why_not = f"No likelihoods: {error_}."
    return Look(
        pixels,
        rebuilt,
        error,
        float(psnr(pixels, rebuilt)),
        float(ssim(pixels, rebuilt)) if is_large else None,
        codes,
        tokens,
        counts,
        nats,
        why_not,
    )


def _code_nats(exhibit: Exhibit, document: Document) -> np.ndarray:
    """-log p of each code of the image of a document, float32 [h, w]."""
    built = exhibit.bundle.grammar.build(document)
    nats = scoring.token_nats(exhibit.bundle, built)
    return nats[built.classes[1:] == TokenClass.IMAGE].reshape(document.segments[-1].codes.shape)
