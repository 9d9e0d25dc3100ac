"""Made-up questions about drawn images, for models that need not know the answers."""

import json
import pathlib

import numpy as np

from emu3_jax.data import media

SIZES = [(64, 64), (80, 48), (40, 300), (64, 96)]  # the third is longer than models take


def write(folder: pathlib.Path) -> list[dict]:
    """Writes images and questions.jsonl; returns the rows {image, question, options, answer}."""
    rng = np.random.default_rng(0)
    rows = []
    for number, (height, width) in enumerate(SIZES):
        pixels = np.full((height, width, 3), 40 * number, np.uint8)
        pixels[: height // 2] = rng.integers(0, 256, 3)
        file = folder / f"{number}.png"
        media.write_png(file, pixels)
        rows.append(
            {
                "image": str(file),
                "question": f"What is in image {number}? Answer in a few words.",
                "options": ["a red apple", "a cat", "two blue hearts"],
                "answer": number % 3,
            }
        )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "questions.jsonl").write_text(text)
    return rows
