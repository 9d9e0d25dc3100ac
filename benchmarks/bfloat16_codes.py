"""How many codes change when a vision tokenizer encodes in bfloat16 instead of float32.

  PYTHONPATH=. python benchmarks/bfloat16_codes.py --data=runs/emoji \\
    [--vision_tokenizer=assets/vision_tokenizer_nano] [--limit=128]

Encodes the validation stills in both types. A changed code is not an error in itself: usually it is
the second-nearest entry. The PSNR of both reconstructions, decoded in float32, is therefore
printed.
"""

import argparse
import dataclasses

import numpy as np

from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.vision import psnr_ssim
from emu3_jax.models.vision.tokenizer import VisionTokenizer
from emu3_jax.train import weights


def main() -> None:
    """Prints the share of changed codes and both PSNRs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vision_tokenizer", default="assets/vision_tokenizer_nano")
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=128)
    options = parser.parse_args()
    module, variables = weights.load_vision_tokenizer(options.vision_tokenizer)
    reader = items.Reader(module.config)
    images = [i.pixels for i in reader.read_images(options.data, "validation", options.limit)]
    print(f"{len(images)} images", *reader.notes, sep="\n")
    codes, quality = {}, {}
    for dtype in ("float32", "bfloat16"):
        encoder = VisionTokenizer(dataclasses.replace(module.config, dtype=dtype))
        codes[dtype] = vision_codec.encode((encoder, variables), images, 32)
        drawn = vision_codec.decode((module, variables), codes[dtype], 32)
        pairs = zip(images, drawn, strict=True)
        quality[dtype] = np.mean([psnr_ssim.psnr(a, b).mean() for a, b in pairs])
    changed = np.mean(np.stack(codes["float32"]) != np.stack(codes["bfloat16"]))
    print(f"{100 * changed:.1f} % of the codes of {len(images)} images change")
    print(", ".join(f"{dtype} {value:.2f} dB" for dtype, value in quality.items()))


if __name__ == "__main__":
    main()
