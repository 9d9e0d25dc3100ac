"""Write the report: python -m emu3_jax.post_training.post_training_report --directory=DIRECTORY

Reads the results of the other stages in the directory; writes report.html.
"""

import argparse
import csv
import dataclasses
import html
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emu3_jax.data import media
from emu3_jax.data.evenly import evenly_chosen
from emu3_jax.evaluate.evaluator import read_results
from emu3_jax.evaluate.language.questions import is_right
from emu3_jax.figures import chart, page
from emu3_jax.files import in_words, write_atomically
from emu3_jax.pipeline import runner
from emu3_jax.pipeline.emoji_plan import DRAWING
from emu3_jax.post_training.stages import (
    CHATTING,
    DRAWN,
    DRIFTING,
    MODELS,
    QUESTION_SPLITS,
    Plan,
    held_out_captions,
)
from emu3_jax.report import tables
from emu3_jax.report.runs import points
from emu3_jax.report.tables import Line
from emu3_jax.train.run.metrics import read_metrics

SUMMARY = (
    "From a pretrained stream to a model that answers and draws: supervised tuning, adapters, "
    "quality fine-tuning and preference tuning of the shipped nano model, on this machine's CPU."
)
SPLITS = {
    "validation": "Emoji whose base was never seen (%)",
    "validation_combination": "Combinations of person and tone never seen (%)",
    "test": "easy-vqa, its own test questions (%)",
}
KINDS = {
    "validation": ("group", "is_group", "is_tag", "tone", "which_tone", "is_tone", "name"),
    "validation_combination": ("tone", "which_tone", "is_tone", "name"),
    "test": ("yes_or_no", "colour", "shape"),
}
DRIFT = (
    ("Held-out likelihood (nats per token)", tuple(
        Line(label, "likelihood", f"nats_{name}", digits=3) for label, name in (
            ("Codes of an image, given its caption", "text_to_image_on_image"),
            ("Caption, given its image", "image_to_text_on_text"),
            ("Codes of a clip, given its caption", "text_to_video_on_video"),
            ("Marks and sizes", "structure"),
        ))),
    ("Captions of unseen combinations of person and tone (%)", tuple(
        Line(label, "emoji_captions", f"{what}_right_validation_combination", percent=True)
        for label, what in (("Tone", "tone"), ("Person", "person"), ("Both", "both")))),
    ("Images drawn from held-out captions, one draw each (%)", tuple(
        Line(f"Recall at {k}", "emoji_retrieval", f"recall_at_{k}",
             chance=f"recall_at_{k}_chance", percent=True) for k in (1, 5, 10))),
)  # fmt: skip
ASKED = 12  # questions shown of each split


def question_lines() -> tuple[tuple[str, tuple[Line, ...]], ...]:
    """The lines of the table of answers: all questions of a split, then each kind."""

    def line(split: str, kind: str) -> Line:
        name = f"{kind}_{split}" if kind else split
        return Line(
            kind.replace("_", " ") or "all questions", "questions", f"right_{name}",
            chance=f"majority_{name}", lookup=f"nearest_{name}", percent=True,
        )  # fmt: skip

    return tuple(
        (title, tuple(line(split, kind) for kind in ("", *KINDS[split])))
        for split, title in SPLITS.items()
    )


def results(plan: Plan, folder: str, names: Sequence[str]) -> list[tuple[str, tables.Results]]:
    """(title, results) of the models that have some."""
    where = {name: getattr(plan, folder)(name) for name in names}
    return [(MODELS[n], read_results(path)) for n, path in where.items() if path.is_dir()]


def asked(plan: Plan, split: str) -> str:
    """Cards of questions at even distances, with the answers of the tuned model."""
    path = plan.answers("chat") / f"questions_{split}.csv"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cards = (_question(plan, split, row) for row in evenly_chosen(rows, ASKED))
    return f'<div class="grid broad">{"".join(cards)}</div>'


def _question(plan: Plan, split: str, row: Mapping[str, str]) -> str:
    right = is_right(row["answer"], row["truth"])
    mark = f'<span class="mark {"yes" if right else "no"}">{"✓" if right else "✗"}</span>'
    truth = "" if right else f'<p class="truth">truth: {html.escape(row["truth"])}</p>'
    pixels = media.read_image(str(image_of(plan, split, row["id"])))
    return (
        f'<div class="card written">{page.image(pixels, row["question"])}<div>'
        f'<p class="truth">{html.escape(row["question"])}</p>'
        f"<p>{mark}{html.escape(row['answer']) or '(nothing)'}</p>{truth}</div></div>"
    )


def image_of(plan: Plan, split: str, key: str) -> pathlib.Path:
    """The image that a question is about; the key is ID-NUMBER, or test-ID-NUMBER of easy-vqa."""
    name = key.rpartition("-")[0]
    if split == "test":
        return plan.directory / "easy_vqa" / split / f"{name.removeprefix('test-')}.png"
    return plan.corpus / "stills" / f"{name}.webp"


def drawings(plan: Plan) -> str:
    """A figure for each held-out caption: what the models drew, one draw each."""
    files = {name: sorted(plan.samples(name).glob("image_*.png")) for name in DRAWN}
    cards = []
    captions = held_out_captions(plan.corpus, len(files["pretrained"]))
    for caption, *row in zip(captions, *files.values(), strict=True):
        shown = "".join(
            page.tagged(media.read_image(str(file)), MODELS[name], MODELS[name], name == "dpo")
            for name, file in zip(files, row, strict=True)
        )
        cards.append(
            '<figure class="card"><div class="pair" style="grid-template-columns:repeat('
            f'{len(row)},1fr)">{shown}</div><figcaption>{html.escape(caption)}</figcaption></figure>'
        )
    return f'<div class="grid">{"".join(cards)}</div>'


def curves(plan: Plan) -> str:
    """Losses of the trainings on questions, and margins and accuracies of preference tuning."""
    names = [name for name in CHATTING if name != "pretrained"]
    chats = [
        chart.Series(MODELS[name], chart.smoothed(points(rows, "loss/source/chat"), 5), i)
        for i, name in enumerate(names)
        if (rows := read_metrics(plan.run(name)))
    ]
    rows = read_metrics(plan.run("dpo"))
    reward = [
        chart.Series(label, chart.smoothed(points(rows, f"reward/{key}"), 5), i)
        for i, (label, key) in enumerate(
            (("margin", "margins"), ("chosen", "chosen"), ("rejected", "rejected"))
        )
    ]
    panels = (
        ("Answers: nats per token", chats, "nats per token"),
        ("Preference tuning: rewards", reward, "reward"),
    )
    return (
        '<div class="charts">'
        + "".join(
            f'<div class="card"><h3>{title}</h3>{chart.line_chart(series, "step", unit)}'
            f"{page.legend([(s.name, s.color) for s in series])}</div>"
            for title, series, unit in panels
        )
        + "</div>"
    )


def costs(plan: Plan, markers: Mapping[str, Any]) -> str:
    """What each training costs: parameters that move, steps, time."""
    rows = []
    for name in (n for n in MODELS if n != "pretrained"):
        log = read_metrics(plan.run(name))
        speeds = [row["tokens_per_second"] for row in log
                  if "tokens_per_second" in row]  # fmt: skip
        rows.append([
            html.escape(MODELS[name]),
            f"{log[-1]['step']:,}",
            f"{np.median(speeds):,.0f}" if speeds else "–",
            f"{markers[name]['seconds'] / 60:.1f} min" if name in markers else "–",
        ])  # fmt: skip
    return page.table(("", "steps", "tokens/s", "time"), rows)


def build(plan: Plan) -> str:
    """The page as HTML."""
    markers = {
        file.stem: runner.read_json(file)
        for file in (plan.directory / runner.STAGES_FOLDER).glob("*.json")
    }
    answers = results(plan, "answers", CHATTING)
    drift = results(plan, "evaluation", DRIFTING)
    seconds, commands = runner.timeline(plan.directory)
    words = [f"{int(s) // 60} min {int(s) % 60:02d} s" for _, s in seconds]
    sections = [
        ("chat", "Answers to held-out questions",
         "Greedy answers. Chance is the most frequent training answer to the same question; lookup "
         "is the training answer for the most similar training image.",
         tables.evaluation_table(answers, question_lines()),
         *(f"<h3>{html.escape(SPLITS[s].removesuffix(' (%)'))}</h3>{asked(plan, s)}"
           for s in QUESTION_SPLITS)),
        ("drawing", "Drawing",
         "Held-out captions, chosen at even distances before any model was looked at; one draw "
         f"each, the same seed and settings ({' '.join(DRAWING)}).", drawings(plan)),
        ("drift", "What was kept, and what was unlearnt",
         "Every model on the held-out data of pretraining.",
         tables.evaluation_table(drift, DRIFT)),
        ("training", "Training", "Lines are moving means.", curves(plan), costs(plan, markers)),
        ("time", "Where the time went", f"{sum(s for _, s in seconds) / 60:.0f} min in all.",
         page.stages(seconds, words)),
        ("commands", "Commands", "The commands of this run, in order.", page.commands(commands)),
    ]  # fmt: skip
    links = [(anchor, title) for anchor, title, *_ in sections]
    body = "".join(page.section(*parts) for parts in sections)
    title = "emu3_jax post-training"
    return page.page(title, f"{page.head(title, SUMMARY, links)}<main>{body}</main>")


def main() -> None:
    """Reads the command line, gathers, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m emu3_jax.post_training.post_training_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--directory", type=pathlib.Path, default=Plan.directory,
                        help="that of the other stages (%(default)s)")  # fmt: skip
    plan = dataclasses.replace(Plan(), directory=parser.parse_args().directory)
    try:
        write_atomically(plan.report, build(plan).encode())
    except (ValueError, OSError, KeyError) as error:
        print(f"Error: {in_words(error)}", file=sys.stderr)
        sys.exit(2)
    print(f"written: {plan.report}")


if __name__ == "__main__":
    main()
