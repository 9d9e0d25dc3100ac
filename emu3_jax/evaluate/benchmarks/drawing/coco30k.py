"""MSCOCO-30k: captions of val2014, for FID and CLIP scores.

There is no one list: papers draw their own 30,000 captions. A list here is a file with the header
"Prompt" and a caption a line, as LlamaGen's evaluations/t2i/coco_captions.csv is (in spite of its
name commas and quotes belong to the captions). One image a caption in images/<index>.png. Figures
depend on the list, on its length (5,000 images give an FID about 15 higher), and on how images are
resized; none of them is a scorer's file.
"""

import csv
import pathlib

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.drawing.drawing import (
    DrawingBenchmark,
    Prompt,
    check_prompts,
    given,
)
from emu3_jax.evaluate.benchmarks.drawing.partiprompts import PARTIPROMPTS

FILE = "coco_captions.csv"
COLUMN = "Prompt"


def read(data: pathlib.Path | None, version: str = "") -> list[Prompt]:
    """The captions of a list, or of coco_captions.csv in a folder."""
    file = given(data, f"a list of captions such as {FILE}")
    file = file / FILE if file.is_dir() else file
    rows = reading.tsv(file, COLUMN, quoting=csv.QUOTE_NONE)
    prompts = [Prompt(f"{index:05d}", row[COLUMN], 1) for index, (_, row) in enumerate(rows)]
    check_prompts(prompts, file)
    return prompts


COCO30K = DrawingBenchmark(read, PARTIPROMPTS.path, PARTIPROMPTS.finish)
