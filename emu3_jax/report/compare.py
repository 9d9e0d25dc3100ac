"""Compare runs: python -m emu3_jax.report.compare RUN RUN ... --output=DIR

Reads config.json, metrics.jsonl and, if present, results.json (or evaluation/results.json) of each
run directory. Writes comparison.md (which config keys differ, and the last figures of each run) and
comparison.svg (validation loss by step, one panel per modality, or training loss if no validation
was logged; PSNR and codebook of vision tokenizers), and prints the tables.

Example:
  python -m emu3_jax.report.compare runs/nano runs/nano_no_dropout --output=runs/compared
"""

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from emu3_jax.figures import chart, markdown_tables
from emu3_jax.files import write_atomically
from emu3_jax.report import tables
from emu3_jax.report.runs import Run, command, differences, points, read_run
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
        rows = [[f"`{key}`", *map(_setting, values)] for key, values in changed.items()]
        parts.append(markdown_tables.table(["key", *names], rows))
    else:
        parts.append("The configs are the same.\n")
    rows = [[label, *map(_number, row)] for label, row in figures(runs).items()]
    parts += ["\n## Last figures\n", markdown_tables.table(["", *names], rows)]
    return "\n".join(parts)


def plot(runs: Sequence[Run]) -> str:
    """Returns an SVG with one line per run: losses by modality, and VISION_TOKENIZER's panels."""
    held_out = any(validation_key(m) in row for run in runs for row in run.rows for m in MODALITIES)
    panels = []
    for modality in MODALITIES:
        key = validation_key(modality) if held_out else training_key(modality)
        lines = []
        for index, run in enumerate(runs):
            found = points(run.rows, key)
            if not held_out:
                found = chart.smoothed(found, max(1, len(found) // 40))
            lines.append(chart.Series(run.name, found, index, dots=held_out))
        if any(line.finite for line in lines):
            what = "validation" if held_out else "training"
            label = "nats per token"
            svg = chart.line_chart(lines, "step", label)
            panels.append((f"{modality.capitalize()} tokens, {what}", svg))
    for title, key, label in VISION_TOKENIZER:
        lines = [
            chart.Series(run.name, points(run.rows, key), index, dots=key.startswith("validation"))
            for index, run in enumerate(runs)
        ]
        if any(len(line.finite) > 1 for line in lines):
            panels.append((title, chart.line_chart(lines, "step", label)))
    return chart.sheet(panels, [run.name for run in runs])


def compare(paths: Sequence[pathlib.Path], output: pathlib.Path) -> str:
    """Reads the runs, writes comparison.md and comparison.svg, and returns the Markdown."""
    if len(paths) < 2:
        raise ValueError("comparing takes two run directories or more")
    runs = [read_run(path) for path in paths]
    text = markdown(runs)
    write_atomically(output / "comparison.svg", plot(runs).encode())
    content = f"# {', '.join(run.name for run in runs)}\n\n{text}\n![losses](comparison.svg)\n"
    write_atomically(output / "comparison.md", content.encode())
    return text


def _mean_of_last(run: Run, key: str) -> float | None:
    values = run.values(key)[-LAST_LINES:]
    return statistics.fmean(values) if values else None


def _setting(value: Any) -> str:
    return "–" if value is None else f"`{value}`"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with command("report.compare", __doc__, "folder to write into", arguments) as given:
        print(compare(given.runs, given.output))
        print(f"written: {given.output}/comparison.md, {given.output}/comparison.svg")


if __name__ == "__main__":
    main()
