"""T2I-CompBench against its own scripts: BLIP-VQA, 3-in-1 and positions."""

import json
import shutil

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.drawing.t2i_compbench import (
    blip_vqa,
    determine_position,
    path,
    read,
    results,
)

FOLDER = golden.FOLDER / "t2i_compbench"
EXPECTED = golden.expected("t2i_compbench")
FIGURES = EXPECTED["figures"]


def wanted(part):
    prefix = f"{part}/"
    return {i["id"]: i["score"] for i in EXPECTED["per_item"] if i["id"].startswith(prefix)}


def lines(name):
    return [json.loads(line) for line in (FOLDER / name).read_text().split("\n") if line]


def color_prompts(folder):
    """The prompts of the stored images, and how many images each has."""
    names = sorted(
        (file.name for file in (FOLDER / "color/samples").iterdir()),
        key=lambda name: int(name.split("_")[-1].split(".")[0]),
    )
    texts = list(dict.fromkeys(name.split("_")[0] for name in names))
    (folder / "color_val.txt").write_text("\n".join(texts) + "\n")
    return read(folder, "color"), names


def test_golden_benchmarks_t2i_compbench_products():
    found = {}
    for row in lines("color/chunk_probabilities.jsonl"):
        asked = row["noun_chunks"][: len(row["p_yes"])]
        found[f"color/{row['question_id']}"] = blip_vqa(asked, row["p_yes"])
    assert found == pytest.approx(wanted("color"), abs=golden.TOLERANCE)


def test_golden_benchmarks_t2i_compbench_color(tmp_path):
    prompts, names = color_prompts(tmp_path)
    target = tmp_path / "run/color/annotation_blip"
    shutil.copytree(FOLDER / "color/expected_annotation_blip", target)
    (target / "blip_vqa_score.txt").write_text(f"BLIP-VQA score:{FIGURES['blip_vqa']}")
    found = results(tmp_path / "run", prompts, len(names) < 10 * len(prompts))
    assert found.figures["color/blip_vqa"] == pytest.approx(FIGURES["blip_vqa"])
    assert found.scores == pytest.approx(wanted("color"), abs=golden.TOLERANCE)
    assert not any("prints" in note for note in found.notes)
    (target / "blip_vqa_score.txt").write_text("BLIP-VQA score:0.9")
    assert any("prints 0.9" in note for note in results(tmp_path / "run", prompts, True).notes)


def test_golden_benchmarks_t2i_compbench_names(tmp_path):
    prompts, names = color_prompts(tmp_path)
    samples = len(names) // len(prompts)
    found = [
        f"color/samples/{prompt.text}_{index * samples + sample:06d}.png"
        for index, prompt in enumerate(prompts)
        for sample in range(samples)
    ]
    assert [f"color/samples/{name}" for name in names] == found
    assert path(prompts[1], 3) == f"color/samples/{prompts[1].text}_000013.png"


def test_golden_benchmarks_t2i_compbench_three_in_one(tmp_path):
    shutil.copytree(FOLDER / "complex/scores", tmp_path / "complex")
    found = results(tmp_path, read(FOLDER / "complex/dataset", "complex"), False)
    assert found.figures["complex/3_in_1"] == pytest.approx(FIGURES["three_in_one"])
    assert found.figures["complex/clip"] == pytest.approx(FIGURES["clip_mean"])
    assert found.figures["complex/unidet"] == pytest.approx(FIGURES["unidet_2d_mean"])
    assert found.scores == pytest.approx(wanted("complex"), abs=golden.TOLERANCE)


def test_golden_benchmarks_t2i_compbench_positions():
    found = {
        row["id"]: determine_position(row["locality"], row["box1"], row["box2"])
        for row in lines("spatial/boxes.jsonl")
    }
    assert found == pytest.approx(wanted("spatial"), abs=golden.TOLERANCE)
