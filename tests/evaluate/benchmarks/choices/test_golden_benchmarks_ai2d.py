"""AI2D in both forms against lmms-eval and VLMEvalKit."""

from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.choices.ai2d import AI2D, TABLE, read

QUESTIONS = read(golden.FOLDER / "ai2d")
ANSWERS = golden.answers("ai2d", QUESTIONS)
TABLE_QUESTIONS = read(golden.FOLDER / "ai2d" / TABLE)
TABLE_ANSWERS = golden.answers("ai2d", TABLE_QUESTIONS)
EXPECTED = golden.expected("ai2d")
VLMEVALKIT = EXPECTED["other_harnesses"]["vlmevalkit"]


def test_golden_benchmarks_ai2d_lmms_eval():
    for questions, answers in ((QUESTIONS, ANSWERS), (TABLE_QUESTIONS, TABLE_ANSWERS)):
        scored = AI2D.rules["lmms_eval"](questions, answers)
        golden.assert_figures(scored, {"accuracy": EXPECTED["figures"]["lmms_eval_accuracy"]})
        golden.assert_scores(scored, questions, EXPECTED["per_item"])


def test_golden_benchmarks_ai2d_vlmevalkit():
    scored = AI2D.rules["vlmevalkit"](TABLE_QUESTIONS, TABLE_ANSWERS)
    golden.assert_figures(scored, EXPECTED["figures"]["vlmevalkit"])
    golden.assert_figures(scored, VLMEVALKIT["figures"])
    golden.assert_scores(scored, TABLE_QUESTIONS, VLMEVALKIT["per_item"])
    # The parquet files have no categories.
    scored = AI2D.rules["vlmevalkit"](QUESTIONS, ANSWERS)
    golden.assert_figures(scored, {"Overall": VLMEVALKIT["figures"]["Overall"]})
    golden.assert_scores(scored, QUESTIONS, VLMEVALKIT["per_item"])


def test_golden_benchmarks_ai2d_forms_are_the_same_questions():
    for parquet, table in zip(QUESTIONS, TABLE_QUESTIONS, strict=True):
        assert (parquet.id, parquet.text, parquet.truth) == (table.id, table.text, table.truth)
        assert parquet.options == table.options
