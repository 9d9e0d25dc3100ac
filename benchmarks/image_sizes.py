"""Encoding a corpus of many image sizes, compared with as many pixels of one size, on one core.

  pip install -r requirements-test.txt            # photographs come from scikit-image
  PYTHONPATH=. python benchmarks/image_sizes.py [--images=1000 --sizes=300]

Photographs are resized to sizes as a web corpus has them (areas and ratios of sides vary by
log-normal laws, within --min_side² and --max_side² pixels) and encoded shard by shard, as in
`tokenize`. Both corpora have the same number of pixels. Time is CPU time of the process, which is
held on one core, so that other work on the machine has little effect. Each corpus is encoded twice:
the first time programs are compiled. The peer compiles a program for each size, and is measured on
--peer images; codes of these are compared.
"""

import argparse
import functools
import logging
import os
import random
import time

import jax
import numpy as np
from PIL import Image

from emu3_jax import compiling, shipped
from emu3_jax.data import media
from emu3_jax.data.codec.vision_encoder import VisionEncoder
from emu3_jax.train import weights

try:
    import skimage.data
except ImportError as error:
    raise SystemExit(
        f"{error}; this benchmark needs: pip install -r requirements-test.txt"
    ) from error

SHARD, ROWS = 512, 8  # defaults of tokenize


def main() -> None:
    """Prints CPU seconds of both corpora, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--sizes", type=int, default=300)
    parser.add_argument("--min_side", type=int, default=128)
    parser.add_argument("--max_side", type=int, default=256)
    parser.add_argument("--peer", type=int, default=20)
    parser.add_argument("--vision_tokenizer", default="nano")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    jax.config.update("jax_enable_compilation_cache", False)
    logging.disable(logging.INFO)
    tokenizer = weights.load_vision_tokenizer(shipped.vision_tokenizer(options.vision_tokenizer))
    factor = tokenizer[0].config.spatial_factor
    limits = media.PixelLimits(options.min_side**2, options.max_side**2, factor)
    sizes = corpus(options.images, options.sizes, limits)
    pixels = sum(height * width for height, width in sizes)
    side = round((pixels / len(sizes)) ** 0.5 / factor) * factor
    encoder = VisionEncoder(*tokenizer)
    print(f"{len(sizes)} images of {len(set(sizes))} sizes, {pixels / len(sizes):.0f} pixels each")
    spent, codes = {}, []
    for name, shapes in (("one size", [(side, side)] * len(sizes)), ("many sizes", sizes)):
        for turn in ("compiling", "again"):
            codes, seconds, programs = encode(encoder, shapes)
            spent[name, turn] = seconds / sum(h * w for h, w in shapes)
            print(f"{name}, {turn}: {seconds:.1f} s, {programs} programs compiled")
    for turn in ("again", "compiling"):
        ratio = spent["many sizes", turn] / spent["one size", turn]
        print(f"many sizes take {ratio:.2f} times the time of one size, {turn}")
    peer(tokenizer, sizes[: options.peer], codes)


def corpus(images: int, sizes: int, limits: media.PixelLimits) -> list[tuple[int, int]]:
    """(height, width) of each image: `sizes` of them, drawn with equal probability."""
    rng, found = random.Random(0), set()
    middle = (limits.min_pixels * limits.max_pixels) ** 0.5
    while len(found) < sizes:
        ratio, area = 2 ** rng.gauss(0, 0.5), middle * 2 ** rng.gauss(0, 0.7)
        height, width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        try:
            found.add(media.smart_resize(height, width, limits))
        except media.MediaError:
            continue
    distinct = sorted(found)
    shapes = distinct + [rng.choice(distinct) for _ in range(images - sizes)]
    rng.shuffle(shapes)
    return shapes[:images]


def photograph(number: int, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]."""
    names = ("astronaut", "coffee", "chelsea", "rocket")
    image = Image.fromarray(getattr(skimage.data, names[number % len(names)])())
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def encode(encoder: VisionEncoder, shapes) -> tuple[list, float, int]:
    """(codes, CPU seconds, programs compiled)."""
    codes: list = [None] * len(shapes)
    images = [photograph(number, *shape) for number, shape in enumerate(shapes)]
    start, programs = time.process_time(), compiling.programs()
    for first in range(0, len(images), SHARD):
        batcher = encoder.batcher(ROWS, 1)
        for number in range(first, min(first + SHARD, len(images))):
            batcher.add(images[number], functools.partial(codes.__setitem__, number))
        batcher.flush()
    return codes, time.process_time() - start, compiling.programs() - programs


def peer(tokenizer, shapes, codes) -> None:
    """One program for each size: prints its speed, and compares codes with `codes`."""
    encode_alone = jax.jit(lambda v, x: tokenizer[0].apply(v, x, method="encode"))
    start, different, total = time.process_time(), 0, 0
    for number, shape in enumerate(shapes):
        alone = encode_alone(tokenizer[1], media.to_model(photograph(number, *shape)[None]))
        different += int((np.asarray(alone)[0] != codes[number]).sum())
        total += codes[number].size
    seconds = time.process_time() - start
    print(f"a program for each size: {len(shapes)} images in {seconds:.1f} s, most of it compiling")
    print(f"codes that differ from those of the image alone: {different} of {total}")


if __name__ == "__main__":
    main()
