"""How harnesses read the letter of an option out of an answer, and VLMEvalKit's accuracies.

Sources: VLMEvalKit vlmeval/utils/matching_util.py and dataset/utils/multiple_choice.py (e8e78f0);
lmms-eval lmms_eval/tasks/_task_utils/mcq_extract.py (75571cf).
"""

import re
from collections.abc import Mapping, Sequence

from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, Score, Scored

# What VLMEvalKit parses an answer as that chooses no option.
NO_OPTION = "Z"

# Cells that pandas 2.2 reads as missing; VLMEvalKit loses an option with such a text.
PANDAS_MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan"
    "|null|".split("|")
)
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
# No word boundary behind the letter: "the answer is a cat" says A.
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])", re.IGNORECASE)

# lmms-eval: how sure a form is → the form; the surest wins, of equal ones the last in the text.
_FORMS = {6: "({})", 5: "{}.", 4: "{}:", 3: "{})", 2: "{} "}
_AT_START, _AT_END, _AFTER_PHRASE, _ANYWHERE = 10, 9, 7, 0
_PHRASES = (
    "the answer is|answer is|the correct answer is|correct answer is|the best answer is"
    "|best answer is|the correct option is|correct option is|the best option is|best option is"
    "|the choice is|choice is|the correct choice is|correct choice is|i choose|i select|i pick"
    "|my answer is|my choice is|옵션|정답은|답은|답:|答案是|答案为|选|答えは"
).split("|")

# VLMEvalKit's short names of MMBench's abilities.
_SHORT = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """Letter → text of options in order."""
    return {chr(ord("A") + i): text for i, text in enumerate(texts)}


def seen_by_pandas(options: Mapping[str, str]) -> dict[str, str]:
    """The options that are left when pandas has read their table."""
    return {letter: text for letter, text in options.items() if text not in PANDAS_MISSING}


def vlmevalkit(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that VLMEvalKit reads without a judge; `NO_OPTION` for a refusal; None if unread.

    One letter alone as a word wins if it first occurs among the last four words; else what follows
    "answer is"; else the only option whose text is part of the answer.
    """
    if any(refusal in answer for refusal in _REFUSALS):
        return NO_OPTION
    words = answer.translate(_SEPARATORS).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1 and words.index(found[0]) > len(words) - 5:
        return found[0]
    if not found and NO_OPTION in words:
        return NO_OPTION
    said = _ANSWER_IS.search(answer)
    if said and said[1].upper() in options:
        return said[1].upper()
    lowered = answer.lower()
    if len(lowered) > 2 * sum(len(text) for text in options.values()):
        return None
    found = [letter for letter, text in options.items() if text.lower() in lowered]
    return found[0] if len(found) == 1 else None


def lmms_eval(answer: str, letters: Sequence[str] = "ABCD") -> str:
    """The letter that lmms-eval's shared extraction reads; "" if there is none.

    Forms are searched without a word boundary on the left: in "RNA (…" stands an "A ".
    """
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    bare = text.strip()
    text = f" {text} "
    found = []  # (how sure, position, letter)
    for sure, form in _FORMS.items():
        found += [(sure, text.rfind(form.format(letter)), letter) for letter in letters]
    lowered = text.lower()
    for phrase in _PHRASES:
        at = lowered.find(phrase)
        if at >= 0:
            behind = at + len(phrase)
            found += [(_AFTER_PHRASE, text.find(letter, behind), letter) for letter in letters]
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((_AT_START, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((_AT_END, len(text) - 1, letter))
    found = [candidate for candidate in found if candidate[1] >= 0]
    if not found:
        found = [(_ANYWHERE, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found, key=lambda candidate: candidate[:2])[2] if found else ""


def accuracies(questions: Sequence[Question], hits: Sequence[float]) -> dict[str, float]:
    """VLMEvalKit's report: "Overall", and the mean of each ability and category; fractions."""
    figures = {"Overall": mean(hits)}
    for level in ("l2-category", "category"):
        groups: dict[str, list[float]] = {}
        for question, hit in zip(questions, hits, strict=True):
            if level in question.group:
                groups.setdefault(question.group[level], []).append(hit)
        figures |= {_SHORT.get(name, name): mean(groups[name]) for name in sorted(groups)}
    return figures


def scores(questions: Sequence[Question], parsed: Sequence[str | None]) -> list[Score]:
    """Right where the parsed letter is the truth."""
    return [Score(p, float(p == q.truth)) for q, p in zip(questions, parsed, strict=True)]


def vlmevalkit_rule(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """VLMEvalKit's exact matching of each question alone; what is not read is wrong."""
    parsed = [
        vlmevalkit(answer, seen_by_pandas(question.options))
        for question, answer in zip(questions, answers, strict=True)
    ]
    scored = scores(questions, parsed)
    return Scored(scored, accuracies(questions, [score.score for score in scored]))
