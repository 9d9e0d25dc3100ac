"""Benchmarks by name. A new benchmark is a file and a line here."""

from collections.abc import Mapping

from emu3_jax.config import named
from emu3_jax.evaluate.benchmarks.benchmark import QuestionBenchmark
from emu3_jax.evaluate.benchmarks.choices.ai2d import AI2D
from emu3_jax.evaluate.benchmarks.choices.mmbench import MMBENCH
from emu3_jax.evaluate.benchmarks.choices.mmmu import MMMU
from emu3_jax.evaluate.benchmarks.choices.realworldqa import REALWORLDQA
from emu3_jax.evaluate.benchmarks.choices.scienceqa import SCIENCEQA
from emu3_jax.evaluate.benchmarks.choices.seedbench import SEEDBENCH
from emu3_jax.evaluate.benchmarks.drawing.coco30k import COCO30K
from emu3_jax.evaluate.benchmarks.drawing.dpg_bench import DPG_BENCH
from emu3_jax.evaluate.benchmarks.drawing.drawing import DrawingBenchmark
from emu3_jax.evaluate.benchmarks.drawing.geneval import GENEVAL
from emu3_jax.evaluate.benchmarks.drawing.partiprompts import PARTIPROMPTS
from emu3_jax.evaluate.benchmarks.drawing.t2i_compbench import T2I_COMPBENCH
from emu3_jax.evaluate.benchmarks.drawing.vbench import VBENCH
from emu3_jax.evaluate.benchmarks.open_answers.chartqa import CHARTQA
from emu3_jax.evaluate.benchmarks.open_answers.document_questions import DOCVQA, INFOVQA
from emu3_jax.evaluate.benchmarks.open_answers.gqa import GQA
from emu3_jax.evaluate.benchmarks.open_answers.mmvet import MMVET
from emu3_jax.evaluate.benchmarks.open_answers.ocrbench import OCRBENCH
from emu3_jax.evaluate.benchmarks.open_answers.own_questions import OWN_QUESTIONS
from emu3_jax.evaluate.benchmarks.open_answers.textvqa import TEXTVQA
from emu3_jax.evaluate.benchmarks.open_answers.vqav2 import VQAV2
from emu3_jax.evaluate.benchmarks.yes_no.mme import MME
from emu3_jax.evaluate.benchmarks.yes_no.pope import POPE

QUESTIONS: dict[str, QuestionBenchmark] = {
    "pope": POPE,
    "mme": MME,
    "mmbench": MMBENCH,
    "mmvet": MMVET,
    "seedbench": SEEDBENCH,
    "gqa": GQA,
    "vqav2": VQAV2,
    "textvqa": TEXTVQA,
    "scienceqa": SCIENCEQA,
    "ocrbench": OCRBENCH,
    "chartqa": CHARTQA,
    "docvqa": DOCVQA,
    "infovqa": INFOVQA,
    "ai2d": AI2D,
    "realworldqa": REALWORLDQA,
    "mmmu": MMMU,
    "own_questions": OWN_QUESTIONS,
}

DRAWINGS: dict[str, DrawingBenchmark] = {
    "geneval": GENEVAL,
    "dpg_bench": DPG_BENCH,
    "t2i_compbench": T2I_COMPBENCH,
    "partiprompts": PARTIPROMPTS,
    "coco30k": COCO30K,
    "vbench": VBENCH,
}


def evaluator_of(entry: Mapping) -> str:
    """The evaluator of an entry that names a benchmark; ConfigError for an unknown one."""
    named.find("benchmark", entry["benchmark"], QUESTIONS | DRAWINGS)
    return "answers" if entry["benchmark"] in QUESTIONS else "drawings"
