"""The exact texts that models read for benchmarks of short answers."""

import pytest

from emu3_jax.evaluate.benchmarks.benchmark import Question
from emu3_jax.evaluate.benchmarks.templates import TEMPLATES

SHORT = "\nAnswer the question using a single word or phrase."
YES_NO = " Please answer yes or no."


def text(template, benchmark, asked, kind):
    return TEMPLATES[template].text(Question("1", asked, (), None, kind), benchmark)


@pytest.mark.parametrize(
    ("template", "ending"),
    [("emu3", ""), ("llava", SHORT), ("lmms_eval", SHORT), ("vlmevalkit", YES_NO)],
)
def test_pope(template, ending):
    assert text(template, "pope", "Is there a dog?", "yes_no") == "Is there a dog?" + ending


@pytest.mark.parametrize(
    ("template", "ending"),
    [("emu3", YES_NO), ("llava", SHORT), ("lmms_eval", SHORT), ("vlmevalkit", YES_NO)],
)
def test_mme(template, ending):
    """Its questions end in words of their own, which LLaVA and lmms-eval take away."""
    asked = "Is there a dog?" + YES_NO
    assert text(template, "mme", asked, "yes_no") == "Is there a dog?" + ending


@pytest.mark.parametrize("benchmark", ["gqa", "vqav2", "textvqa"])
@pytest.mark.parametrize(
    ("template", "ending"), [("emu3", ""), ("llava", SHORT), ("vlmevalkit", SHORT)]
)
def test_open_questions(benchmark, template, ending):
    assert text(template, benchmark, "what Is it?", "short") == "what Is it?" + ending


def test_open_questions_of_lmms_eval():
    """It writes TextVQA's questions, not their OCR tokens, with one capital."""
    asked = "what Is it?\nReference OCR token: STOP, Go"
    assert text("lmms_eval", "vqav2", asked, "short") == asked + SHORT
    wanted = "What is it?\nReference OCR token: STOP, Go" + SHORT
    assert text("lmms_eval", "textvqa", asked, "short") == wanted
