"""Tables of the report's figures, each with its chance and its ceiling."""

import dataclasses
import html
from collections.abc import Mapping, Sequence

from emu3_jax.figures import chart, page

Results = Mapping[str, Mapping[str, float]]

# Kinds of tokens, by their names in logs and evaluators.
MODALITIES = ("text", "image", "video", "structure")


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table: where its figures are in results.json.

    Attributes:
      label: text of the line.
      evaluator, metric: the figure.
      chance, lookup, ceiling: metrics of the same evaluator, or "" for none.
      percent: show a bar from 0 to 100.
      digits: digits after the decimal point.
    """

    label: str
    evaluator: str
    metric: str
    chance: str = ""
    lookup: str = ""
    ceiling: str = ""
    percent: bool = False
    digits: int = 1


def _captions(split: str) -> tuple[Line, ...]:
    return tuple(
        Line(
            label,
            "emoji_captions",
            f"{what}_right_{split}",
            chance=f"{what}_chance_majority_{split}",
            lookup=f"{what}_nearest_image_{split}",
            percent=True,
        )
        for label, what in (
            ("Skin tone right", "tone"),
            ("Person right", "person"),
            ("Both right", "both"),
        )
    )


def _recall(k: int, split: str = "") -> Line:
    label = f"Recall at {k}" + (f", {split.replace('_', ' ')}" if split else "")
    metric = f"recall_at_{k}" + (f"_{split}" if split else "")
    return Line(
        label,
        "emoji_retrieval",
        metric,
        chance=f"recall_at_{k}_chance",
        ceiling=f"recall_at_{k}_ceiling",
        percent=True,
    )


def training_key(modality: str) -> str:
    """Returns the key in metrics.jsonl of the training loss of a kind of token."""
    return f"loss/{modality}"


def validation_key(modality: str) -> str:
    """Returns the key in metrics.jsonl of the held-out loss (`during_training`)."""
    return f"validation/likelihood/nats_{modality}"


BOUNDS = ("chance", "lookup", "ceiling")

LANGUAGE_MODEL: tuple[tuple[str, tuple[Line, ...]], ...] = (
    ("Captions for images of a person and a tone never seen together (%)",
     _captions("validation_combination")),
    ("Captions for toned emoji whose base was never seen (%)", _captions("validation")),
    ("Images drawn from validation captions: is the right one nearest? (%)",
     (_recall(1), _recall(5), _recall(10))),
    ("", (Line("Median rank", "emoji_retrieval", "median_rank", chance="median_rank_chance",
               ceiling="median_rank_ceiling"),)),
    ("Held-out likelihood (nats per token)",
     tuple(Line(label, "likelihood", f"nats_{name}", digits=3) for label, name in (
         ("Codes of an image, given its caption", "text_to_image_on_image"),
         ("Caption, given its image", "image_to_text_on_text"),
         ("Codes of a clip, given its caption", "text_to_video_on_video"),
         ("Caption, given its clip", "video_to_text_on_text"),
         ("Plain text", "text_on_text"),
         ("Structure tokens", "structure"),
     ))),
)  # fmt: skip

VISION_TOKENIZER: tuple[tuple[str, tuple[Line, ...]], ...] = (
    ("", (
        Line("PSNR of stills (dB)", "reconstruction", "psnr_images", digits=2),
        Line("SSIM of stills", "reconstruction", "ssim_images", digits=3),
        Line("PSNR of clips (dB)", "reconstruction", "psnr_clips", digits=2),
        Line("SSIM of clips", "reconstruction", "ssim_clips", digits=3),
        Line("Codes in use on the whole corpus (%)", "reconstruction", "codebook_used_corpus"),
        Line("Perplexity of the codes on the whole corpus", "reconstruction",
             "codebook_perplexity_corpus", digits=0),
    )),
)  # fmt: skip


def evaluation_table(
    evaluated: Sequence[tuple[str, Results]], groups: Sequence[tuple[str, Sequence[Line]]]
) -> str:
    """Returns an HTML table: one column per model, then the bounds.

    Lines and bounds without figures are left out. Bounds are those of the first model that has
    them, since they depend only on the data and the tokenizer.
    """
    shown = [(h, [line for line in lines if _known(evaluated, line)]) for h, lines in groups]
    bounds = [
        bound
        for bound in BOUNDS
        if any(_bound(evaluated, line, bound) is not None for _, lines in shown for line in lines)
    ]
    rows = []
    for heading, lines in shown:
        if lines and heading:
            rows.append([html.escape(heading)])
        rows += [_row(evaluated, line, bounds) for line in lines]
    if not rows:
        return '<p class="empty">nothing was evaluated</p>'
    return page.table(["", *(name for name, _ in evaluated), *bounds], rows)


def _row(evaluated, line: Line, bounds: Sequence[str]) -> list[str]:
    cells = [html.escape(line.label)]
    chance, ceiling = (_bound(evaluated, line, bound) for bound in ("chance", "ceiling"))
    for index, (_, results) in enumerate(evaluated):
        value = results.get(line.evaluator, {}).get(line.metric)
        cell = _text(value, line.digits)
        if value is not None:
            cell = f"<b>{cell}</b>"
            if line.percent:
                cell += chart.scale_bar(value, chance, ceiling, index)
        cells.append(cell)
    return cells + [_text(_bound(evaluated, line, bound), line.digits) for bound in bounds]


def _bound(evaluated, line: Line, bound: str) -> float | None:
    return _first(evaluated, line.evaluator, getattr(line, bound))


def _known(evaluated, line: Line) -> bool:
    return _first(evaluated, line.evaluator, line.metric) is not None


def _first(evaluated, evaluator: str, metric: str) -> float | None:
    values = (results.get(evaluator, {}).get(metric) for _, results in evaluated)
    return next((value for value in values if value is not None), None)


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
