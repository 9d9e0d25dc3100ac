"""Result files of scorers that are of other prompts, or not of all."""

import json

import pytest

from emu3_jax.evaluate.benchmarks.drawing.object_checks import judge, relations
from emu3_jax.evaluate.benchmarks.drawing.t2i_compbench import blip_vqa
from emu3_jax.evaluate.benchmarks.drawing.vbench import DIMENSIONS, EVERY_CLIP
from emu3_jax.evaluate.benchmarks.registry import DRAWINGS

GENEVAL, COMPBENCH = DRAWINGS["geneval"], DRAWINGS["t2i_compbench"]
VBENCH, DPG_BENCH = DRAWINGS["vbench"], DRAWINGS["dpg_bench"]


@pytest.fixture
def prompts():
    return GENEVAL.read(None, "")[:2]


def rows(prompts):
    return [
        {
            "filename": f"/somewhere/{GENEVAL.path(prompt, sample)}",
            "tag": "single_object",
            "prompt": prompt.text,
            "correct": sample == 0,
            "reason": "",
            "metadata": json.dumps(prompt.attributes["metadata"]),
            "details": json.dumps({"bench": [[0, 0, 9, 9, 0.9]]} if sample == 0 else {}),
        }
        for prompt in prompts
        for sample in range(prompt.samples)
    ]


def geneval(tmp_path, prompts, lines, partial=False):
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return GENEVAL.results(file, prompts, partial)


def test_geneval_verdicts_are_checked_against_the_boxes(tmp_path, prompts):
    found = geneval(tmp_path, prompts, rows(prompts))
    assert found.figures["overall"] == 0.25
    assert found.scores["00001/samples/0000.png"] == 1.0
    # The second prompt asks for a cow; there is only a bench.
    assert any("disagree on 1 images, the first is 00001/samples/0000" in n for n in found.notes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: lines.pop(), "7 images are scored, expected 8"),
        (lambda lines: lines.append(lines[0]), ":9: '00000/samples/0000.png' occurs twice"),
        (
            lambda lines: lines[1].update(filename="00009/samples/0000.png"),
            ":2: '00009/samples/0000.png' is no image of these prompts",
        ),
        (lambda lines: lines[2].update(correct="yes"), ":3: correct is 'yes', expected true or"),
        (
            lambda lines: lines[3].update(metadata=lines[7]["metadata"]),
            ":4: the metadata are not those of the prompt",
        ),
        (lambda lines: lines[3].update(metadata="{"), ":4: not JSON"),
        (lambda lines: lines[3].pop("metadata"), ":4: the field 'metadata' is missing"),
    ],
)
def test_geneval_results_of_other_images(tmp_path, prompts, change, sentence):
    lines = rows(prompts)
    change(lines)
    with pytest.raises(ValueError, match=sentence):
        geneval(tmp_path, prompts, lines)


def test_geneval_results_of_a_part(tmp_path, prompts):
    found = geneval(tmp_path, prompts, rows(prompts)[:5], True)
    assert found.figures["overall"] == 0.4
    assert any(note.startswith("only 5 of 8 images are scored") for note in found.notes)
    with pytest.raises(ValueError, match="0 images are scored"):
        geneval(tmp_path, prompts, [], True)


def test_geneval_directions():
    assert relations((0, 0, 2, 2), (10, 0, 12, 2)) == ["left of"]
    assert relations((10, 10, 12, 12), (0, 0, 2, 2)) == ["right of", "below"]
    assert relations((0, 0, 10, 10), (1, 0, 11, 10)) == []
    # 1 pixel beyond a tenth of both sizes, but only a third of the distance.
    assert relations((0, 0, 10, 10), (3, 0, 13, 10)) == []


def test_geneval_reasons():
    asked = {
        "include": [
            {"class": "dog", "count": 1, "color": "red"},
            {"class": "cat", "count": 1, "position": ["above", 0]},
        ],
        "exclude": [{"class": "cat", "count": 2}],
    }
    boxes = {"dog": [(0, 9, 2, 11)], "cat": [(0, 0, 2, 2), (5, 5, 9, 9)]}
    assert judge(boxes | {"cat": boxes["cat"][:1]}, asked, lambda *_: ["red"]) == (True, "")
    correct, reason = judge(boxes, asked, lambda *_: ["blue"])
    assert not correct
    assert reason.split("\n") == [
        "expected red dog>=1, found 0 red; and 1 blue",
        "no target for cat to be above",
        "expected cat<2, found 2",
    ]


def test_blip_vqa_leaves_out_what_is_no_object():
    assert blip_vqa([], []) == 1.0
    assert blip_vqa(["a cat", "the left", "top"], [0.5, 0.1, 0.1]) == 0.5
    assert blip_vqa(["a cat"] * 9, [1.0] * 8 + [0.0]) == 1.0


def compbench(tmp_path, category, scores):
    (tmp_path / f"{category}_val.txt").write_text("a red cat\n")
    for place, content in scores.items():
        folder = tmp_path / "run" / category / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vqa_result.json").write_text(json.dumps(content))
    return tmp_path / "run", COMPBENCH.read(tmp_path, category)


def answers(values):
    return [{"question_id": n, "answer": value} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (answers(["0.5"] * 9), "9 images are scored, expected 10"),
        (answers(["0.5"] * 9 + ["yes"]), "entry 9: answer is 'yes', expected a number"),
        (answers([0.5] * 9) + [{"answer": 1}], "entry 9: question_id is None"),
        ([{"question_id": 0, "answer": 1}] * 10, "entry 1: question_id is 0, expected a new"),
        ({}, "vqa_result.json: expected a list"),
    ],
)
def test_t2i_compbench_results_of_other_images(tmp_path, content, sentence):
    run, prompts = compbench(tmp_path, "color", {"annotation_blip": content})
    with pytest.raises(ValueError, match=sentence):
        COMPBENCH.results(run, prompts, False)


def test_t2i_compbench_categories_that_are_not_scored(tmp_path):
    run, prompts = compbench(tmp_path, "shape", {"annotation_blip": answers([1.0] * 10)})
    _, more = compbench(tmp_path, "color", {})
    with pytest.raises(ValueError, match=r"color/annotation_blip/vqa_result\.json does not exist"):
        COMPBENCH.results(run, prompts + more, False)
    found = COMPBENCH.results(run, prompts + more, True)
    assert found.figures == {"shape/blip_vqa": 1.0}
    assert "color is not scored" in found.notes


PLACES = ("annotation_blip", "labels/annotation_obj_detection_2d", "annotation_clip")


def test_t2i_compbench_3_in_1_by_place_and_by_number(tmp_path):
    values = [0.0] * 5 + [1.0] * 5
    scores = dict.fromkeys(PLACES, answers(values))
    scores[PLACES[1]] = answers(values)[::-1]
    for kind in ("spatial", "action"):
        (tmp_path / f"complex_val_{kind}.txt").write_text("A RED cat.\n" * (kind == "action"))
    run, prompts = compbench(tmp_path, "complex", scores)
    assert prompts[0].attributes["relation"] == "action"
    (tmp_path / "complex_val_spatial.txt").write_text("a red cat. And more.\n")
    run, prompts = compbench(tmp_path, "complex", scores)
    assert prompts[0].attributes["relation"] == "spatial"  # it comes first
    found = COMPBENCH.results(run, prompts, False)
    assert [found.scores[f"complex/{n}"] for n in (0, 9)] == [0.5, 0.5]
    assert found.figures["complex/3_in_1_by_number"] == 0.5
    assert any("not in the order of the images" in note for note in found.notes)


def test_t2i_compbench_3_in_1_needs_its_lists_and_all_images(tmp_path):
    scores = dict.fromkeys(PLACES, answers([0.5] * 10))
    run, prompts = compbench(tmp_path, "complex", scores)
    with pytest.raises(ValueError, match=r"3-in-1 needs complex_val_spatial\.txt"):
        COMPBENCH.results(run, prompts, False)
    run, prompts = compbench(tmp_path, "complex", scores | {PLACES[0]: answers([0.5] * 9)})
    with pytest.raises(ValueError, match="must have the images 0 to 9"):
        COMPBENCH.results(run, prompts, False)


def vbench(tmp_path, content, name="a_eval_results.json"):
    info = [{"prompt_en": "a cat", "dimension": list(DIMENSIONS)}]
    (tmp_path / "info.json").write_text(json.dumps(info))
    (tmp_path / "run/scores").mkdir(parents=True, exist_ok=True)
    (tmp_path / "run/scores" / name).write_text(json.dumps(content))
    return tmp_path / "run", VBENCH.read(tmp_path / "info.json", "")


def test_vbench_scored_on_fewer_clips(tmp_path):
    whole = {name: [1.0, [{}] * 5] for name in DIMENSIONS}
    place, prompts = vbench(tmp_path, whole)
    assert VBENCH.results(place, prompts, False).figures["raw/color"] == 1.0
    for name in EVERY_CLIP:
        place, prompts = vbench(tmp_path, whole | {name: [1.0, [{}] * 4]})
        with pytest.raises(ValueError, match=f"{name} is scored on 4 of 5 clips"):
            VBENCH.results(place, prompts, False)
    assert any("4 of 5" in note for note in VBENCH.results(place, prompts, True).notes)
    place, prompts = vbench(tmp_path, whole | {"color": [1.0, [{}]]})
    VBENCH.results(place, prompts, False)  # only clips that show the object count


def test_vbench_other_files(tmp_path):
    whole = {name: [0.5, []] for name in DIMENSIONS}
    vbench(tmp_path, ["a", "list"], "b_full_info.json")
    vbench(tmp_path, whole | {"beauty": [1.0, []]})
    found = VBENCH.results(tmp_path / "run", [], False)
    assert any("'beauty' is no dimension of VBench" in note for note in found.notes)
    vbench(tmp_path, whole | {"color": "0.5"})
    with pytest.raises(ValueError, match=r"color is '0.5', expected \[score, clips\]"):
        VBENCH.results(tmp_path / "run", [], False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no result file"):
        VBENCH.results(tmp_path / "empty", [], False)


def dpg(tmp_path, details, text="DPG-Bench score: 100.0\n"):
    (tmp_path / "prompts").mkdir(exist_ok=True)
    (tmp_path / "prompts/12.txt").write_text("a cat")
    (tmp_path / "dpg_bench.csv").write_text(
        "item_id,proposition_id,dependency,tuple,question_natural_language\n"
        '12,1,0,entity - whole (cat),"Is there, in it, a cat?"\n'
        "12,2,0,global (x),Is it red?\n"
    )
    (tmp_path / "r_detail.txt").write_text(details)
    (tmp_path / "r.txt").write_text(text)
    return tmp_path / "r.txt", DPG_BENCH.read(tmp_path, "")


CROPS = ["(0, 0, 8, 8)", "(8, 0, 16, 8)", "(0, 8, 8, 16)", "(8, 8, 16, 16)"]
WHOLE = "".join(f"a/12.png, {crop}, Is it red?, yes\n" for crop in CROPS)


@pytest.mark.parametrize(
    ("details", "text", "sentence"),
    [
        (WHOLE.replace("/12.", "/13."), "", "r_detail.txt:1: '13' is no image of these prompts"),
        (WHOLE.replace("red", "blue"), "", r":1: expected the answer to 'Is it red\?' about '12'"),
        (WHOLE + WHOLE, "", "expected no further answer about '12'"),
        ("Failed", "", r"r_detail\.txt:1: expected 'path, \(crop\), question, answer'"),
        (WHOLE[: WHOLE.index("\n") + 1], "", "answers about 1 crops, expected 4"),
        ("", "", "0 images are scored, expected 1"),
        (WHOLE, "", r"r\.txt: expected a result file of compute_dpg_bench\.py"),
    ],
)
def test_dpg_bench_results_of_other_images(tmp_path, details, text, sentence):
    file, prompts = dpg(tmp_path, details, text)
    with pytest.raises(ValueError, match=sentence):
        DPG_BENCH.results(file, prompts, False)


def test_dpg_bench_questions_with_commas(tmp_path):
    first = "".join(f"a/12.png, {crop}, Is there, in it, a cat?, no\n" for crop in CROPS)
    lines = zip(first.splitlines(), WHOLE.splitlines(), strict=True)
    file, prompts = dpg(tmp_path, "".join(f"{a}\n{b}\n" for a, b in lines))
    found = DPG_BENCH.results(file, prompts, False)
    assert found.figures["dpg_score"] == 100.0
    assert found.figures["first_row_kept/dpg_score"] == 50.0
    assert found.figures["first_row_kept/l1/entity"] == 0.0


def test_dpg_bench_without_questions(tmp_path):
    file, _ = dpg(tmp_path, WHOLE)
    (tmp_path / "dpg_bench.csv").unlink()
    with pytest.raises(ValueError, match=r"the figures need dpg_bench\.csv"):
        DPG_BENCH.results(file, DPG_BENCH.read(tmp_path, ""), False)
