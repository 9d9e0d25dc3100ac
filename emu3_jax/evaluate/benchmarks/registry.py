"""Benchmarks by name. A new benchmark is a file and a line here."""

from emu3_jax.evaluate.benchmarks.benchmark import QuestionBenchmark
from emu3_jax.evaluate.benchmarks.open_answers.chartqa import CHARTQA
from emu3_jax.evaluate.benchmarks.open_answers.document_questions import DOCVQA, INFOVQA
from emu3_jax.evaluate.benchmarks.open_answers.mmvet import MMVET
from emu3_jax.evaluate.benchmarks.open_answers.ocrbench import OCRBENCH
from emu3_jax.evaluate.benchmarks.yes_no.pope import POPE

QUESTIONS: dict[str, QuestionBenchmark] = {
    "pope": POPE,
    "docvqa": DOCVQA,
    "infovqa": INFOVQA,
    "chartqa": CHARTQA,
    "ocrbench": OCRBENCH,
    "mmvet": MMVET,
}
