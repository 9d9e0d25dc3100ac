"""Decoding and resizing in `tokenize`, per core, compared with Pillow alone.

  pip install -r requirements-test.txt            # photographs come from scikit-image
  PYTHONPATH=. python benchmarks/data/tokenize_throughput.py

Both sides read the same files (JPEG of three sizes, PNG, WebP), decode them and resize them by the
released rule; equality of the pixels is checked first. "prepare" is the work of one decoding thread
on one item; "a shard" is all work before the vision tokenizer: reading tars, passing items to the
thread and receiving them in order. Repeats are interleaved, and time is CPU time of the process
over all its threads, so that other work on the machine has little effect. Prints images per CPU
second (medians) and the median of the ratios.
"""

import argparse
import io
import pathlib
import statistics
import tarfile
import tempfile
import time
import types

import numpy as np
import PIL
from PIL import Image

from emu3_jax.data.media import PixelLimits, smart_resize
from emu3_jax.data.sources import RawItem, open_source
from emu3_jax.text import ByteTokenizer
from emu3_jax.tokenize.prepare import MediaRules, prepare
from emu3_jax.tokenize.shard import ShardMaker
from emu3_jax.tokenize.tokenize_config import TokenizeConfig

try:
    import skimage.data
except ImportError as error:
    raise SystemExit(
        f"{error}; this benchmark needs: pip install -r requirements-test.txt"
    ) from error

LIMITS = PixelLimits()  # the released ones
KINDS = (  # typical of web corpora: (width, height), format
    ((640, 480), "JPEG"),
    ((1024, 768), "JPEG"),
    ((1920, 1080), "JPEG"),
    ((800, 600), "PNG"),
    ((800, 600), "WEBP"),
)


def make_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """Each photograph in each kind, as files and as one tar, 0.tar."""
    paths = []
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        photograph = Image.fromarray(getattr(skimage.data, name)())
        for (width, height), kind in KINDS:
            path = folder / f"{name}-{width}.{kind.lower()}"
            image = photograph.resize((width, height), Image.Resampling.LANCZOS)
            image.save(path, kind, **({} if kind == "PNG" else {"quality": 90}))
            paths.append(path)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for path in paths:
            tar.add(path, f"{path.stem}-{path.suffix[1:]}{path.suffix}")
            caption = b"a photograph"
            member = tarfile.TarInfo(f"{path.stem}-{path.suffix[1:]}.txt")
            member.size = len(caption)
            tar.addfile(member, io.BytesIO(caption))
    return paths


def with_pillow(path: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    """The minimum of work: uint8 [H, W, 3] of the size (height, width)."""
    height, width = size
    image = Image.open(path).convert("RGB")
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def main() -> None:
    """Makes the images, checks that both sides agree, measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        paths = make_images(folder)
        sizes = {path: smart_resize(*Image.open(path).size[::-1], LIMITS) for path in paths}
        items = [RawItem(path.stem, "a photograph", image=str(path)) for path in paths]
        rules = MediaRules(LIMITS, temporal_factor=4)
        for path, item in zip(paths, items, strict=True):
            ours = prepare(item, rules).media[0].pixels
            np.testing.assert_array_equal(ours, with_pillow(path, sizes[path]))
        config = TokenizeConfig("unused", {"s": ["webdataset:0.tar"]}, name, decode_threads=1)
        encoder = types.SimpleNamespace(spatial_factor=8, temporal_factor=4)
        source = open_source("webdataset:0.tar", name)
        grammar = types.SimpleNamespace(tokenizer=ByteTokenizer())  # not used before the encoder
        maker = ShardMaker(config, "s", [source], encoder, grammar)
        sides = {
            "Pillow alone": lambda: [with_pillow(path, sizes[path]) for path in paths],
            "prepare": lambda: [prepare(item, rules) for item in items],
            "a shard": lambda: list(maker.decoded(source.items(0))),
        }
        seconds = {side: [] for side in sides}
        for _ in range(arguments.repeats):
            for side, work in sides.items():
                start = time.process_time()
                assert len(work()) == len(paths)
                seconds[side].append(time.process_time() - start)
    print(f"Pillow {PIL.__version__}, {len(paths)} images, {arguments.repeats} repeats")
    for side, spent in seconds.items():
        pairs = zip(seconds["Pillow alone"], spent, strict=True)
        ratio = statistics.median(alone / ours for alone, ours in pairs)
        rate = len(paths) / statistics.median(spent)
        print(f"{side:13s} {rate:7.1f} images/CPU-s   {ratio:.2f} x")


if __name__ == "__main__":
    main()
