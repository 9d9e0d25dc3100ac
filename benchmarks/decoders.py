"""The decoders on the shipped nano model: passes, seconds, recall and likelihood of what is drawn.

  PYTHONPATH=. python benchmarks/decoders.py --data=runs/emoji [--guidance=6] [--clips] [--alone=24]
      [--int8]

Every decoder draws all validation captions (with `--clips` those of clips) with the same settings.
One line each: forward passes per drawing, and how many times fewer than `sequential` takes; the
share of passes that committed one token; seconds per drawing one by one (of the first `--alone`)
and in batches of 16; recall at 10 among the real images, with its standard error; and nats per code
of the drawings under the model, with the standard error over drawings. Compiling is not timed.
`--int8` compares int8 weights, an int8 cache and both instead, by `sequential`; the model in
float32 judges.
`--picture=window.svg` instead draws jacobi's passes over one image, as
docs/explanation/decoding.md shows them.
"""

import argparse
import pathlib
import time
from collections.abc import Sequence

import numpy as np

import emu3_jax
from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.emoji import retrieval
from emu3_jax.generate import Request, Sampling, scoring
from emu3_jax.generate.decoding import engine, scheduling, session
from emu3_jax.sequence import Document, Image, Text, TokenClass, Video
from emu3_jax.train import weights

SPLITS = ("validation", "validation_combination")
CASES = [
    ("sequential", None),
    *(("jacobi", window) for window in (4, 8, 16, 32, 64)),
    *(("zipar", window) for window in (4, 8, 16)),
    *(("adaptive_zipar", window) for window in (2, 4)),
]
INT8 = [
    ("sequential", None, *int8) for int8 in ((), ("weights",), ("cache",), ("weights", "cache"))
]
BATCH = 16

OUTSIDE, REDRAWN, KEPT, COMMITTED, BEFORE = range(5)  # of the window; what a pass did
COLOURS = "", "#ffffff", "#a8d5c8", "#1f6f5c", "#8aa39d"


def clip_meta(item: items.Item) -> tuple[float, float]:
    """Frames per second and seconds, as the corpus is tokenized."""
    seconds = item.attributes["seconds"]
    return len(item.pixels) / seconds, seconds


class Drawings:
    """What is drawn, and how it is judged."""

    def __init__(self, data: pathlib.Path, clips: bool, limit: int):
        """Reads captions and real images, at most `limit` of each split (0: all)."""
        self.drawing, self.quantized_cache = None, False  # by `draw_with`
        self.bundle, self.clips = emu3_jax.load_bundle("nano", "nano"), clips
        self.vision = self.bundle.vision, self.bundle.vision_variables
        reader = items.Reader(self.vision[0].config, self.bundle.media)
        self.items = [
            item
            for split in SPLITS
            for item in reader.read_split(data, split, limit)
            if (item.kind == "video") == clips
        ]
        codes = vision_codec.encode(self.vision, [item.pixels for item in self.items], BATCH)
        self.sizes = [found.shape for found in codes]

    def requests(self) -> list[Request]:
        """One for each item."""
        grammar, found = self.bundle.grammar, []
        for number, (item, size) in enumerate(zip(self.items, self.sizes, strict=True)):
            if self.clips:
                more = clip_meta(item)
                prompts = [grammar.video_prompt(text, *size, *more) for text in (item.text, "")]
                layout = grammar.visual_layout("video", *size)
            else:
                prompts = [grammar.image_prompt(text, *size) for text in (item.text, "")]
                layout = grammar.visual_layout("image", 1, *size)
            found.append(Request(*prompts, layout, number=number))
        return found

    def draw_with(self, int8: Sequence[str]) -> None:
        """Draws with these in int8 from now on: "weights", "cache"; the judge stays in floats."""
        self.drawing, self.quantized_cache = self.bundle, "cache" in int8
        if "weights" in int8:
            self.drawing, _ = weights.load_language_model("nano", quantized=True)

    def answers(self, requests: list[Request], settings: Sampling, batch_size: int):
        """(answers, seconds)."""
        model, params = self.drawing.model, self.drawing.variables["params"]
        options = dict(batch_size=batch_size, quantized_cache=self.quantized_cache)
        began = time.perf_counter()
        found = engine.answers(model, params, requests, settings, self.bundle.vocab, **options)
        return found, time.perf_counter() - began

    def judged(self, requests, found) -> tuple[float, float, float, float]:
        """Recall at 10 in % and nats per code, each with its standard error."""
        codes = [
            self.bundle.vocab.codes(answer.tokens[request.mask < 0]).reshape(size)
            for answer, request, size in zip(found, requests, self.sizes, strict=True)
        ]
        pixels = vision_codec.decode(self.vision, codes, BATCH)
        real = [item.pixels for item in self.items]
        if self.clips:  # by the frame in the middle
            pixels, real = ([clip[len(clip) // 2] for clip in group] for group in (pixels, real))
        ranks = retrieval.ranks_of_right(retrieval.features(pixels), retrieval.features(real))
        recall = np.mean(ranks <= 10)
        nats = self._nats(codes)
        return (
            100 * recall,
            100 * (recall * (1 - recall) / len(ranks)) ** 0.5,
            nats.mean(),
            nats.std() / len(nats) ** 0.5,
        )

    def _nats(self, codes) -> np.ndarray:
        """Nats per code of each drawing after its caption."""
        documents = {}
        for i, (item, drawn) in enumerate(zip(self.items, codes, strict=True)):
            block = Video(drawn, *clip_meta(item)) if self.clips else Image(drawn)
            documents[i] = [self.bundle.grammar.build(Document((Text(item.text), block)))]
        tally = scoring.score(self.bundle, scoring.fit(documents, self.bundle.max_context), BATCH)
        kind = TokenClass.VIDEO if self.clips else TokenClass.IMAGE
        return tally.nll[:, kind] / tally.count[:, kind]


def compare(drawings: Drawings, settings: dict, alone: int, cases: Sequence[tuple]) -> None:
    """Prints the table; a case is a decoder, its window, and what is int8."""
    requests = drawings.requests()
    print(f"{len(requests)} drawings of {len(requests[0].mask)} tokens and the like, {settings}")
    columns = (
        "passes",
        "fewer",
        "of one token, %",
        "s alone",
        "s in batches",
        "recall at 10",
        "nats",
    )
    print(f"| decoder | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    first = None
    for name, window, *int8 in cases:
        drawings.draw_with(int8)
        chosen = Sampling(**settings, decoder=name, window=window)
        # The same requests compile all programs: which ones depends on their lengths.
        drawings.answers(requests[:alone], chosen, 1)
        _, one_by_one = drawings.answers(requests[:alone], chosen, 1)
        drawings.answers(requests, chosen, BATCH)
        found, together = drawings.answers(requests, chosen, BATCH)
        passes = np.mean([answer.passes for answer in found])
        commits = sum(answer.commits for answer in found)
        first = first or passes
        recall, error, nats, of_nats = drawings.judged(requests, found)
        print(
            f"| {' '.join(map(str, (name, *([window] if window else ()), *int8)))} | {passes:.1f} "
            f"| {first / passes:.2f} | {100 * commits[0] / commits.sum():.0f} "
            f"| {one_by_one / min(alone, len(requests)):.3f} | {together / len(requests):.3f} "
            f"| {recall:.1f} ± {error:.1f} | {nats:.3f} ± {of_nats:.3f} |",
            flush=True,
        )


def looks(drawings: Drawings, settings: dict, window: int, which: int) -> list[np.ndarray]:
    """What each pass of jacobi over one drawing does with its tokens, an index into COLOURS."""
    request, bundle = drawings.requests()[which], drawings.bundle
    chosen = Sampling(**settings, decoder="jacobi", window=window)
    model, params = engine.fastest(bundle.model, bundle.variables["params"])
    (plan,) = scheduling.plans([request], True, 1)
    held = engine.open_session(model, params, bundle.vocab, plan, [request], [request.mask], chosen)
    known, found, before = np.full(len(request.mask), -1), [], 0

    def look() -> bool:
        nonlocal before
        rows, drafts = held.state
        if drafts is None:
            return False
        done = int(rows.step_B[0])
        tokens = np.append(rows.new_BN[0, :done], np.asarray(drafts.token_BW)[0])[: len(known)]
        seen = np.full(len(known), OUTSIDE)
        end = min(before + window, len(known))
        seen[before:end] = np.where(tokens[before:end] == known[before:end], KEPT, REDRAWN)
        seen[:before], seen[before:done] = BEFORE, COMMITTED
        found.append(seen)
        known[: len(tokens)], before = tokens, done
        return False

    session.STREAM_EVERY = 1  # `cancel` is asked between two calls of the loop
    held.run(lambda *answer: look(), cancel=look)
    return found


def draw_passes(found: list[np.ndarray], file: pathlib.Path) -> None:
    """Writes the SVG: a line for each pass, a square for each token."""
    cell = 10
    width, height = cell * len(found[0]), cell * len(found)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">']
    lines.append(f'<rect width="{width}" height="{height}" fill="#ffffff"/>')
    for y, row in enumerate(found):
        for x, kind in enumerate(row):
            if kind == BEFORE:
                at = f'cx="{cell * x + cell / 2}" cy="{cell * y + cell / 2}" r="1"'
                lines.append(f'<circle {at} fill="{COLOURS[kind]}"/>')
            elif kind != OUTSIDE:
                at = f'x="{cell * x + 1}" y="{cell * y + 1}" width="{cell - 2}" height="{cell - 2}"'
                lines.append(f'<rect {at} fill="{COLOURS[kind]}" stroke="#1f6f5c"/>')
    file.write_text("\n".join([*lines, "</svg>\n"]))


def main() -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="raw items of the corpus")
    parser.add_argument("--guidance", type=float, default=6.0, help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="(%(default)s)")
    parser.add_argument("--top_k", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--clips", action="store_true", help="draw clips, not images")
    parser.add_argument("--limit", type=int, default=0, help="captions of each split; 0 is all")
    parser.add_argument("--picture", type=pathlib.Path, help="where to draw the passes of jacobi")
    parser.add_argument("--int8", action="store_true", help="compare int8, not decoders")
    parser.add_argument("--alone", type=int, default=24, help="drawn one by one (%(default)s)")
    options = parser.parse_args()
    names = ("guidance", "temperature", "top_k")
    settings = {name: getattr(options, name) for name in names}
    drawings = Drawings(options.data, options.clips, options.limit)
    if options.picture:
        draw_passes(looks(drawings, settings, window=24, which=3), options.picture)
    else:
        compare(drawings, settings, options.alone, INT8 if options.int8 else CASES)


if __name__ == "__main__":
    main()
