"""The second half of held-out clips, predicted from the first, beside copying and the tokenizer.

  PYTHONPATH=. python benchmarks/video_prediction.py --data=runs/emoji [--model=nano --repeats=4]

Of each clip the first half of the latent frames is given. The predicted half is decoded together
with it and compared with the real frames: PSNR, and recall at 1 and 10 among the second halves of
all clips, in the features of the evaluator `emoji_retrieval`. Since a clip looks much like itself,
recall is also told of the change alone: features minus those of the last given frame. "copy" shows
that frame throughout, or repeats the codes of the last given latent frame; "tokenizer" is the real
clip encoded and decoded. Errors are standard errors over clips, after the mean over repeats.
"""

import argparse
import dataclasses
import pathlib
import time

import numpy as np

import emu3_jax
from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.emoji.retrieval import features, ranks_of_right
from emu3_jax.evaluate.vision.psnr_ssim import psnr
from emu3_jax.generate import Sampling, codec, modalities
from emu3_jax.generate.completion.going_on import extend_video, predict_video
from emu3_jax.sequence import Video

# Name → whether the caption is given, and how to sample.
SETTINGS = {
    "no text, greedy": (False, Sampling(temperature=0.0)),
    "no text, temperature 0.7, top-k 200": (False, Sampling(temperature=0.7, top_k=200)),
    "no text, temperature 1": (False, Sampling()),
    "caption, temperature 0.7, top-k 200": (True, Sampling(temperature=0.7, top_k=200)),
    "caption, the same, guidance 3": (True, Sampling(temperature=0.7, top_k=200, guidance=3.0)),
    "no text, 0.7 and 200, jacobi": (
        False, Sampling(temperature=0.7, top_k=200, decoder="jacobi"),
    ),
    "no text, 0.7 and 200, zipar": (
        False, Sampling(temperature=0.7, top_k=200, decoder="zipar"),
    ),
}  # fmt: skip


def halves(clips: list[np.ndarray]) -> list[np.ndarray]:
    """The frames after the middle, uint8 [T / 2, H, W, 3] each."""
    return [frames[len(frames) // 2 :] for frames in clips]


def looks(clips: list[np.ndarray]) -> np.ndarray:
    """Features of the frames of each clip, float64 [N, T x 768]."""
    return np.stack([features(list(frames)).ravel() for frames in clips])


def figures(found: list[np.ndarray], real: list[np.ndarray], last: list[np.ndarray]) -> np.ndarray:
    """Of each clip PSNR, recall at 1 and 10 in %, and both of the change: float64 [N, 5]."""
    quality_N = [psnr(a, b).mean() for a, b in zip(found, real, strict=True)]
    found_ND, real_ND, last_ND = map(looks, (found, real, last))
    whole_N = ranks_of_right(found_ND, real_ND)
    change_N = ranks_of_right(found_ND - last_ND, real_ND - last_ND)
    hits = [100.0 * (ranks <= k) for ranks in (whole_N, change_N) for k in (1, 10)]
    return np.stack([quality_N, *hits], axis=1)


def row(name: str, figures_N5: np.ndarray, seconds: float | None = None) -> None:
    """Prints a row of a Markdown table."""
    mean, error = figures_N5.mean(axis=0), figures_N5.std(axis=0) / np.sqrt(len(figures_N5))
    cells = [f"{mean[0]:.2f} ± {error[0]:.2f}"]
    cells += [f"{m:.0f} ± {e:.0f}" for m, e in zip(mean[1:], error[1:], strict=True)]
    cells.append("" if seconds is None else f"{seconds:.0f}")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--vision_tokenizer", default="nano")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--limit", type=int, default=0)
    chosen = parser.parse_args()
    bundle = emu3_jax.load_bundle(chosen.model, chosen.vision_tokenizer)
    reader = items.Reader(bundle.vision.config, bundle.media)
    rows = reader.read_split(pathlib.Path(chosen.data), chosen.split, chosen.limit)
    clips = items.of_kind(rows, "video")
    tokenizer = (bundle.vision, bundle.vision_variables)
    codes = vision_codec.encode(tokenizer, [clip.pixels for clip in clips], codec.BATCH_SIZE)
    seconds = [media.read_video(clip.path)[1:] for clip in clips]
    half = len(codes[0]) // 2
    given = [
        Video(c[:half], fps, duration / 2)
        for c, (fps, duration) in zip(codes, seconds, strict=True)
    ]
    captions = [clip.text for clip in clips]
    real = halves([clip.pixels for clip in clips])
    last = [
        np.repeat(clip.pixels[len(clip.pixels) // 2 - 1][None], len(frames), axis=0)
        for clip, frames in zip(clips, real, strict=True)
    ]
    new = len(codes[0]) - half
    print(
        f"{len(clips)} clips of {len(codes[0])} latent frames, {half} given, chance at 1 and 10 "
        f"{100 / len(clips):.0f} and {1000 / len(clips):.0f} %\n\n"
        "| second half | PSNR, dB | recall at 1, % | at 10 | of the change, at 1 | at 10 | s |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    row("copy of the last given frame", figures(last, real, last))
    still = [np.concatenate([c[:half], np.repeat(c[half - 1 : half], new, axis=0)]) for c in codes]
    row("copy of its codes, decoded", figures(halves(codec.decode(bundle, still)), real, last))
    row("tokenizer (ceiling)", figures(halves(codec.decode(bundle, codes)), real, last))
    for name, (has_caption, sampling) in SETTINGS.items():
        found, start = [], time.perf_counter()
        for seed in range(1 if sampling.greedy else chosen.repeats):
            options = modalities.Options(dataclasses.replace(sampling, seed=seed))
            if has_caption:
                drawn = extend_video(bundle, captions, given, new, half, options)
            else:
                drawn = predict_video(bundle, given, new, half, options)
            found.append(figures(halves(codec.decode(bundle, drawn)), real, last))
        row(name, np.mean(found, axis=0), (time.perf_counter() - start) / len(found))


if __name__ == "__main__":
    main()
