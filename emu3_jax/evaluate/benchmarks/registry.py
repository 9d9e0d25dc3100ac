"""Benchmarks by name. A new benchmark is a file and a line here."""

from emu3_jax.evaluate.benchmarks.benchmark import QuestionBenchmark
from emu3_jax.evaluate.benchmarks.open_answers.own_questions import OWN_QUESTIONS
from emu3_jax.evaluate.benchmarks.yes_no.pope import POPE

QUESTIONS: dict[str, QuestionBenchmark] = {
    "pope": POPE,
    "own_questions": OWN_QUESTIONS,
}
