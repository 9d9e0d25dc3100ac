"""VBench's aggregates against its own script."""

import json

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.drawing.vbench import DIMENSIONS, aggregate, results

FOLDER = golden.FOLDER / "vbench"
EXPECTED = golden.expected("vbench")


def items(model):
    prefix = f"{model}/"
    return {
        item["id"].removeprefix(prefix).replace(" ", "_"): item
        for item in EXPECTED["per_item"]
        if item["id"].startswith(prefix)
    }


@pytest.mark.parametrize("model", EXPECTED["figures"])
def test_golden_benchmarks_vbench(model):
    found = results(FOLDER / model, [], True)
    wanted = EXPECTED["figures"][model]
    golden.assert_figures(found, {k: wanted[k] for k in ("quality", "semantic", "total")})
    normalised = {
        f"normalised/{name.replace(' ', '_')}": value
        for name, value in wanted["normalised_times_weight"].items()
    }
    golden.assert_figures(found, normalised)
    scores = {name: item["score"] for name, item in items(model).items()}
    assert found.scores == pytest.approx(scores, abs=golden.TOLERANCE)
    raw = {name: item["raw"] for name, item in items(model).items() if item["raw"] is not None}
    assert {name: found.figures.get(f"raw/{name}") for name in DIMENSIONS if name in raw} == raw


@pytest.mark.parametrize("model", EXPECTED["figures"])
def test_golden_benchmarks_vbench_missing_dimensions(model):
    missing = [name for name, item in items(model).items() if item["raw"] is None]
    found = results(FOLDER / model, [], True)
    assert bool(missing) == ("present/total" in found.figures)
    if not missing:
        assert results(FOLDER / model, [], False).figures == found.figures
        return
    assert any(missing[0] in note for note in found.notes)
    with pytest.raises(ValueError, match=f"{len(missing)} of 16 dimensions are missing"):
        results(FOLDER / model, [], False)


def test_golden_benchmarks_vbench_answers():
    raw = {}
    for line in (FOLDER / "predictions.jsonl").read_text().split("\n"):
        if line:
            row = json.loads(line)
            model, name = row["id"].split("/")
            if row["answer"] is not None:
                raw.setdefault(model, {})[name.replace(" ", "_")] = row["answer"]
    for model, scores in raw.items():
        total = EXPECTED["figures"][model]["total"]
        assert aggregate(scores).figures["total"] == pytest.approx(total, abs=golden.TOLERANCE)
