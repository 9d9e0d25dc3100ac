"""Published figures of other tokenizers, for comparison with ours."""

import dataclasses
from collections.abc import Iterable

from emu3_jax.evaluate.evaluator import Table

CLIPS = "clips: 3,172 of Pexels, 8 frames at 12 FPS"
IMAGENET = "stills: ImageNet"
EMU3 = "Emu3 paper, table 2"
MOVQGAN = "SBER-MoVQGAN model card"


@dataclasses.dataclass(frozen=True)
class Row:
    """One reported measurement; None for what was not reported.

    Attributes:
      tokenizer: name, with the factors of compression (time x height x width).
      data: what was reconstructed.
      size: height x width in pixels.
      psnr: dB, higher is better.
      ssim: at most 1, higher is better.
      lpips: lower is better. Published figures use AlexNet; ours use VGG16, which gives higher or
        lower values depending on the image, so compare ours only with ours.
      rfid: lower is better.
      source: where it was published.
    """

    tokenizer: str
    data: str
    size: str
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    rfid: float | None = None
    source: str = ""


# Emu3 published no figures of stills and no Fréchet distance.
PUBLISHED = (
    Row("Emu3, 4x8x8", CLIPS, "128x128", 21.71, 0.630, 0.099, source=EMU3),
    Row("Emu3, 4x8x8", CLIPS, "256x256", 21.59, 0.622, 0.109, source=EMU3),
    Row("Emu3, 4x8x8", CLIPS, "512x512", 22.69, 0.690, 0.112, source=EMU3),
    Row("Emu3, 4x8x8", CLIPS, "720x720", 24.30, 0.771, 0.110, source=EMU3),
    Row("MoVQGAN 67M, 8x8", IMAGENET, "256x256", 26.449, 0.725, rfid=0.965, source=MOVQGAN),
    Row("MoVQGAN 102M, 8x8", IMAGENET, "256x256", 26.889, 0.737, rfid=0.776, source=MOVQGAN),
    Row("MoVQGAN 270M, 8x8", IMAGENET, "256x256", 27.037, 0.741, rfid=0.686, source=MOVQGAN),
    Row("MoVQGAN 270M, 8x8", "stills: MS-COCO", "", 22.77, 0.63, 0.08,
        source="Lumina-mGPT 2.0 (second-hand)"),
    Row("Emu3.5 IBQ, 16x16", "stills", "", 23.71, rfid=0.42, source="Emu3.5, second-hand"),
)  # fmt: skip

COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def beside(ours: Iterable[Row]) -> Table:
    """Returns a table of COLUMNS with our rows above the published ones."""
    return Table(COLUMNS, tuple(dataclasses.astuple(row) for row in (*ours, *PUBLISHED)))


def markdown(table: Table) -> str:
    """Returns a table of `beside` as Markdown; None becomes an empty cell."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(
        f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |" for row in rows
    )
