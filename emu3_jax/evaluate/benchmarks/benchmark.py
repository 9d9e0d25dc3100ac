"""What a benchmark of questions about images is: how it is read, and rules that score answers.

A benchmark is a file of a folder beside this one and a line in `registry`. Its reader takes the
released files as they come. Its rules are pure functions; where harnesses score the same answers
differently each has a rule of its own, and all are printed side by side.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from emu3_jax.data.media import MediaSource

# Raised when a rule or a template changes: answers and figures of both are not to be mixed.
RULES_VERSION = 1
Kind = Literal["yes_no", "choice", "short", "long"]


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A question about images.

    Attributes:
      id: as released, or made of what identifies it ("random/17"); unique in the benchmark.
      text: the question alone, as released; "<image 2>" stands where the second image belongs.
        Images without a mark come before the text, in order.
      images: the files, or their bytes.
      truth: what the rules compare with; JSON.
      kind: of the answer: yes or no, an option, few words, or whole sentences.
      options: letter → text, in order; empty if there are none.
      hint: text before the question; "" without.
      group: what figures are split by, such as {"split": "random"}; and all else that rules need.
    """

    id: str
    text: str
    images: tuple[MediaSource, ...]
    truth: Any
    kind: Kind
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hint: str = ""
    group: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Score:
    """One answer under a rule.

    Attributes:
      parsed: what the rule read in the answer; None if it reads nothing out of it.
      score: from 0 to 1; None if the rule does not score this question.
    """

    parsed: Any
    score: float | None


@dataclasses.dataclass(frozen=True)
class Scored:
    """All answers under a rule.

    Attributes:
      scores: one per question, in order.
      figures: name → number, in the scale of the rule's authors; parts of a name are joined by "/".
      notes: sentences about the figures that a reader must know.
    """

    scores: Sequence[Score]
    figures: Mapping[str, float]
    notes: Sequence[str] = ()


# (questions, their answers in the same order) → scores.
Rule = Callable[[Sequence[Question], Sequence[str]], Scored]


@dataclasses.dataclass(frozen=True)
class Judging:
    """A benchmark, or a part of one, that a judge outside this project scores.

    Attributes:
      write: (questions, answers) → {file name: content}: what the judge's own program takes.
      read: (file of judgements, questions) → judgement of each question, in order; ValueError with
        a sentence if the file is of other questions or does not have all.
      rule: (questions, answers, judgements) → scores.
    """

    write: Callable[[Sequence[Question], Sequence[str]], Mapping[str, bytes]]
    read: Callable[[pathlib.Path, Sequence[Question]], Sequence[Any]]
    rule: Callable[[Sequence[Question], Sequence[str], Sequence[Any]], Scored]


@dataclasses.dataclass(frozen=True)
class QuestionBenchmark:
    """A benchmark of questions.

    Attributes:
      read: (folder or file of the released data, version) → questions in the released order;
        ValueError with one sentence that names file and row for data that is not as released. It
        reads no image, but a missing image file is an error. Version "" is the usual one.
      rules: name → rule, the authors' ("official") first; "lmms_eval" and "vlmevalkit" are those of
        the two harnesses.
      headline: the figure that papers print: "<rule>/<figure>".
      max_new: the longest answer in tokens.
      versions: the others that `read` takes, such as splits.
      submission: (questions, answers) → {file name: content} that the benchmark's server takes.
      judging: for answers that a judge must score; without judgements such figures are left out.
    """

    read: Callable[[pathlib.Path, str], Sequence[Question]]
    rules: Mapping[str, Rule]
    headline: str
    max_new: int = 32
    versions: Sequence[str] = ()
    submission: Callable[[Sequence[Question], Sequence[str]], Mapping[str, bytes]] | None = None
    judging: Judging | None = None
