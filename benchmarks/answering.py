"""Answering a benchmark of questions about images of many sizes: batches against one at a time.

  pip install -r requirements-test.txt            # photographs come from scikit-image
  PYTHONPATH=. python benchmarks/answering.py [--questions=256 --batch_size=32 --model=nano]

Writes photographs in random sizes and yes-or-no questions about them into a temporary folder, and
runs the evaluator `answers` on them twice for each batch size: the first time programs are
compiled. Prints the ratio of the second times, whether all answers are equal, and the share of the
time that is not spent in the vision tokenizer and the language model. Times are of the wall clock:
batches use all cores, single images do not. --max_new is the longest answer.
"""

import argparse
import json
import logging
import pathlib
import random
import tempfile
import time

import numpy as np
from PIL import Image

from emu3_jax import shipped
from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate.benchmarks import asking
from emu3_jax.evaluate.benchmarks.answers import Answers
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.train import weights

try:
    import skimage.data
except ImportError as error:
    raise SystemExit(
        f"{error}; this benchmark needs: pip install -r requirements-test.txt"
    ) from error

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


def main() -> None:
    """Prints seconds, the ratio and the share of the harness."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--template", default="llava")
    parser.add_argument("--min_side", type=int, default=32)
    parser.add_argument("--max_side", type=int, default=88)
    parser.add_argument("--max_new", type=int, default=32)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    bundle, _ = weights.load_language_model(shipped.language_model(options.model))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_questions(pathlib.Path(folder), options)
        for batch_size in (options.batch_size, 1):
            evaluator = Answers(
                benchmark="own_questions",
                data=str(data),
                template=options.template,
                vision_tokenizer=str(shipped.vision_tokenizer("nano")),
                batch_size=batch_size,
                max_new=options.max_new,
            )
            for turn in ("compiling", "again"):
                output = pathlib.Path(folder) / f"{batch_size}_{turn}"
                found[batch_size] = run(evaluator, bundle, output)
                seconds, inside, answers = found[batch_size]
                print(
                    f"batches of {batch_size}, {turn}: {seconds:.1f} s, of which "
                    f"{100 * (1 - inside / seconds):.1f} % outside of the models"
                )
    together, alone = found[options.batch_size], found[1]
    print(f"one at a time takes {alone[0] / together[0]:.2f} times the time of batches")
    different = sum(a != b for a, b in zip(together[2], alone[2], strict=True))
    print(f"answers that differ: {different} of {options.questions}")


def write_questions(folder: pathlib.Path, options) -> pathlib.Path:
    """Writes the images and the question file, which is returned."""
    rng = random.Random(0)
    rows = []
    for number in range(options.questions):
        image = Image.fromarray(getattr(skimage.data, rng.choice(PHOTOGRAPHS))())
        size = tuple(rng.randint(options.min_side, options.max_side) for _ in range(2))
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        media.write_png(folder / f"{number}.png", pixels)
        rows.append(
            {"question_id": number, "image": f"{number}.png", "answer": rng.choice(("yes", "no")),
             "text": f"Is there a {rng.choice(('cat', 'cup', 'rocket', 'person'))}?"}
        )  # fmt: skip
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(evaluator: Answers, bundle, output: pathlib.Path) -> tuple[float, float, list[str]]:
    """(seconds, those inside of the models, answers)."""
    inside = 0.0

    def timed(function):
        def call(*args, **settings):
            nonlocal inside
            start = time.perf_counter()
            try:
                return function(*args, **settings)
            finally:
                inside += time.perf_counter() - start

        return call

    models = ((vision_codec, "encode"), (asking, "answer"))
    originals = [getattr(module, name) for module, name in models]
    for (module, name), function in zip(models, originals, strict=True):
        setattr(module, name, timed(function))
    try:
        start = time.perf_counter()
        evaluator.run(Subject("", folder=output, language_model=bundle))
        seconds = time.perf_counter() - start
    finally:
        for (module, name), function in zip(models, originals, strict=True):
            setattr(module, name, function)
    lines = (output / "own_questions_items.jsonl").read_text(encoding="utf-8").splitlines()
    return seconds, inside, [json.loads(line)["answer"] for line in lines]


if __name__ == "__main__":
    main()
