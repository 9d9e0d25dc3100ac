"""Write the report: python -m emu3_jax.quickstart.quickstart_report --directory=runs/quickstart

Reads the results of the other stages in the directory; writes report.html and, for the README,
samples.png (real images, and generated ones below them).
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from emu3_jax import shipped
from emu3_jax import vocab as vocab_lib
from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.data.tokens.records import DATASET_FILE, DatasetInfo
from emu3_jax.evaluate import items
from emu3_jax.evaluate.evaluator import read_results
from emu3_jax.figures.contact_sheet import contact_sheet, film_strip
from emu3_jax.files import in_words
from emu3_jax.interop.language import language_model
from emu3_jax.models.language.transformer import TransformerConfig, count_parameters
from emu3_jax.pipeline import runner
from emu3_jax.pipeline.emoji_plan import DRAWING
from emu3_jax.quickstart.stages import CHOOSING, Plan
from emu3_jax.report.pretraining_page import (
    Curve,
    Drawn,
    Rebuilt,
    ReportInputs,
    Samples,
    Written,
    build_report,
)
from emu3_jax.text import load_text_tokenizer
from emu3_jax.train import weights
from emu3_jax.train.run.metrics import read_metrics

SAMPLES_FILE = "samples.png"
SPLITS = ("validation", "validation_combination")
TITLES = {"shipped": "The shipped model", "trained": "The run just trained"}
SUMMARY = (
    "One transformer, trained by next-token prediction alone, that draws, animates and captions "
    "emoji. Everything below was made on this machine's CPU by one command."
)
ABOUT = (
    "A vision tokenizer cuts an image into 8 × 8 codes, and those codes form one stream of "
    "tokens with the words of its caption. A decoder-only transformer learns to continue that "
    "stream: words after an image are a caption, codes after words are an image, codes in time "
    "are a clip. Below is one such stream, shortened.",
    "Samples come first: of the nano model shipped with the project, which shows what a small "
    "system can do, and of the model that this machine has just trained from scratch for a few "
    "minutes, which shows that training works here. Captions and images were held out from both.",
)
NO_SHIPPED = (
    "This copy of the project holds no shipped model (assets/transformer_nano), so all samples are "
    "of the run just trained: a few minutes of training, which is enough for shapes and colours."
)
CREDITS = (
    "Images and clips: Fluent Emoji, © Microsoft Corporation, MIT licence.",
    "Captions: emojibase-data, © Miles Johnson, MIT licence; built on Unicode CLDR, © Unicode, "
    "Inc., Unicode-3.0 licence. Texts of the licences: assets/LICENSES.",
)


class Gathered:
    """The files of the quickstart's directory, in the form that the report needs."""

    def __init__(self, plan: Plan):
        self.plan = plan
        held_out = [row for s in SPLITS for row in items.Reader().read_split(plan.corpus, s)]
        self.by_key = {item.key: item for item in held_out}
        self.chosen = runner.read_json(plan.items)
        self.models = [m for m in plan.models() if plan.samples(m, "images").is_dir()]
        self.vision = weights.load_vision_tokenizer(plan.vision_tokenizer)

    def item(self, row: dict) -> items.Item:
        """The held-out item of a row of `choose_items`."""
        return self.by_key[row["id"]]

    def drawn(self, model: str, kind: str) -> list[Drawn]:
        """Generated images or clips with the real ones."""
        folder, shown = self.plan.samples(model, kind), []
        for index, row in enumerate(self.chosen[kind]):
            real = self.item(row).pixels
            if kind == "images":
                made = media.read_image(folder / f"image_{index:05d}.png")
                shown.append(Drawn(row["text"], made, real))
            else:
                made, _, seconds = media.read_video(folder / f"video_{index:05d}.webp")
                shown.append(Drawn(row["text"], made, real, seconds))
        return shown

    def written(self, model: str) -> list[Written]:
        """Generated captions with the true ones."""
        file = self.plan.samples(model, "captions") / "captions.jsonl"
        if not file.is_file():
            return []
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        pairs = zip(self.chosen["captions"], lines, strict=True)
        return [Written(self.item(row).pixels, row["text"], line["text"]) for row, line in pairs]

    def samples(self, model: str) -> Samples:
        """All samples of one model."""
        text = (
            "Held-out items, chosen at even distances before any model was looked at. Drawn from "
            "the caption alone, with the real one beside it. Of the candidates for an image "
            f"({CHOOSING[0]}) the model itself chose one, by the likelihood that it gives the "
            "caption after the image; a clip is the first sample. Settings: "
            f"{' '.join(DRAWING)}, seed 0."
        )
        return Samples(
            TITLES[model], text, self.drawn(model, "images"), self.drawn(model, "clips"),
            self.written(model),
        )  # fmt: skip

    def rebuilt(self, images: int = 8, clips: int = 4) -> list[Rebuilt]:
        """Held-out images and clips through the vision tokenizer."""
        chosen = self.chosen["images"][:images] + self.chosen["clips"][:clips]
        chosen = [self.item(row) for row in chosen]
        originals = [vision_codec.whole_tokens(self.vision[0].config, i.pixels) for i in chosen]
        codes = vision_codec.encode(self.vision, originals, 8)
        pixels = vision_codec.decode(self.vision, codes, 8)
        return [
            Rebuilt(a, b, item.text, item.attributes.get("seconds", 1.0))
            for item, a, b in zip(chosen, originals, pixels, strict=True)
        ]

    def stream(self) -> list[tuple[str, str]]:
        """One document as the model reads it, shortened."""
        item = self.item(self.chosen["images"][0])
        codes = vision_codec.encode(self.vision, [item.pixels], 1)[0]
        tokenizer = load_text_tokenizer(self.plan.text_tokenizer)
        tokens = [("BOS", "text")]
        tokens += [(tokenizer.decode([i]), "text") for i in tokenizer.encode(item.text)]
        size = f"{codes.shape[0]}*{codes.shape[1]}"
        tokens += [("BOI", "structure"), (size, "structure"), ("IMG", "structure")]
        for row in codes[:2]:
            tokens += [(str(int(code)), "image") for code in row] + [("EOL", "structure")]
        tokens += [("…", "image"), ("EOL", "structure")]
        return tokens + [(name, "structure") for name in ("EOF", "EOI")] + [("EOS", "text")]

    def evaluated(self) -> list[tuple[str, dict]]:
        """Results of each model; those of the vision tokenizer are with the first."""
        names = {"shipped": "shipped model", "trained": "this run"}
        results = [(names[m], dict(read_results(self.plan.evaluation(m)))) for m in self.models]
        for _, result in results:
            result.update(read_results(self.plan.evaluation("vision_tokenizer")))
        return results

    def facts(self, seconds: float, rows: Sequence[dict]) -> list[tuple[str, str]]:
        """The cards at the top."""
        info = DatasetInfo.from_json((self.plan.tokens / "train" / DATASET_FILE).read_text())
        tokens = sum(counts.tokens for counts in info.counts.values())
        facts = [(f"{tokens / 1e3:,.0f} k", "training tokens in the shards")]
        if "shipped" in self.models:
            config = language_model.read_transformer_config(shipped.asset(self.plan.shipped))
            facts.insert(0, (_millions(config), "parameters of the shipped model"))
        facts.append((_millions(self._trained_config(info.vocabulary)), "parameters of this run"))
        facts.append((f"{rows[-1]['step']:,}", "training steps, interrupted once and resumed"))
        facts.append((f"{seconds / 60:.0f} min", "for everything"))
        return facts

    def _trained_config(self, vocabulary: vocab_lib.Vocab) -> TransformerConfig:
        model = json.loads((self.plan.model / "config.json").read_text())["model"]
        return TransformerConfig(**({"vocab_size": vocabulary.size} | model))

    def sheet(self) -> np.ndarray:
        """For the README: real images, the first model's images for them, and one clip."""
        drawn = self.drawn(self.models[0], "images")
        rows = []
        for start in range(0, len(drawn), 8):
            part = drawn[start : start + 8]
            rows += [[d.real for d in part], [d.drawn for d in part]]
        clips = self.drawn(self.models[0], "clips")[:1]
        sheets = [contact_sheet(rows)]
        sheets += [contact_sheet([[film_strip(c.real)], [film_strip(c.drawn)]]) for c in clips]
        return _stacked(sheets)


def _millions(config: TransformerConfig) -> str:
    return f"{count_parameters(config) / 1e6:.1f} M"


def _stacked(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Images below one another on white."""
    width = max(sheet.shape[1] for sheet in sheets)
    missing = [((0, 0), (0, width - sheet.shape[1]), (0, 0)) for sheet in sheets]
    padded = [np.pad(s, m, constant_values=255) for s, m in zip(sheets, missing, strict=True)]
    return np.concatenate(padded)


def gather(plan: Plan) -> tuple[ReportInputs, np.ndarray]:
    """All contents of the report, and the sheet for the README."""
    gathered = Gathered(plan)
    rows = read_metrics(plan.model)
    seconds, commands = runner.timeline(plan.directory)
    resumed_at = runner.read_json(plan.directory / runner.RESUMED_FILE, [])
    about = ABOUT if "shipped" in gathered.models else (ABOUT[0], NO_SHIPPED)
    inputs = ReportInputs(
        title="emu3_jax quickstart",
        summary=SUMMARY,
        about=about,
        stream=gathered.stream(),
        facts=gathered.facts(sum(s for _, s in seconds), rows),
        samples=[gathered.samples(model) for model in gathered.models],
        curves=[Curve("this run", rows, resumed_at)],
        reconstructions=gathered.rebuilt(),
        evaluated=gathered.evaluated(),
        stages=seconds,
        commands=commands,
        credits=CREDITS,
    )
    return inputs, gathered.sheet()


def main() -> None:
    """Reads the command line, gathers, writes."""
    defaults = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m emu3_jax.quickstart.quickstart_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, what in (
        ("directory", "that of the other stages"),
        ("vision_tokenizer", "the one that the tokens are of"),
        ("text_tokenizer", "likewise"),
        ("shipped", "the language model that the trained one stands beside"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=pathlib.Path, default=default, help=what)
    arguments = parser.parse_args()
    plan = dataclasses.replace(defaults, **vars(arguments))
    try:
        inputs, sheet = gather(plan)
        media.write_png(plan.directory / SAMPLES_FILE, sheet)
        build_report(inputs, plan.report)
    except (ValueError, OSError, KeyError) as error:
        print(f"Error: {in_words(error)}", file=sys.stderr)
        sys.exit(2)
    print(f"written: {plan.report} and {plan.directory / SAMPLES_FILE}")


if __name__ == "__main__":
    main()
