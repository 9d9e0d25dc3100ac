"""GenEval against the official scorer: figures, and the verdict on every image from its boxes."""

import json
import re

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.drawing.geneval import read, results
from emu3_jax.evaluate.benchmarks.drawing.object_checks import judge

FOLDER = golden.FOLDER / "geneval"
EXPECTED = golden.expected("geneval")
PROMPTS = read(FOLDER)
# Lines may be missing in golden data.
RESULTS = results(FOLDER / "results.jsonl", PROMPTS, True)


def lines(name):
    return [json.loads(line) for line in (FOLDER / name).read_text().split("\n") if line]


def test_golden_benchmarks_geneval_figures():
    figures, wanted = RESULTS.figures, EXPECTED["figures"]
    assert figures["overall"] == pytest.approx(wanted["overall"], abs=golden.TOLERANCE)
    assert round(figures["overall"], 5) == wanted["overall_printed"]
    for name in ("images", "prompts"):
        assert figures[name] == wanted[name]
    for name in ("correct_images", "correct_prompts"):
        assert round(100 * figures[name], 2) == wanted[f"percent_{name}"]
    for task, numbers in wanted["per_tag"].items():
        for name in ("correct", "images", "score"):
            assert figures[f"{task}/{name}"] == pytest.approx(numbers[name])
        assert round(100 * figures[f"{task}/score"], 2) == numbers["printed_percent"]


def test_golden_benchmarks_geneval_scores():
    wanted = {item["id"].removeprefix("images/"): item["score"] for item in EXPECTED["per_item"]}
    assert RESULTS.scores == wanted


def test_golden_benchmarks_geneval_says_what_is_missing():
    whole = sum(prompt.samples for prompt in PROMPTS)
    missing = whole - len(EXPECTED["per_item"])
    assert bool(missing) == any("scored" in note for note in RESULTS.notes)
    if missing:
        with pytest.raises(ValueError, match=f"{whole - missing} images are scored"):
            results(FOLDER / "results.jsonl", PROMPTS, False)


def reasons(text):
    """The lines; directions that are found have no order in the scorer."""
    parts = [re.split("found (.*) target$", line) for line in text.split("\n")]
    return [(part[0], sorted(part[1].split(" and ")) if part[1:] else []) for part in parts]


def test_golden_benchmarks_geneval_verdicts():
    metadata = {
        f"images/{prompt.id}/samples/{sample:04d}.png": prompt.attributes["metadata"]
        for prompt in PROMPTS
        for sample in range(prompt.samples)
    }
    colors = {
        (row["filename"], known["class"], tuple(known["box"])): known["color"]
        for row in lines("given_colors.jsonl")
        for known in row["colors"]
    }
    wanted = {item["id"]: item for item in EXPECTED["per_item"]}
    boxes = {row["id"]: row["answer"] for row in lines("predictions.jsonl")}
    for name in wanted:
        correct, reason = judge(
            boxes[name],
            metadata[name],
            lambda kind, boxes, name=name: [
                colors.get((name, kind, tuple(box)), "red") for box in boxes
            ],
        )
        assert correct == bool(wanted[name]["score"]), name
        assert reasons(reason) == reasons(wanted[name]["reason"]), name
