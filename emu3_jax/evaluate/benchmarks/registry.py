"""Benchmarks by name. A new benchmark is a file and a line here."""

from emu3_jax.evaluate.benchmarks.benchmark import QuestionBenchmark
from emu3_jax.evaluate.benchmarks.open_answers.gqa import GQA
from emu3_jax.evaluate.benchmarks.open_answers.textvqa import TEXTVQA
from emu3_jax.evaluate.benchmarks.open_answers.vqav2 import VQAV2
from emu3_jax.evaluate.benchmarks.yes_no.mme import MME
from emu3_jax.evaluate.benchmarks.yes_no.pope import POPE

QUESTIONS: dict[str, QuestionBenchmark] = {
    "pope": POPE,
    "mme": MME,
    "gqa": GQA,
    "vqav2": VQAV2,
    "textvqa": TEXTVQA,
}
