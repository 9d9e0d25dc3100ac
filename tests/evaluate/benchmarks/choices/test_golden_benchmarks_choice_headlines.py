"""The figure that papers print is among those of each benchmark with options."""

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.registry import QUESTIONS

PRIMARY = {
    "mmbench": "mmbench",
    "seedbench": "seedbench_img",
    "scienceqa": "scienceqa_img",
    "ai2d": "ai2d",
    "realworldqa": "realworldqa",
    "mmmu": "mmmu_val",
}


@pytest.mark.parametrize(("name", "folder"), PRIMARY.items())
def test_golden_benchmarks_choice_headlines(name, folder):
    benchmark = QUESTIONS[name]
    questions = benchmark.read(golden.FOLDER / folder, "")
    answers = golden.answers(folder, questions, others=True)
    rule, figure = benchmark.headline.split("/", 1)
    wanted = golden.expected(folder)["primary"]["value"]
    figures = benchmark.rules[rule](questions, answers).figures
    assert figures[figure] == pytest.approx(wanted, abs=golden.TOLERANCE)
