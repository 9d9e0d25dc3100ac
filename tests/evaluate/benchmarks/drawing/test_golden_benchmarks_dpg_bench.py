"""DPG-Bench against the official script, with its fault and without."""

import json

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.drawing.dpg_bench import read, results
from emu3_jax.evaluate.benchmarks.drawing.proposition_scores import read_propositions, score

FOLDER = golden.FOLDER / "dpg_bench"
EXPECTED = golden.expected("dpg_bench")
KEPT = EXPECTED["other_harnesses"]["first_row_kept"]
QUESTIONS = read_propositions(FOLDER / "dpg_bench.csv")


def judgements():
    answers = {}
    for line in (FOLDER / "judgements.jsonl").read_text().split("\n"):
        if line:
            row = json.loads(line)
            # A prompt without an image is not judged.
            if not (FOLDER / "images" / f"{row['item_id']}.png").is_file():
                continue
            crops = answers.setdefault(row["item_id"], [{} for _ in range(4)])
            crops[row["crop"]][row["proposition_id"]] = row["answer"]
    return answers


ANSWERS = judgements()


def assert_official(found):
    golden.assert_figures(found, {k: EXPECTED["figures"][k] for k in ("dpg_score", "l1", "l2")})
    wanted = {item["id"]: item["score"] for item in EXPECTED["per_item"]}
    assert found.scores == pytest.approx(wanted, abs=golden.TOLERANCE)


def test_golden_benchmarks_dpg_bench_official():
    found = score(QUESTIONS, ANSWERS)
    assert_official(found)
    dropped = {name for name, _ in EXPECTED["figures"]["pictures_dropped_by_the_script"]}
    assert ANSWERS.keys() - found.scores.keys() == dropped
    assert all(any(repr(name) in note for note in found.notes) for name in dropped)


def test_golden_benchmarks_dpg_bench_first_row_kept():
    found = score(QUESTIONS, ANSWERS, keep_first=True)
    golden.assert_figures(found, KEPT["figures"])
    assert found.scores == pytest.approx(KEPT["per_item"], abs=golden.TOLERANCE)
    whole = EXPECTED["figures"]["dpg_score_if_first_csv_row_were_kept"]
    assert found.figures["dpg_score"] == pytest.approx(whole)


def written(folder, first, printed):
    """The two result files as the script writes them; `first`: the first question is asked too."""
    lines = []
    dropped = ANSWERS.keys() - {item["id"] for item in EXPECTED["per_item"]}
    for name, crops in ANSWERS.items():
        for index, answers in enumerate(crops[:1] if name in dropped and not first else crops):
            left, top = 8 * (index % 2), 8 * (index // 2)
            lines += [
                f"out, of/{name}.png, ({left}, {top}, {left + 8}, {top + 8}), {question.text}, "
                f"{answers[question.number]}"
                for question in QUESTIONS[name]
                if question.row or first
            ]
    (folder / "run_detail.txt").write_text("\n".join(lines) + "\n")
    item = EXPECTED["per_item"][0]
    crops = ", ".join(map(str, item["crops"]))
    l1, l2 = ("".join(f"\t{k}: {v}\n" for k, v in printed[level].items()) for level in ("l1", "l2"))
    (folder / "run.txt").write_text(
        f"out, of/{item['id']}.png, {crops}, {item['score']}\nModel: out\nL1 category scores:\n{l1}"
        f"L2 category scores:\n{l2}Image path: out\nDPG-Bench score: {printed['dpg_score']}\n"
    )
    return folder / "run.txt"


def prompts():
    return [prompt for prompt in read(FOLDER) if prompt.id in ANSWERS]


def test_golden_benchmarks_dpg_bench_result_file(tmp_path):
    found = results(written(tmp_path, False, EXPECTED["figures"]), prompts(), False)
    assert_official(found)
    assert not any("prints" in note for note in found.notes)
    assert not any("first_row_kept" in name for name in found.figures)


def test_golden_benchmarks_dpg_bench_result_file_with_the_first_row(tmp_path):
    file = written(tmp_path, True, EXPECTED["figures"] | {"dpg_score": 12.5})
    found = results(file, prompts(), False)
    assert_official(found)
    kept = found.figures["first_row_kept/dpg_score"]
    assert kept == pytest.approx(KEPT["figures"]["dpg_score"])
    assert any("prints 12.5 for dpg_score" in note for note in found.notes)


def test_golden_benchmarks_dpg_bench_a_prompt_without_image(tmp_path):
    file = written(tmp_path, False, EXPECTED["figures"])
    lines = (tmp_path / "run_detail.txt").read_text().splitlines(keepends=True)
    name = EXPECTED["per_item"][-1]["id"]
    (tmp_path / "run_detail.txt").write_text("".join(x for x in lines if f"/{name}.png" not in x))
    with pytest.raises(ValueError, match=f"{len(ANSWERS) - 1} images are scored, expected"):
        results(file, prompts(), False)
    found = results(file, prompts(), True)
    assert any(note.startswith(f"only {len(ANSWERS) - 1} of") for note in found.notes)
    rest = [item["score"] for item in EXPECTED["per_item"][:-1]]
    assert found.figures["dpg_score"] == pytest.approx(100 * sum(rest) / len(rest))
