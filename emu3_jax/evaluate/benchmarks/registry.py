"""Benchmarks by name. A new benchmark is a file and a line here."""

from emu3_jax.evaluate.benchmarks.benchmark import QuestionBenchmark
from emu3_jax.evaluate.benchmarks.drawing.coco30k import COCO30K
from emu3_jax.evaluate.benchmarks.drawing.dpg_bench import DPG_BENCH
from emu3_jax.evaluate.benchmarks.drawing.drawing import DrawingBenchmark
from emu3_jax.evaluate.benchmarks.drawing.geneval import GENEVAL
from emu3_jax.evaluate.benchmarks.drawing.partiprompts import PARTIPROMPTS
from emu3_jax.evaluate.benchmarks.drawing.t2i_compbench import T2I_COMPBENCH
from emu3_jax.evaluate.benchmarks.drawing.vbench import VBENCH
from emu3_jax.evaluate.benchmarks.yes_no.pope import POPE

QUESTIONS: dict[str, QuestionBenchmark] = {
    "pope": POPE,
}

DRAWINGS: dict[str, DrawingBenchmark] = {
    "coco30k": COCO30K,
    "dpg_bench": DPG_BENCH,
    "geneval": GENEVAL,
    "partiprompts": PARTIPROMPTS,
    "t2i_compbench": T2I_COMPBENCH,
    "vbench": VBENCH,
}
