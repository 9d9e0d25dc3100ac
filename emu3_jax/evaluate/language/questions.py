"""Answers to held-out questions about images: the share that is right, beside what needs no model.

A record of kind "chat" is one case: its last answer is asked for, earlier turns are given with
their true answers. The answer is greedy. It is right if it is the true one apart from case, outer
blanks and a full stop at the end.

Three figures beside it, from the answers of the training split to the same question (word for
word; to all questions of the kind where it never occurs there): `chance`, one over the number of
different answers; `majority`, the most frequent answer; `nearest`, the answer for the training
image that is nearest to this one (distance of `emoji.retrieval.features`), which needs the vision
tokenizer.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from etils import epath

from emu3_jax.data.codec import vision_codec
from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.evaluate.emoji.retrieval import features
from emu3_jax.evaluate.evaluator import Result, Subject, Table
from emu3_jax.evaluate.language.token_documents import dataset_path
from emu3_jax.evaluate.language_use import CodesEvaluator
from emu3_jax.generate import modalities
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.interop.bundle import Language
from emu3_jax.progress import Progress
from emu3_jax.sequence import Document, Grammar, Image, Turn
from emu3_jax.sequence.chat import parse_chat

KIND = "chat"


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A question to be asked.

    Attributes:
      key: of the record.
      kind: its attribute "kind"; "" if it has none.
      question: the last question, its text alone.
      truth: the true answer.
      codes: int32 [h, w] of the last image up to the question; None without one.
      prompt: int32 [P], the document up to the answer.
    """

    key: str
    kind: str
    question: str
    truth: str
    codes: np.ndarray | None
    prompt: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions(CodesEvaluator):
    """Shares of right answers of each split, over all questions and over those of each kind.

    Attributes:
      tokens: a folder of token datasets, one per split.
      reference: the split whose answers give `chance`, `majority` and `nearest`; "" for none.
      vision_tokenizer: as of the class above, for `nearest`; "" leaves that out.
      max_new: the longest answer in tokens; a longer one is wrong.
    """

    headline: ClassVar[tuple[str, ...]] = ("right_*",)

    name: str = "questions"
    tokens: str = ""
    reference: str = "train"
    max_new: int = 48

    def __post_init__(self):
        super().__post_init__()
        self.at_least(max_new=1)

    def check(self, language: Language) -> None:
        """Opens the datasets; checks that they hold chats and the tokenizers are the model's."""

        def open_all(tokens: str) -> None:
            for split in (*self.splits, *filter(None, [self.reference])):
                path = dataset_path(tokens, split)
                open_dataset(path, language.grammar, language.vision_fingerprint).records(KIND)

        self.use("tokens", open_all)
        if self.vision_tokenizer:
            super().check(language)

    def run(self, subject: Subject) -> Result:
        """Asks every question of the splits."""
        bundle = subject.language_model
        tokens = self.use("tokens", epath.Path)
        known = self._known(tokens, subject)
        metrics: dict[str, float] = {}
        tables = {}
        for split in self.splits:
            cases = cases_of(dataset_path(tokens, split), bundle.grammar, self.limit)
            options = modalities.Options(
                sampling=Sampling(temperature=0.0),
                max_new=self.max_new,
                batch_size=self.batch_size,
                progress=subject.progress.line,
            )
            prompts, keys = [case.prompt for case in cases], [case.key for case in cases]
            answers = modalities.continue_texts(bundle, prompts, options, True, keys)
            columns = {"right": [is_right(a, c.truth) for a, c in zip(answers, cases, strict=True)]}
            if known is not None:
                columns |= known.columns(cases)
            metrics |= shares(cases, columns, split)
            rows = zip(cases, answers, *columns.values(), strict=True)
            tables[split] = Table(
                ("id", "kind", "question", "truth", "answer", *columns),
                tuple((c.key, c.kind, c.question, c.truth, a, *map(float, r)) for c, a, *r in rows),
            )
        return Result(metrics, tables)

    def _known(self, tokens: epath.Path, subject: Subject) -> "Known | None":
        if not self.reference:
            return None
        path = dataset_path(tokens, self.reference)
        tokenizer = self.tokenizer if self.vision_tokenizer else None
        turns = turns_of(path, subject.language_model.grammar)
        return Known(turns, tokenizer, self.batch_size, subject.progress)


def is_right(answer: str, truth: str) -> bool:
    """Whether two answers are the same apart from case, outer blanks and a full stop."""
    return _plain(answer) == _plain(truth)


def shares(
    cases: Sequence[Case], columns: Mapping[str, Sequence[float]], split: str
) -> dict[str, float]:
    """Means in percent, over all cases and over each kind; and the numbers of cases."""
    kinds = np.array([case.kind for case in cases])
    metrics = {}
    for kind in ("", *sorted(set(kinds) - {""})):
        of_kind = kinds == kind if kind else np.ones(len(cases), bool)
        label = f"{kind.replace(' ', '_')}_{split}" if kind else split
        for name, values in columns.items():
            metrics[f"{name}_{label}"] = 100.0 * float(np.mean(np.array(values, float)[of_kind]))
        metrics[f"count_{label}"] = int(of_kind.sum())
    return metrics


def cases_of(path: epath.Path, grammar: Grammar, limit: int = 0) -> list[Case]:
    """The last questions of the chats of a token dataset, in order; 0 for all."""
    cases = []
    for record, turns in _chats(path, grammar, limit):
        built = grammar.build(Document(record.segments))
        # The last answer and its EOS are the end of the document, and are learnt.
        (not_learnt,) = np.nonzero(built.weights == 0)
        prompt = built.ids[: not_learnt[-1] + 1]
        kind = str(record.attributes.get("kind", ""))
        *_, (question, truth, codes) = _asked(turns)
        cases.append(Case(record.key, kind, question, truth, codes, prompt))
    return cases


def turns_of(path: epath.Path, grammar: Grammar) -> list[tuple[str, str, np.ndarray | None]]:
    """(question, answer, codes of the last image before it) of all turns of a dataset."""
    return [one for _, turns in _chats(path, grammar, 0) for one in _asked(turns)]


def _chats(path: epath.Path, grammar: Grammar, limit: int) -> Iterator[tuple[Any, tuple]]:
    records = open_dataset(path, grammar).records(KIND)
    for index in range(min(limit or len(records), len(records))):
        yield records[index], parse_chat(Document(records[index].segments))


def _asked(turns: Sequence[Turn]) -> Iterator[tuple[str, str, np.ndarray | None]]:
    codes = None
    for turn in turns:
        for part in turn.asked():
            codes = part.codes if isinstance(part, Image) else codes
        question, answer = (
            " ".join(part for part in parts if isinstance(part, str)).strip()
            for parts in (turn.asked(), turn.answered())
        )
        yield question, answer, codes


class Known:
    """What can be said of a question from the answers of a training split alone."""

    def __init__(
        self,
        turns: Iterable[tuple[str, str, np.ndarray | None]],
        tokenizer: tuple[Any, Any] | None,
        batch_size: int,
        progress: Progress,
    ):
        self._tokenizer, self._batch_size = tokenizer, batch_size
        self._progress = progress
        self._by_question: dict[str, list[tuple[str, int | None]]] = collections.defaultdict(list)
        # Number of each different image; codes of those not decoded yet, features [n, D] of those
        # that were decoded together.
        self._images: dict[bytes, int] = {}
        self._codes: list[np.ndarray] = []
        self._decoded: list[np.ndarray] = []
        for question, answer, codes in turns:
            self._by_question[question].append((_plain(answer), self._remember(codes)))
        self._all = [one for group in self._by_question.values() for one in group]

    def columns(self, cases: Sequence[Case]) -> dict[str, list[float]]:
        """Of each case: chance, and whether the majority and the nearest image are right."""
        groups = self._groups(cases)
        counts = [collections.Counter(answer for answer, _ in group) for group in groups]
        pairs = list(zip(cases, counts, strict=True))
        columns = {
            "chance": [1.0 / len(count) for count in counts],
            "majority": [count.most_common(1)[0][0] == _plain(c.truth) for c, count in pairs],
        }
        if self._tokenizer is not None:
            columns["nearest"] = self._nearest(cases, groups)
        return columns

    def _groups(self, cases: Sequence[Case]) -> list[list[tuple[str, int | None]]]:
        """Training answers to the same question, else to questions of the kind, else to all."""
        questions = collections.defaultdict(set)
        for case in cases:
            questions[case.kind].add(case.question)
        of_kind = {
            kind: [one for q in sorted(asked) for one in self._by_question.get(q, ())] or self._all
            for kind, asked in questions.items()
        }
        return [self._by_question.get(c.question) or of_kind[c.kind] for c in cases]

    def _nearest(self, cases, groups) -> list[float]:
        asked = [self._remember(case.codes) for case in cases]
        of_image = collections.defaultdict(list)
        for at, image in enumerate(asked):
            if image is not None:
                of_image[image].append(at)
        space_ND = self._features()
        count = self._progress.counter("images compared", len(of_image))
        right = [False] * len(cases)
        for image, these in of_image.items():
            distance_N = np.sum((space_ND - space_ND[image]) ** 2, axis=1)
            for at in these:
                shown = [(answer, other) for answer, other in groups[at] if other is not None]
                if shown:
                    nearest = np.argmin(distance_N[[other for _, other in shown]])
                    right[at] = shown[int(nearest)][0] == _plain(cases[at].truth)
            count(1)
        return right

    def _features(self) -> np.ndarray:
        """Features float64 [N, D] of all images so far."""
        if self._codes:
            count = self._progress.counter("images decoded", len(self._codes))
            of = self._tokenizer, self._codes, self._batch_size
            self._decoded.append(features(vision_codec.decode(*of, done=count)))
            self._codes = []
        return np.concatenate(self._decoded) if self._decoded else np.zeros((0, 1))

    def _remember(self, codes: np.ndarray | None) -> int | None:
        """The number of an image."""
        if codes is None:
            return None
        key = repr(codes.shape).encode() + codes.tobytes()
        if key not in self._images:
            self._images[key] = len(self._images)
            self._codes.append(codes)
        return self._images[key]


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()
