"""Benchmarks by name. A new benchmark is a file and a line here."""

from collections.abc import Mapping

from emu3_jax.config import named
from emu3_jax.evaluate.benchmarks.benchmark import QuestionBenchmark
from emu3_jax.evaluate.benchmarks.drawing.drawing import DrawingBenchmark
from emu3_jax.evaluate.benchmarks.open_answers.own_questions import OWN_QUESTIONS
from emu3_jax.evaluate.benchmarks.yes_no.pope import POPE

QUESTIONS: dict[str, QuestionBenchmark] = {
    "pope": POPE,
    "own_questions": OWN_QUESTIONS,
}

DRAWINGS: dict[str, DrawingBenchmark] = {}


def evaluator_of(entry: Mapping) -> str:
    """The evaluator of an entry that names a benchmark; ConfigError for an unknown one."""
    named.find("benchmark", entry["benchmark"], QUESTIONS | DRAWINGS)
    return "answers" if entry["benchmark"] in QUESTIONS else "drawings"
