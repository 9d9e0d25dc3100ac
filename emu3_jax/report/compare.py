"""Compare runs: python -m emu3_jax.report.compare RUN RUN ... --output=DIR

Reads config.json, metrics.jsonl and, if present, results.json (or evaluation/results.json) of each
run directory. Writes comparison.html (which config keys differ, the last figures of each run, and
validation loss by step, one panel per modality, or training loss if no validation was logged; PSNR
and codebook of vision tokenizers; commands) and comparison.svg (its charts), and prints the tables.

Example:
  python -m emu3_jax.report.compare runs/nano runs/nano_no_dropout --output=runs/compared
"""

import html
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from emu3_jax.figures import chart, markdown_tables, page
from emu3_jax.files import write_atomically
from emu3_jax.report import tables
from emu3_jax.report.runs import Run, command, commands_section, differences, points, read_run
from emu3_jax.report.tables import MODALITIES, training_key, validation_key

# Training losses are noisy; the last figure is a mean over this many log lines.
LAST_LINES = 10
# Title, key and unit of each panel of vision tokenizers.
VISION_TOKENIZER = (
    ("PSNR of validation images", "validation/reconstruction/psnr_images", "dB"),
    ("PSNR of validation clips", "validation/reconstruction/psnr_clips", "dB"),
    ("Codebook perplexity, training", "codebook/perplexity", "codes"),
    ("Dead codes, training", "codebook/dead", "share of all"),
)


def figures(runs: Sequence[Run]) -> dict[str, list[float | None]]:
    """Returns label → last figure of each run, without labels that no run has."""
    table: dict[str, list[float | None]] = {"steps": [run.last("step") for run in runs]}
    for modality in MODALITIES:
        key = validation_key(modality)
        table[f"validation, {modality} (nats)"] = [run.last(key) for run in runs]
    for modality in MODALITIES:
        key = training_key(modality)
        table[f"training, {modality} (nats)"] = [_mean_of_last(run, key) for run in runs]
    table["tokens per second (median)"] = [run.median("tokens_per_second") for run in runs]
    for heading, lines in tables.LANGUAGE_MODEL:
        for line in lines:
            label = f"{heading}: {line.label}" if heading else line.label
            table[label] = [run.results.get(line.evaluator, {}).get(line.metric) for run in runs]
    return {label: row for label, row in table.items() if any(v is not None for v in row)}


def markdown(runs: Sequence[Run]) -> str:
    """Returns both tables as Markdown."""
    names = [run.name for run in runs]
    parts = ["## What differs\n"]
    changed = differences(runs)
    if changed:
        rows = [[f"`{key}`", *map(_quoted, values)] for key, values in changed.items()]
        parts.append(markdown_tables.table(["key", *names], rows))
    else:
        parts.append("The configs are the same.\n")
    rows = [[label, *map(_number, row)] for label, row in figures(runs).items()]
    parts += ["\n## Last figures\n", markdown_tables.table(["", *names], rows)]
    return "\n".join(parts)


def panels(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Returns (title, chart) with one line per run: losses by modality, and VISION_TOKENIZER's."""
    held_out = any(validation_key(m) in row for run in runs for row in run.rows for m in MODALITIES)
    found = []
    for modality in MODALITIES:
        key = validation_key(modality) if held_out else training_key(modality)
        lines = []
        for index, run in enumerate(runs):
            values = points(run.rows, key)
            if not held_out:
                values = chart.smoothed(values, max(1, len(values) // 40))
            lines.append(chart.Series(run.name, values, index, dots=held_out))
        if any(line.finite for line in lines):
            what = "validation" if held_out else "training"
            svg = chart.line_chart(lines, "step", "nats per token")
            found.append((f"{modality.capitalize()} tokens, {what}", svg))
    for title, key, label in VISION_TOKENIZER:
        lines = [
            chart.Series(run.name, points(run.rows, key), index, dots=key.startswith("validation"))
            for index, run in enumerate(runs)
        ]
        if any(len(line.finite) > 1 for line in lines):
            found.append((title, chart.line_chart(lines, "step", label)))
    return found


def build(runs: Sequence[Run]) -> str:
    """Returns the page as HTML."""
    names = [run.name for run in runs]
    changed = [[html.escape(key), *(html.escape(_setting(value)) for value in values)]
               for key, values in differences(runs).items()]  # fmt: skip
    last = [[html.escape(label), *map(_number, row)] for label, row in figures(runs).items()]
    charts = "".join(
        f'<div class="card"><h3>{html.escape(title)}</h3>{svg}</div>' for title, svg in panels(runs)
    )
    legend = page.legend([(name, index) for index, name in enumerate(names)])
    sections = (
        ("settings", "What differs",
         "Config keys that have other values." if changed else "The configs are the same.",
         page.table(("", *names), changed) if changed else ""),
        ("figures", "Last figures", f"Of training: a mean over the last {LAST_LINES} lines of the "
         "log. – : not measured.", page.table(("", *names), last)),
        ("curves", "Curves", "Dots: held-out data.", legend,
         f'<div class="charts">{charts}</div>'),
    )  # fmt: skip
    links = [(anchor, title) for anchor, title, *_ in sections] + [("commands", "Commands")]
    body = "".join(page.section(*parts) for parts in sections) + commands_section(runs)
    top = page.head("Comparison", ", ".join(names), links)
    return page.page(f"Comparison: {', '.join(names)}", f"{top}<main>{body}</main>")


def compare(paths: Sequence[pathlib.Path], output: pathlib.Path) -> str:
    """Reads the runs, writes comparison.html and .svg, and returns the tables as Markdown."""
    if len(paths) < 2:
        raise ValueError("comparing takes two run directories or more")
    runs = [read_run(path) for path in paths]
    write_atomically(output / "comparison.html", build(runs).encode())
    sheet = chart.sheet(panels(runs), [run.name for run in runs])
    write_atomically(output / "comparison.svg", sheet.encode())
    return markdown(runs)


def _mean_of_last(run: Run, key: str) -> float | None:
    values = run.values(key)[-LAST_LINES:]
    return statistics.fmean(values) if values else None


def _setting(value: Any) -> str:
    return "–" if value is None else str(value)


def _quoted(value: Any) -> str:
    return "–" if value is None else f"`{value}`"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with command("report.compare", __doc__, "folder to write into", arguments) as given:
        print(compare(given.runs, given.output))
        print(f"written: {given.output}/comparison.html, {given.output}/comparison.svg")


if __name__ == "__main__":
    main()
