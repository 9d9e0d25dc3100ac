"""How a question becomes the text that a model reads: prompt templates, as data.

Each harness asks in words of its own, which moves scores by points, so the template's name is
written beside every score. Sources: LLaVA docs/Evaluation.md (c121f04); VLMEvalKit
vlmeval/dataset/image_mcq.py, image_yorn.py, image_vqa.py (e8e78f0); lmms-eval tasks/*/*.yaml
(75571cf).
"""

import dataclasses
from collections.abc import Mapping

from emu3_jax.evaluate.benchmarks.benchmark import Kind, Question

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@dataclasses.dataclass(frozen=True)
class Template:
    """Texts around a question. The fields {hint}, {question} and {options} stand for its parts.

    Attributes:
      of_kind: kind of answer → the text.
      hint: how a hint is written; nothing without one.
      option: how an option is written, {letter} and {text}.
      of_benchmark: name of a benchmark → kind → text, where it differs.
      removed: name of a benchmark → an ending of its released questions that is taken away first.
    """

    of_kind: Mapping[Kind, str]
    hint: str = "{hint}\n"
    option: str = "{letter}. {text}\n"
    of_benchmark: Mapping[str, Mapping[Kind, str]] = dataclasses.field(default_factory=dict)
    removed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def text(self, question: Question, benchmark: str, kind: Kind | None = None) -> str:
        """The text of a question of a benchmark; marks of images are left as they are.

        `kind` asks for another kind of answer: "long" is the question without options.
        """
        asked = question.text.removesuffix(self.removed.get(benchmark, ""))
        options = "".join(
            self.option.format(letter=letter, text=text)
            for letter, text in question.options.items()
        )
        hint = self.hint.format(hint=question.hint) if question.hint else ""
        texts = self.of_kind | self.of_benchmark.get(benchmark, {})
        return texts[kind or question.kind].format(hint=hint, question=asked, options=options)


_PLAIN = "{hint}{question}"
_LLAVA = Template(
    {
        "yes_no": _PLAIN + SHORT,
        "choice": _PLAIN + "\n{options}" + LETTER,
        "short": _PLAIN + SHORT,
        "long": _PLAIN,
    },
    of_benchmark={
        "scienceqa": {"choice": "{hint}{question}\n{options}" + LETTER},
        "mmmu": {
            "choice": "{question}\n\n{options}\n" + LETTER,
            "short": "{question}\n\n" + SHORT.strip(),
        },
        "realworldqa": {"choice": "{question}", "short": "{question}"},
    },
    removed={"mme": " Please answer yes or no."},
)

TEMPLATES: dict[str, Template] = {
    # The released chat form of Emu3 adds nothing but its own period behind the question.
    "emu3": Template(
        dict.fromkeys(("yes_no", "short", "long"), _PLAIN)
        | {"choice": _PLAIN + "\n{options}".rstrip("\n")}
    ),
    "llava": _LLAVA,
    "lmms_eval": dataclasses.replace(
        _LLAVA,
        of_benchmark=_LLAVA.of_benchmark
        | {
            "ocrbench": {"short": "{question}"},
            "chartqa": {"short": "{question}\nAnswer the question with a single word."},
            "mmvet": {
                "long": "First please perform reasoning, and think step by step to provide best "
                "answer to the following question: \n\n{question}"
            },
        },
    ),
    "vlmevalkit": Template(
        {
            "yes_no": "{question} Please answer yes or no.",
            "choice": "{hint}Question: {question}\nOptions:\n{options}"
            "Please select the correct answer from the options above. \n",
            "short": "{question}" + SHORT,
            "long": "{question}",
        },
        hint="Hint: {hint}\n",
        of_benchmark={"ocrbench": {"short": "{question}"}},
        removed={"mme": " Please answer yes or no."},
    ),
}
