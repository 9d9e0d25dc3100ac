"""The exact text of questions about documents, charts and scenes, template by template.

Sources: lmms-eval 75571cf, tasks/{docvqa,infovqa,chartqa,ocrbench,mmvet}/*.yaml; VLMEvalKit
e8e78f0, dataset/image_vqa.py (a suffix for the set of DocVQA, InfoVQA and ChartQA; none for
OCRBench and MMVet); LLaVA c121f04, docs/Evaluation.md.
"""

import pytest

from emu3_jax.evaluate.benchmarks.benchmark import Question
from emu3_jax.evaluate.benchmarks.templates import TEMPLATES

ASKED = "What is written?"
SHORT = ASKED + "\nAnswer the question using a single word or phrase."
WORD = ASKED + "\nAnswer the question with a single word."
STEPS = (
    "First please perform reasoning, and think step by step to provide best answer to the "
    f"following question: \n\n{ASKED}"
)
TEXTS = {
    "docvqa": {"emu3": ASKED, "llava": SHORT, "lmms_eval": SHORT, "vlmevalkit": SHORT},
    "infovqa": {"emu3": ASKED, "llava": SHORT, "lmms_eval": SHORT, "vlmevalkit": SHORT},
    "chartqa": {"emu3": ASKED, "llava": SHORT, "lmms_eval": WORD, "vlmevalkit": SHORT},
    "ocrbench": {"emu3": ASKED, "llava": SHORT, "lmms_eval": ASKED, "vlmevalkit": ASKED},
    "mmvet": {"emu3": ASKED, "llava": ASKED, "lmms_eval": STEPS, "vlmevalkit": ASKED},
}


@pytest.mark.parametrize("benchmark", TEXTS)
@pytest.mark.parametrize("template", ["emu3", "llava", "lmms_eval", "vlmevalkit"])
def test_text(benchmark, template):
    kind = "long" if benchmark == "mmvet" else "short"
    question = Question("1", ASKED, (), None, kind)
    assert TEMPLATES[template].text(question, benchmark) == TEXTS[benchmark][template]
