"""PartiPrompts: 1,632 prompts of twelve categories; arXiv 2206.10789, google-research/parti.

Released: PartiPrompts.tsv with the columns Prompt, Category, Challenge and Note (shipped,
Apache-2.0). There is no scorer: people compare the images of two models. One image a prompt in
images/<index>.png.
"""

import csv
import functools
import pathlib

from emu3_jax import shipped
from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.drawing.drawing import (
    DrawingBenchmark,
    Prompt,
    check_folder,
    check_prompts,
)

FILE = "PartiPrompts.tsv"
SHIPPED = shipped.ASSETS / "benchmarks" / "partiprompts" / FILE


def read(data: pathlib.Path | None, version: str = "") -> list[Prompt]:
    """The prompts of a folder, of a file, or of the shipped list. Quotes are part of a prompt."""
    file = SHIPPED if data is None else data / FILE if data.is_dir() else data
    rows = reading.tsv(file, "Prompt", "Category", "Challenge", quoting=csv.QUOTE_NONE)
    prompts = []
    for index, (_, row) in enumerate(rows):
        attributes = {"category": row["Category"], "challenge": row["Challenge"]}
        prompts.append(Prompt(f"{index:05d}", row["Prompt"], 1, attributes=attributes))
    check_prompts(prompts, file)
    return prompts


def path(prompt: Prompt, sample: int) -> str:
    """images/<index>.png; with more samples than one images/<index>_<sample>.png."""
    name = prompt.id if prompt.samples == 1 else f"{prompt.id}_{sample}"
    return f"images/{name}.png"


PARTIPROMPTS = DrawingBenchmark(read, path, functools.partial(check_folder, path=path))
