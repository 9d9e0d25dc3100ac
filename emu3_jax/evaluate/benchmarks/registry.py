"""Benchmarks by name. A new benchmark is a file and a line here."""

from emu3_jax.evaluate.benchmarks.benchmark import QuestionBenchmark
from emu3_jax.evaluate.benchmarks.choices.ai2d import AI2D
from emu3_jax.evaluate.benchmarks.choices.mmbench import MMBENCH
from emu3_jax.evaluate.benchmarks.choices.mmmu import MMMU
from emu3_jax.evaluate.benchmarks.choices.realworldqa import REALWORLDQA
from emu3_jax.evaluate.benchmarks.choices.scienceqa import SCIENCEQA
from emu3_jax.evaluate.benchmarks.choices.seedbench import SEEDBENCH
from emu3_jax.evaluate.benchmarks.yes_no.pope import POPE

QUESTIONS: dict[str, QuestionBenchmark] = {
    "pope": POPE,
    "mmbench": MMBENCH,
    "seedbench": SEEDBENCH,
    "scienceqa": SCIENCEQA,
    "ai2d": AI2D,
    "realworldqa": REALWORLDQA,
    "mmmu": MMMU,
}
