"""Encode files and decode the codes, to inspect what a vision tokenizer preserves.

  python -m emu3_jax.tokenize.reconstruct --vision_tokenizer=DIR --output=DIR \\
    --input=photo.jpg --input=film.mp4 [--clips=independent] [--tile=64 --overlap=8]

For each file, writes NAME.png, or NAME.mp4 for a clip, with the tokenizer's input at the left and
its reconstruction at the right; and NAME.npy with the codes. Prints PSNR and SSIM.
"""

import functools
import io
import pathlib

import numpy as np
from absl import flags

from emu3_jax import command_line, shipped
from emu3_jax.data import media
from emu3_jax.data.codec import tiling, vision_codec
from emu3_jax.evaluate.vision import psnr_ssim
from emu3_jax.files import write_atomically
from emu3_jax.generate.codec import pixel_limits
from emu3_jax.train import weights

VISION = command_line.define_path(
    "vision_tokenizer", shipped.vision_tokenizer, "Weights, run directory, nano, photo or styles."
)
OUTPUT = flags.DEFINE_string("output", None, "Directory to write.")
INPUT = flags.DEFINE_multi_string("input", [], "Image or clip; may be repeated.")
CLIPS = flags.DEFINE_enum(
    "clips",
    "causal",
    vision_codec.CLIPS,
    "Encode a long clip as one, or each latent frame independently.",
)
FPS = flags.DEFINE_float("fps", 0.0, "Rate at which clips are read; 0 takes every frame.")
MAX_FRAMES = flags.DEFINE_integer("max_frames", 64, "Clips are cut to this many frames.")
MIN_PIXELS = flags.DEFINE_integer("min_pixels", None, "Smaller images are enlarged to this area.")
MAX_PIXELS = flags.DEFINE_integer("max_pixels", None, "Larger images are reduced to this area.")
TILE = flags.DEFINE_integer(
    "tile",
    0,
    "Side of tiles in tokens, for images too large for memory (approximate); 0: no tiles.",
)
OVERLAP = flags.DEFINE_integer("overlap", 8, "Tokens that neighbouring tiles share.")
# Frames per second of the output if the input does not state its rate.
DEFAULT_FPS = 8.0


def main() -> None:
    """Reads, encodes, decodes and writes every file; names a bad file before any work."""
    if not VISION.value or not OUTPUT.value or not INPUT.value:
        raise ValueError("--vision_tokenizer, --output and --input are needed; see --help")
    stems = [pathlib.Path(path).stem for path in INPUT.value]
    if len(set(stems)) < len(stems):
        raise ValueError(
            "two inputs have the same name without the extension; so would the outputs"
        )
    tokenizer = weights.load_vision_tokenizer(VISION.value)
    factor = tokenizer[0].config.spatial_factor
    limits = pixel_limits(VISION.value, factor, MIN_PIXELS.value, MAX_PIXELS.value)
    shown = [_read(path, limits, tokenizer[0].config) for path in INPUT.value]
    folder = pathlib.Path(OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    one_size = len({pixels.shape for pixels, _ in shown}) == 1
    for path, stem, (pixels, fps) in zip(INPUT.value, stems, shown, strict=True):
        codes, rebuilt = _there_and_back(tokenizer, pixels, one_size)
        both = np.concatenate([pixels, rebuilt], axis=-2)
        write_atomically(folder / f"{stem}.npy", _npy(codes))
        if pixels.ndim == 3:
            media.write_png(folder / f"{stem}.png", both)
        else:
            media.write_mp4(folder / f"{stem}.mp4", both, fps)
        size = "x".join(str(side) for side in pixels.shape[:-1])
        grid = "x".join(str(side) for side in codes.shape)
        psnr = psnr_ssim.psnr(pixels, rebuilt).mean()
        ssim = psnr_ssim.ssim(pixels, rebuilt).mean()
        print(f"{path}: {size} pixels, {grid} codes, PSNR {psnr:.2f} dB, SSIM {ssim:.3f}")


def _read(path: str, limits: media.PixelLimits, config) -> tuple[np.ndarray, float]:
    """uint8 [H, W, 3] or [T, H, W, 3] at the tokenizer's size, and frames per second."""
    fit = functools.partial(media.smart_resize, limits=limits)
    try:
        frames, fps, _ = media.read_video(path, FPS.value or None, MAX_FRAMES.value, fit=fit)
    except media.MediaError as no_clip:
        try:
            frames, fps = media.read_image(path, fit=fit), 0.0
        except media.MediaError as no_image:
            raise ValueError(f"{no_clip}; it is not an image either: {no_image}") from no_clip
    if frames.ndim == 4 and len(frames) == 1:
        frames = frames[0]
    return vision_codec.whole_tokens(config, frames), fps or DEFAULT_FPS


def _there_and_back(tokenizer, pixels: np.ndarray, one_size: bool) -> tuple[np.ndarray, np.ndarray]:
    """(codes, uint8 pixels of the codes), whole or in tiles, by the flags."""
    if TILE.value:
        tiles = (TILE.value, OVERLAP.value)
        codes = tiling.encode(tokenizer, pixels, *tiles, clips=CLIPS.value)
        return codes, tiling.decode(tokenizer, codes, *tiles, clips=CLIPS.value)
    options = dict(clips=CLIPS.value, one_size=one_size)
    codes = vision_codec.encode(tokenizer, [pixels], 1, **options)[0]
    return codes, vision_codec.decode(tokenizer, [codes], 1, **options)[0]


def _npy(codes: np.ndarray) -> bytes:
    """The content of a .npy file."""
    content = io.BytesIO()
    np.save(content, codes)
    return content.getvalue()


if __name__ == "__main__":
    command_line.run(main, __doc__)
