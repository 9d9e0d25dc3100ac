"""MMBench against VLMEvalKit, its authors' evaluator, and lmms-eval."""

from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.choices import letters
from emu3_jax.evaluate.benchmarks.choices.mmbench import COPY, MMBENCH, read

QUESTIONS = read(golden.FOLDER / "mmbench")
ANSWERS = golden.answers("mmbench", QUESTIONS)
EXPECTED = golden.expected("mmbench")
VIEWS = {
    "circular": "circular",
    "plain (first rotation)": "plain",
    "plain over all rotations": "plain_all_rotations",
    "circular, only empty fields missing": "circular_na_kept",
    "plain (first rotation), only empty fields missing": "plain_na_kept",
}


def groups(scored):
    """Index of a question → 1.0 if all its copies are right."""
    found = {}
    for question, score in zip(QUESTIONS, scored.scores, strict=True):
        base = str(int(question.id) % COPY)
        found[base] = min(found.get(base, 1.0), score.score)
    return found


def test_golden_benchmarks_mmbench_vlmevalkit():
    scored = MMBENCH.rules["vlmevalkit"](QUESTIONS, ANSWERS)
    golden.assert_figures(scored, {VIEWS[k]: v for k, v in EXPECTED["figures"].items()})
    golden.assert_scores(scored, QUESTIONS, EXPECTED["per_item"])
    first = [item for item in EXPECTED["per_item"] if "circular" in item]
    assert groups(scored) == {str(item["id"]): item["circular"] for item in first}
    of_id = {q.id: score.score for q, score in zip(QUESTIONS, scored.scores, strict=True)}
    assert {str(item["id"]): item["plain"] for item in first}.items() <= of_id.items()


def test_golden_benchmarks_mmbench_lmms_eval():
    scored = MMBENCH.rules["lmms_eval"](QUESTIONS, ANSWERS)
    harness = EXPECTED["other_harnesses"]["lmms_eval_circular_static"]
    golden.assert_figures(scored, harness["figures"])
    assert groups(scored) == harness["per_group"]


def test_golden_benchmarks_mmbench_options_that_pandas_loses():
    """Where keeping the text of such options changes a question, the question is in a note."""
    depending = {str(base) for base in EXPECTED["base_items_that_depend_on_the_NA_reading"]}
    lost = {q.id for q in QUESTIONS if letters.seen_by_pandas(q.options) != q.options}
    assert depending <= lost
    notes = " ".join(MMBENCH.rules["vlmevalkit"](QUESTIONS, ANSWERS).notes)
    assert all(base in notes for base in depending)
