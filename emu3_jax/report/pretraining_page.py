"""report.html: samples, curves and figures of a run, in one file that loads no other file.

Images and charts are embedded. `ReportInputs` holds the content; this module only arranges it.
"""

import dataclasses
import html
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emu3_jax.evaluate.emoji.names import parse_caption
from emu3_jax.figures import chart, page
from emu3_jax.files import write_atomically
from emu3_jax.report import tables
from emu3_jax.report.runs import points
from emu3_jax.report.tables import MODALITIES, training_key, validation_key

_COLORS = {"text": 0, "image": 1, "video": 2, "structure": 4}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """An image or clip that a model drew from a caption, and the real one if there is one.

    Attributes:
      caption: the prompt.
      drawn, real: uint8 [H, W, 3] or [T, H, W, 3].
      seconds: length of a clip.
    """

    caption: str
    drawn: np.ndarray
    real: np.ndarray | None = None
    seconds: float = 1.0


@dataclasses.dataclass(frozen=True)
class Written:
    """A caption that a model wrote for an image, uint8 [H, W, 3], and the true caption."""

    image: np.ndarray
    truth: str
    generated: str


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples of one model."""

    title: str
    text: str
    images: Sequence[Drawn] = ()
    clips: Sequence[Drawn] = ()
    captions: Sequence[Written] = ()


@dataclasses.dataclass(frozen=True)
class Curve:
    """The log of one run.

    Attributes:
      name: for the legend.
      rows: lines of metrics.jsonl: {"step", "loss/text", ...}; see `tables.validation_key`.
      resumed_at: steps at which the run resumed after an interruption.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    resumed_at: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """An image or clip before and after the vision tokenizer, and its name."""

    original: np.ndarray
    rebuilt: np.ndarray
    name: str = ""
    seconds: float = 1.0


@dataclasses.dataclass(frozen=True)
class ReportInputs:
    """Everything that the report shows; empty parts are left out.

    Attributes:
      title, summary: the head of the page.
      about: paragraphs of introduction.
      stream: (token, modality of MODALITIES) of one document, as the model sees it.
      facts: (value, label) of the cards at the top.
      samples: samples of the shipped model first, then of the run just trained.
      curves: logs of the run just trained first, then of others.
      reconstructions: reconstructions of the vision tokenizer.
      evaluated: (name, {evaluator: metrics}) of each model, in the order of `samples`.
      stages: (name, seconds).
      commands: (what it does, command).
      credits: the lines at the foot.
      banner: a warning across the top, such as that the data are made up.
    """

    title: str
    summary: str
    about: Sequence[str] = ()
    stream: Sequence[tuple[str, str]] = ()
    facts: Sequence[tuple[str, str]] = ()
    samples: Sequence[Samples] = ()
    curves: Sequence[Curve] = ()
    reconstructions: Sequence[Rebuilt] = ()
    evaluated: Sequence[tuple[str, tables.Results]] = ()
    stages: Sequence[tuple[str, float]] = ()
    commands: Sequence[tuple[str, str]] = ()
    credits: Sequence[str] = ()
    banner: str = ""


def build_report(inputs: ReportInputs, path: str | os.PathLike) -> pathlib.Path:
    """Writes the page atomically and returns its path."""
    path = pathlib.Path(path)
    sections = [_about(inputs)]
    sections += [_samples(s, f"samples{i}") for i, s in enumerate(inputs.samples)]
    sections += [
        _curves(inputs),
        _reconstructions(inputs),
        _evaluation(inputs),
        _stages(inputs),
        _commands(inputs),
    ]
    links = [(f"samples{i}", s.title) for i, s in enumerate(inputs.samples)]
    links += [("curves", "Loss curves")] if inputs.curves else []
    links += [("tokenizer", "Vision tokenizer")] if inputs.reconstructions else []
    links += [("evaluation", "Evaluation")] if inputs.evaluated else []
    links += [("time", "Time")] if inputs.stages else []
    links += [("commands", "Commands")] if inputs.commands else []
    body = f"{_head(inputs, links)}<main>{''.join(sections)}</main>"
    write_atomically(path, page.page(inputs.title, body, inputs.banner, inputs.credits).encode())
    return path


def _head(inputs: ReportInputs, links) -> str:
    hero = ""
    if inputs.samples and inputs.samples[0].images:
        shown = [d for d in inputs.samples[0].images[:8]]
        hero = "".join(page.image(d.drawn, f"drawn: {d.caption}") for d in shown)
        hero = f'<div class="hero">{hero}</div>'
    facts = "".join(
        f'<div class="fact"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'
        for value, label in inputs.facts
    )
    parts = (hero, f'<div class="facts">{facts}</div>')
    return page.head(inputs.title, inputs.summary, links, *parts)


def _about(inputs: ReportInputs) -> str:
    if not inputs.about:
        return ""
    paragraphs = "".join(f"<p>{html.escape(p)}</p>" for p in inputs.about)
    stream = ""
    if inputs.stream:
        tokens = [(text, _COLORS[modality]) for text, modality in inputs.stream]
        names = page.legend([(name, color) for name, color in _COLORS.items()])
        stream = page.token_stream(tokens) + names
    return f'<section id="about"><h2>What you are looking at</h2>{paragraphs}{stream}</section>'


def _samples(samples: Samples, anchor: str) -> str:
    parts = []
    for title, chosen in (("Images from captions", samples.images),
                          ("Clips from captions", samples.clips)):  # fmt: skip
        if chosen:
            cards = "".join(_drawn(d) for d in chosen)
            parts.append(f'<h3>{title}</h3><div class="grid">{cards}</div>')
    if samples.captions:
        cards = "".join(_written(w) for w in samples.captions)
        parts.append(f'<h3>Captions from images</h3><div class="grid broad">{cards}</div>')
    return page.section(anchor, samples.title, samples.text, *parts)


def _drawn(drawn: Drawn) -> str:
    ours = page.tagged(drawn.drawn, "drawn", f"drawn: {drawn.caption}", True, drawn.seconds)
    if drawn.real is None:
        return page.pair_card(ours, "", drawn.caption)
    real = page.tagged(drawn.real, "real", f"real: {drawn.caption}", False, drawn.seconds)
    return page.pair_card(ours, real, drawn.caption)


def _written(written: Written) -> str:
    truth, said = parse_caption(written.truth), parse_caption(written.generated)
    marks = [("name", truth.person == said.person)]
    if truth.tones:
        marks.append(("tone", truth.tones == said.tones))
    shown = "".join(
        f'<span class="mark {"yes" if right else "no"}">{"✓" if right else "✗"} {what}</span>'
        for what, right in marks
    )
    return (
        f'<div class="card written">{page.image(written.image, written.truth)}<div>'
        f"<p>{html.escape(written.generated) or '(nothing)'}</p>"
        f'<p class="truth">truth: {html.escape(written.truth)}</p><p>{shown}</p></div></div>'
    )


def _curves(inputs: ReportInputs) -> str:
    if not inputs.curves:
        return ""
    panels = []
    for modality in MODALITIES:
        key = training_key(modality)
        if any(key in row for curve in inputs.curves for row in curve.rows):
            panels.append((modality, _panel(inputs.curves, modality)))
    shown = "".join(
        f'<div class="card"><h3>{name.capitalize()} tokens</h3>{svg}</div>' for name, svg in panels
    )
    kinds = ("training", "validation")
    lines = [f"{curve.name}, {kind}" for curve in inputs.curves for kind in kinds]
    legend = page.legend([(line, index) for index, line in enumerate(lines)])
    lead = (
        "Mean negative log-likelihood per token, by kind of token. Pale: as logged; full: a moving"
        " mean; dots: held-out documents. A dashed line marks where the run was interrupted and"
        " resumed from its checkpoint."
    )
    return page.section(
        "curves", "Loss curves", lead, legend,
        f'<div class="charts">{shown}</div>',
    )  # fmt: skip


def _panel(curves: Sequence[Curve], modality: str) -> str:
    series, marks = [], []
    for i, curve in enumerate(curves):
        training = points(curve.rows, training_key(modality))
        validation = points(curve.rows, validation_key(modality))
        window = max(1, len(training) // 40)
        series += [
            chart.Series(f"{curve.name}, logged", training, 2 * i, faint=True),
            chart.Series(f"{curve.name}, training", chart.smoothed(training, window), 2 * i),
            chart.Series(f"{curve.name}, validation", validation, 2 * i + 1, dots=True),
        ]
        marks += [(step, f"resumed at {step}") for step in curve.resumed_at]
    return chart.line_chart(series, "step", "nats per token", marks)


def _reconstructions(inputs: ReportInputs) -> str:
    if not inputs.reconstructions:
        return ""
    cards = "".join(
        page.pair_card(
            page.tagged(r.original, "original", f"original: {r.name}", False, r.seconds),
            page.tagged(r.rebuilt, "rebuilt", f"rebuilt: {r.name}", True, r.seconds),
            r.name,
        )
        for r in inputs.reconstructions
    )
    lead = (
        "Validation images and clips before and after the vision tokenizer. The language model"
        " draws with these codes, so it cannot draw better than this."
    )
    return page.section(
        "tokenizer", "The vision tokenizer", lead, f'<div class="grid">{cards}</div>'
    )


def _evaluation(inputs: ReportInputs) -> str:
    if not inputs.evaluated:
        return ""
    lead = (
        "Chance is the best answer that ignores the input: the most frequent tone or person, a"
        " random image. Lookup copies the caption of the most similar training image. The"
        " ceiling is the result for the real images after the vision tokenizer."
        " In a bar, the dashed tick is chance and the solid tick the ceiling."
    )
    gallery = inputs.evaluated[0][1].get("emoji_retrieval", {}).get("gallery")
    if gallery:  # a recall means nothing without it
        lead += f" The right image is searched among {gallery:.0f} held-out images."
    first = tables.evaluation_table(inputs.evaluated, tables.LANGUAGE_MODEL)
    second = tables.evaluation_table(inputs.evaluated[:1], tables.VISION_TOKENIZER)
    return page.section(
        "evaluation", "Evaluation", lead, first, "<h3>Vision tokenizer</h3>", second
    )


def _stages(inputs: ReportInputs) -> str:
    if not inputs.stages:
        return ""
    words = [_duration(seconds) for _, seconds in inputs.stages]
    total = _duration(sum(seconds for _, seconds in inputs.stages))
    return page.section(
        "time", "Where the time went", f"{total} in all.", page.stages(inputs.stages, words)
    )


def _commands(inputs: ReportInputs) -> str:
    if not inputs.commands:
        return ""
    lead = "The commands of this run, in order. Each can be repeated from the project's folder."
    return page.section("commands", "Commands", lead, page.commands(inputs.commands))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
