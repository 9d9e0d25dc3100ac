"""The exact texts that the harnesses ask questions with options in."""

import pytest

from emu3_jax.evaluate.benchmarks.benchmark import Question
from emu3_jax.evaluate.benchmarks.templates import TEMPLATES

OPTIONS = {"A": "a cat", "B": "a {dog}"}
DIRECTLY = "Answer with the option's letter from the given choices directly."
PHRASE = "Answer the question using a single word or phrase."


def asked(template, benchmark, kind="choice", hint="", text="What is it?", options=OPTIONS):
    question = Question("1", text, (), "A", kind, options, hint)
    return TEMPLATES[template].text(question, benchmark)


@pytest.mark.parametrize("benchmark", ["mmbench", "seedbench", "scienceqa", "ai2d", "realworldqa"])
def test_llava(benchmark):
    wanted = f"What is it?\nA. a cat\nB. a {{dog}}\n{DIRECTLY}"
    assert asked("llava", benchmark) == wanted


@pytest.mark.parametrize("benchmark", ["seedbench", "scienceqa", "ai2d", "realworldqa"])
def test_lmms_eval(benchmark):
    assert asked("lmms_eval", benchmark) == asked("llava", benchmark)


def test_lmms_eval_mmbench():
    wanted = f"What is it? There are several options:\nA. a cat\nB. a {{dog}}\n\n{DIRECTLY}"
    assert asked("lmms_eval", "mmbench") == wanted
    assert asked("lmms_eval", "mmbench", hint="Look.") == "Look. " + wanted


def test_hints():
    assert asked("llava", "mmbench", hint="Look.").startswith("Look.\nWhat is it?\nA. a cat\n")
    for template in ("llava", "lmms_eval"):
        found = asked(template, "scienceqa", hint="Look.")
        assert found.startswith("Context: Look.\nWhat is it?\nA. a cat\n")


@pytest.mark.parametrize("benchmark", ["mmbench", "seedbench", "scienceqa", "ai2d", "realworldqa"])
def test_vlmevalkit(benchmark):
    wanted = (
        "Question: What is it?\nOptions:\nA. a cat\nB. a {dog}\n"
        "Please select the correct answer from the options above. \n"
    )
    assert asked("vlmevalkit", benchmark) == wanted
    assert asked("vlmevalkit", benchmark, hint="Look.") == "Hint: Look.\n" + wanted


@pytest.mark.parametrize("benchmark", ["mmbench", "seedbench", "mmmu"])
def test_emu3_adds_nothing(benchmark):
    assert asked("emu3", benchmark) == "What is it?\nA. a cat\nB. a {dog}"
    assert asked("emu3", benchmark, "short") == "What is it?"


def test_mmmu():
    wanted = f"What is it?\n(A) a cat\n(B) a {{dog}}\n\n{DIRECTLY}"
    assert asked("llava", "mmmu") == wanted
    wanted = f"What is it?\nA. a cat\nB. a {{dog}}\n\n{DIRECTLY}"
    assert asked("lmms_eval", "mmmu") == wanted
    assert asked("llava", "mmmu", "short") == f"What is it?\n{PHRASE}"
    assert asked("lmms_eval", "mmmu", "short") == f"What is it?\n\n{PHRASE}"
    assert asked("vlmevalkit", "mmmu", "short") == "Question: What is it?\n"


def test_realworldqa_is_asked_as_released():
    text = "What is it?\nA. a cat\nPlease answer directly with only the letter."
    for template in ("llava", "lmms_eval", "emu3"):
        assert asked(template, "realworldqa", "short", text=text) == text
