"""GenEval: objects, numbers, colours and positions; arXiv 2310.11513, djghosh13/geneval (af4902f).

Released: evaluation_metadata.jsonl, 553 prompts of six tasks (shipped, MIT). Four images a prompt
in <index>/samples/<sample>.png beside <index>/metadata.jsonl; the scorer passes over other names.
Result file: results.jsonl of evaluate_images.py, a line an image. Its optional grid.png, which no
scorer reads, is not written.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from emu3_jax import shipped
from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.drawing.drawing import (
    DrawingBenchmark,
    Prompt,
    Results,
    check_folder,
    check_prompts,
    check_whole,
)
from emu3_jax.evaluate.benchmarks.drawing.object_checks import judge
from emu3_jax.files import write_atomically

FILE = "evaluation_metadata.jsonl"
SHIPPED = shipped.ASSETS / "benchmarks" / "geneval" / FILE
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SAMPLES = 4


def read(data: pathlib.Path | None, version: str = "") -> list[Prompt]:
    """The prompts of a folder, of a file, or of the shipped list."""
    file = SHIPPED if data is None else data / FILE if data.is_dir() else data
    prompts = []
    for where, row in reading.json_lines(file):
        tag, include, exclude, text = reading.fields(
            where, {"exclude": []} | row, tag=str, include=list, exclude=list, prompt=str
        )
        if tag not in TASKS:
            raise ValueError(f"{where}: tag is {tag!r}, expected one of {TASKS}")
        for asked in include + exclude:
            reading.fields(where, asked, **{"class": str, "count": int})
        attributes = {"tag": tag, "metadata": row}
        prompts.append(Prompt(f"{len(prompts):05d}", text, SAMPLES, attributes=attributes))
    check_prompts(prompts, file)
    return prompts


def path(prompt: Prompt, sample: int) -> str:
    """<index>/samples/<sample>.png, five and four digits."""
    return f"{prompt.id}/samples/{sample:04d}.png"


def finish(folder: pathlib.Path, prompts: Sequence[Prompt]) -> None:
    """Checks the samples and writes metadata.jsonl beside them."""
    check_folder(folder, prompts, path)
    ids = {prompt.id for prompt in prompts}
    others = sorted(p.name for p in folder.iterdir() if p.name.isdigit() and p.name not in ids)
    if others:
        raise ValueError(
            f"{folder / others[0]} is of no prompt here, and the scorer would count it"
        )
    for prompt in prompts:
        line = json.dumps(prompt.attributes["metadata"])
        write_atomically(folder / prompt.id / "metadata.jsonl", line)


def results(file: pathlib.Path, prompts: Sequence[Prompt], partial: bool = False) -> Results:
    """The figures of a results.jsonl: those of summary_scores.py, not rounded."""
    expected = {path(p, sample): p for p in prompts for sample in range(p.samples)}
    rows: dict[str, Mapping[str, Any]] = {}
    for where, row in reading.json_lines(file):
        name, metadata = reading.fields(where, row, filename=str, metadata=str)
        name = "/".join(pathlib.PurePosixPath(name).parts[-3:])
        if not isinstance(row.get("correct"), bool):
            raise ValueError(f"{where}: correct is {row.get('correct')!r}, expected true or false")
        if name not in expected or name in rows:
            problem = "occurs twice" if name in rows else "is no image of these prompts"
            raise ValueError(f"{where}: {name!r} {problem}")
        if reading.json_text(metadata, where) != expected[name].attributes["metadata"]:
            raise ValueError(f"{where}: the metadata are not those of the prompt of {name!r}")
        rows[name] = row
    notes = check_whole(len(rows), len(expected), "images", file, partial)
    notes.append("overall is the mean of the means of the tasks, not of the images")
    scores = {name: float(row["correct"]) for name, row in rows.items()}
    notes += _judged_otherwise(rows, expected)
    return Results(scores, _figures(rows, expected), notes)


def _figures(
    rows: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Prompt]
) -> dict[str, float]:
    tasks: dict[str, list[bool]] = {}
    # As in the scorer, prompts with equal metadata are one.
    asked: dict[str, list[bool]] = {}
    for name, row in rows.items():
        tasks.setdefault(expected[name].attributes["tag"], []).append(row["correct"])
        asked.setdefault(row["metadata"], []).append(row["correct"])
    figures = {"overall": mean([mean(correct) for correct in tasks.values()])}
    for task, correct in tasks.items():
        figures[f"{task}/score"] = mean(correct)
        figures[f"{task}/correct"] = sum(correct)
        figures[f"{task}/images"] = len(correct)
    figures["correct_images"] = mean([row["correct"] for row in rows.values()])
    figures["correct_prompts"] = mean([any(correct) for correct in asked.values()])
    return figures | {"images": len(rows), "prompts": len(asked)}


def _judged_otherwise(
    rows: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Prompt]
) -> list[str]:
    """A note if the boxes of images of prompts without colours say other than the file."""
    wrong = []
    for name, row in rows.items():
        metadata = expected[name].attributes["metadata"]
        if "details" in row and not any("color" in asked for asked in metadata["include"]):
            correct, _ = judge(
                reading.json_text(row["details"], f"details of {name}"), metadata, lambda *_: ()
            )
            wrong += [name] if correct != row["correct"] else []
    if not wrong:
        return []
    return [f"boxes and verdict disagree on {len(wrong)} images, the first is {wrong[0]}"]


GENEVAL = DrawingBenchmark(read, path, finish, results, headline="overall")
