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
      option: how an option is written, {letter} and {text}; one a line.
      of_benchmark: name of a benchmark → kind, "hint" or "option" → text, where it differs.
      removed: name of a benchmark → an ending of its released questions that is taken away first.
      capitalised: benchmarks whose question (its first line) begins with a capital and goes on in
        small letters.
    """

    of_kind: Mapping[Kind, str]
    hint: str = "{hint}\n"
    option: str = "{letter}. {text}"
    of_benchmark: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    removed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    capitalised: frozenset[str] = frozenset()

    def text(self, question: Question, benchmark: str, kind: Kind | None = None) -> str:
        """The text of a question of a benchmark; marks of images are left as they are.

        `kind` asks for another kind of answer: "long" is the question without options.
        """
        asked = question.text.removesuffix(self.removed.get(benchmark, ""))
        if benchmark in self.capitalised:
            first, feed, rest = asked.partition("\n")
            asked = first.capitalize() + feed + rest
        texts = {"hint": self.hint, "option": self.option, **self.of_kind}
        texts |= self.of_benchmark.get(benchmark, {})
        options = "\n".join(
            texts["option"].format(letter=letter, text=text)
            for letter, text in question.options.items()
        )
        hint = texts["hint"].format(hint=question.hint) if question.hint else ""
        return texts[kind or question.kind].format(hint=hint, question=asked, options=options)


_PLAIN = "{hint}{question}"
_LLAVA = Template(
    {
        "yes_no": _PLAIN + SHORT,
        "choice": _PLAIN + "\n{options}\n" + LETTER,
        "short": _PLAIN + SHORT,
        "long": _PLAIN,
    },
    of_benchmark={
        "scienceqa": {"hint": "Context: {hint}\n"},
        # The authors' own configuration for LLaVA (MMMU mmmu/configs/llava1.5.yaml, bb0b95a).
        "mmmu": {
            "option": "({letter}) {text}",
            "choice": "{question}\n{options}\n\n" + LETTER,
            "short": "{question}" + SHORT,
        },
        # Its questions bring their options and instruction with them.
        "realworldqa": {"short": "{question}"},
    },
    removed={"mme": " Please answer yes or no."},
)

TEMPLATES: dict[str, Template] = {
    # The released chat form of Emu3 adds nothing but its own period behind the question.
    "emu3": Template(
        dict.fromkeys(("yes_no", "short", "long"), _PLAIN) | {"choice": _PLAIN + "\n{options}"}
    ),
    "llava": _LLAVA,
    "lmms_eval": dataclasses.replace(
        _LLAVA,
        of_benchmark=_LLAVA.of_benchmark
        | {
            "mmbench": {
                "hint": "{hint} ",
                "choice": "{hint}{question} There are several options:\n{options}\n\n" + LETTER,
            },
            "mmmu": {
                "choice": "{question}\n{options}\n\n" + LETTER,
                "short": "{question}\n" + SHORT,
            },
            "ocrbench": {"short": "{question}"},
            "chartqa": {"short": "{question}\nAnswer the question with a single word."},
            "mmvet": {
                "long": "First please perform reasoning, and think step by step to provide best "
                "answer to the following question: \n\n{question}"
            },
        },
        capitalised=frozenset({"textvqa"}),
    ),
    "vlmevalkit": Template(
        {
            "yes_no": "{question} Please answer yes or no.",
            "choice": "{hint}Question: {question}\nOptions:\n{options}\n"
            "Please select the correct answer from the options above. \n",
            "short": "{question}" + SHORT,
            "long": "{question}",
        },
        hint="Hint: {hint}\n",
        of_benchmark={
            "ocrbench": {"short": "{question}"},
            # Questions of these without options in columns.
            "mmmu": {"short": "Question: {question}\n"},
            "realworldqa": {"short": "Question: {question}\n"},
        },
        removed={"mme": " Please answer yes or no."},
    ),
}
