"""How many held-out images of a corpus have a near twin among its training images.

  PYTHONPATH=. python benchmarks/data/near_twins.py --data=runs/emoji [--decibel=30]

A near twin is a training image from which the held-out one differs by a PSNR of at least so many
decibels, pixel by pixel: often the same drawing with another word, as "man guard" and "guard".
Images of other sizes than the first are not compared.
"""

import argparse

import numpy as np

from emu3_jax.evaluate import items


def nearest_psnr(held_out_ND: np.ndarray, train_MD: np.ndarray) -> np.ndarray:
    """PSNR in dB of each held-out image to the nearest training image, float64 [N].

    Both hold uint8 pixels, flat, as floats; equal images have infinity.
    """
    distance_NM = -2.0 * held_out_ND @ train_MD.T
    distance_NM += np.square(held_out_ND).sum(1)[:, None] + np.square(train_MD).sum(1)
    mean_square = np.maximum(distance_NM.min(axis=1), 0.0) / train_MD.shape[1]
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(255.0**2 / mean_square)


def main() -> None:
    """Prints the number of near twins in each split."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--splits", default="validation,validation_combination")
    parser.add_argument("--decibel", type=float, default=30.0)
    options = parser.parse_args()
    train = _flat(options.data, "train")
    for split in options.splits.split(","):
        found_N = nearest_psnr(_flat(options.data, split, train.shape[1]), train)
        twins = int(np.sum(found_N >= options.decibel))
        share = 100 * twins / len(found_N)
        print(f"{split}: {twins} of {len(found_N)} images ({share:.0f} %) have a near twin")


def _flat(data: str, split: str, size: int = 0) -> np.ndarray:
    reader = items.Reader()
    rows = [item.pixels.ravel() for item in reader.read_images(data, split)]
    print(*reader.notes, sep="\n", end="")
    return np.stack([row for row in rows if len(row) == (size or len(rows[0]))]).astype(np.float64)


if __name__ == "__main__":
    main()
