"""How MMMU reads answers: a letter, or numbers and phrases; mmmu/utils/eval_utils.py (bb0b95a)."""

import ast
import random
import re
from collections.abc import Mapping, Sequence

Value = float | str

_STRIPPED = ",.!?;:'"
# Options in brackets first, then with a blank on either side; lmms-eval is content with less.
OFFICIAL_FORMS = ("({})", " {} ")
LMMS_EVAL_FORMS = ("({})", "{} ", "{}.")
# The texts of options are looked for in answers of more words than this.
_WORDS = 5

# What an open answer may stand behind; "=" in the last line only.
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # with commas
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # with an exponent
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def letter(
    answer: str,
    options: Mapping[str, str],
    guesses: random.Random,
    forms: Sequence[str] = OFFICIAL_FORMS,
) -> tuple[str, bool]:
    """(the letter, was it drawn by chance); of several that are found, the last in the text.

    Args:
      answer: of the model.
      options: letter → text.
      guesses: what a letter is drawn from where none is found.
      forms: in which a letter is looked for, one after the other.
    """
    for mark in _STRIPPED:
        answer = answer.strip(mark)
    answer = f" {answer} "
    for form in forms:
        found = [name for name in options if form.format(name) in answer]
        if found:
            # Whatever the form, a letter without brackets is placed by its blanks.
            placed = form if form == "({})" else " {} "
            return max(found, key=lambda name: answer.rfind(placed.format(name))), False
    lowered = answer.lower()
    if len(answer.split()) > _WORDS:
        found = [name for name, text in options.items() if text.lower() in lowered]
        if found:
            return max(found, key=lambda name: lowered.rfind(options[name].lower())), False
    return guesses.choice(list(options)), True


def phrases(answer: str) -> set[Value]:
    """All that an open answer may be taken to say: rounded numbers and lower-case texts."""
    answer = answer.strip().strip(".").lower()
    lines = answer.split("\n")
    found = []
    for number, line in enumerate(lines):
        keys = (*_KEYS, "=") if number == len(lines) - 1 else _KEYS
        shortest = ""
        for key in keys:
            if key in line:
                behind = line.split(key)[-1].strip()
                # An empty text gives way to any other, as there.
                if not shortest or len(behind) < len(shortest):
                    shortest = behind
        if shortest and shortest not in _TRIVIAL:
            found.append(shortest)
    found = found or [answer]
    numbers = [number for text in found for form in _NUMBERS for number in re.findall(form, text)]
    return {value for text in [*found, *numbers] for value in _values(text)}


def truths(answer: str) -> list[str]:
    """The right answers to an open question; the released text may be that of a list."""
    if not answer.startswith("["):
        return [answer]
    try:
        content = ast.literal_eval(answer)
    except (ValueError, SyntaxError):
        return [answer]
    return [str(text) for text in content] if isinstance(content, list) else [answer]


def is_right(found: set[Value], answers: Sequence[str]) -> bool:
    """Whether a number is equal to a right one, or a text holds a right text."""
    wanted = [value for answer in answers for value in _values(answer)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in wanted
        for value in found
    )


def _values(text: str) -> list[Value]:
    """A number rounded to two decimals; else the text, a single character with a blank beside."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
