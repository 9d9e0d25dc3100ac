r"""PSNR of the held-out stills of each style, through one vision tokenizer or several.

  PYTHONPATH=. python benchmarks/data/reconstruction_by_style.py --data=runs/styles/corpus \
      styles nano

A line for each style, with the number of stills and, for each tokenizer, the mean PSNR in dB.
"""

import argparse
import collections
import pathlib

import numpy as np

import emu3_jax
from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.vision import psnr_ssim

BATCH = 32


def main() -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizers", nargs="+", help="names or directories")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="corpus of several styles")
    parser.add_argument("--split", default="validation", help="(%(default)s)")
    given = parser.parse_args()
    stills = collections.defaultdict(list)
    for item in items.Reader().read_images(given.data, given.split):
        stills[item.attributes["style"]].append(item.pixels)
    stills["all"] = [pixels for images in list(stills.values()) for pixels in images]
    loaded = [emu3_jax.load_vision_tokenizer(name) for name in given.tokenizers]
    print(f"| style | stills | {' | '.join(given.tokenizers)} |")
    print(f"|{'---|' * (2 + len(loaded))}")
    for style, images in stills.items():
        means = []
        for vision in loaded:
            rebuilt = vision_codec.decode(vision, vision_codec.encode(vision, images, BATCH), BATCH)
            found = [psnr_ssim.psnr(a, b) for a, b in zip(images, rebuilt, strict=True)]
            means.append(f"{np.mean(found):.2f}")
        print(f"| {style} | {len(images):,} | {' | '.join(means)} |", flush=True)


if __name__ == "__main__":
    main()
