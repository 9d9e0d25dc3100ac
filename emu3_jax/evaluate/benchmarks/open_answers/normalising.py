"""The rule of VQA: how answers are normalised, and compared with those that people gave.

Written after the scripts of the authors of VQA (GT-Vision-Lab/VQA a013f00, vqaEval.py) and of M4C
(LLaVA c121f04, m4c_evaluator.py), and what lmms-eval (75571cf, vqa_eval_metric.py) and VLMEvalKit
(e8e78f0, vqa_eval.py, smp/misc.py) made of them. The scripts hand the flag re.UNICODE to a place
where a count belongs, so at most 32 full stops are deleted: MOST_STOPS.
"""

import re
from collections.abc import Sequence

MARKS = ';/[]"{}()=+\\_-><@`,?!'
MOST_STOPS = int(re.UNICODE)
ARTICLES = {"a", "an", "the"}
NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}

# Words that get back an apostrophe if one of theirs is missing.
_WORDS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in _WORDS
    for at, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the other way round in all four scripts

# A comma between digits anywhere: marks are deleted, not replaced by blanks. The script of VQA runs
# under Python 2, where only ASCII digits count.
_COMMA_OFFICIAL = re.compile(r"\d,\d", re.ASCII)
_COMMA_M4C = re.compile(r"\d,+\d")
_COMMA_VLMEVALKIT = re.compile(r"\d,\d")
# A stop stays if a digit follows; what was to be "or precedes" is mistyped there, so it is not.
_STOP_OFFICIAL = re.compile(r"\.(?!\d)", re.ASCII)
_STOP_M4C = re.compile(r"\.(?!\d)")
_STOP_VLMEVALKIT = re.compile(r"(?<!\d)\.(?!\d)")


def one_line(text: str) -> str:
    """Line feeds and tabs are blanks; none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def official(text: str) -> str:
    """As the authors of VQA do, where the given answers are not all the same."""
    return _words(_punctuation(one_line(text), _COMMA_OFFICIAL, _STOP_OFFICIAL))


def m4c(text: str) -> str:
    """As M4C does, always: commas and question marks go first, and 's becomes a word."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return lmms_eval(text)


def lmms_eval(text: str) -> str:
    """As lmms-eval does for VQAv2: M4C without its first step."""
    return _words(_punctuation(one_line(text), _COMMA_M4C, _STOP_M4C))


def vlmevalkit(text: str) -> str:
    """As VLMEvalKit does."""
    return _words(vlmevalkit_punctuation(one_line(text)))


def vlmevalkit_punctuation(text: str) -> str:
    """VLMEvalKit's deleting of marks and stops alone."""
    return _punctuation(text, _COMMA_VLMEVALKIT, _STOP_VLMEVALKIT)


def agreement(answer: str, given: Sequence[str]) -> float:
    """The share of people that agree, from 0 to 1.

    Each person is left out once; with the others, three that gave the answer make it right.

    Args:
      answer: normalised.
      given: those of people, normalised.
    """
    same = given.count(answer)
    shares = [min(1.0, (same - (one == answer)) / 3) for one in given]
    return sum(shares) / len(shares)


def _punctuation(text: str, comma: re.Pattern, stop: re.Pattern) -> str:
    deleted = comma.search(text) is not None
    marks = {
        mark: "" if deleted or f"{mark} " in text or f" {mark}" in text else " " for mark in MARKS
    }
    return stop.sub("", text.translate(str.maketrans(marks)), count=MOST_STOPS)


def _words(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
