"""MMBench: abilities in questions with options; arXiv 2307.06281, github.com/open-compass/MMBench.

Released file: MMBench_DEV_EN.tsv and its like (see `option_tables`). Each question stands there as
often as it has options, the options rotated: copy k of question q has the index q + k·1,000,000.
"Circular" accuracy, which papers print, counts a question as right if all its copies are; "plain"
looks at the first alone. VLMEvalKit is of MMBench's authors. An answer that no rule reads goes to a
judge; without one it is wrong. Answers of the test split are not released: hand in the xlsx file.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import (
    Judging,
    Question,
    QuestionBenchmark,
    Score,
    Scored,
)
from emu3_jax.evaluate.benchmarks.choices import letters, option_tables, workbook

COPY = 1_000_000
USUAL = "DEV_EN"
VERSIONS = tuple(
    f"{split}_{language}{edition}"
    for edition in ("", "_V11")
    for split in ("DEV", "TEST")
    for language in ("EN", "CN")
)
TO_JUDGE = "mmbench_to_judge.jsonl"
UPLOAD = "mmbench_upload.xlsx"

# lmms-eval (mmbench_evals.py, 75571cf) looks for these words in turn, after the bare letter.
_LMMS_FORMS = "{}.|{},|{}:|{})|{}).|({})|({}).|:{}|:{},|:{}.|:{})|:{}).".split("|")
_LMMS_LETTERS = "ABCDE"


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """All copies of all questions of MMBench_<version>.tsv in a folder, or of the file `data`."""
    path = data if data.is_file() else data / f"MMBench_{version or USUAL}.tsv"
    questions, wheres = [], []
    for row in option_tables.rows(path):
        if not row.id.isdecimal():
            raise ValueError(f"{row.where}: index is {row.id!r}, expected a whole number")
        if row.answer or not row.options:
            option_tables.check_options(row.where, row.options, row.answer)
        questions.append(
            Question(row.id, row.text, (row.image,), row.answer or None, "choice",
                     row.options, row.hint, row.group)
        )  # fmt: skip
        wheres.append(row.where)
    reading.check_unique(questions, str(path))
    ids = {question.id for question in questions}
    labelled = questions[0].truth is not None
    for where, question in zip(wheres, questions, strict=True):
        if _first(question) not in ids:
            raise ValueError(
                f"{where}: index {question.id} is a copy of question {_first(question)}, "
                "which the file does not have"
            )
        if (question.truth is not None) != labelled:
            raise ValueError(f"{where}: expected an answer in all rows or in none")
    return questions


def vlmevalkit(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """VLMEvalKit's exact matching (multiple_choice.py, e8e78f0); fractions.

    The figures "…_na_kept" are those with options like "None" and "N/A", which VLMEvalKit loses
    because pandas reads them as missing.
    """
    parsed = _parsed(questions, answers)
    kept = [
        letters.vlmevalkit(answer, question.options)
        for question, answer in zip(questions, answers, strict=True)
    ]
    if questions[0].truth is None:
        return _unlabelled(parsed)
    views, views_kept = _views(questions, parsed), _views(questions, kept)
    views |= {f"{view}_na_kept": views_kept[view] for view in ("circular", "plain")}
    unread = sum(letter is None for letter in parsed)
    return _scored(questions, parsed, views, unread)


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """lmms-eval's task mmbench_en_dev_static, circular; fractions.

    Where its own words are not found it asks no judge but takes its shared extraction.
    """
    parsed = []
    for question, answer in zip(questions, answers, strict=True):
        options = letters.seen_by_pandas(question.options)
        letter = _lmms_letter(answer) or _only_text(answer, options)
        parsed.append(letter or letters.lmms_eval(answer, sorted(options)) or None)
    if questions[0].truth is None:
        return _unlabelled(parsed)
    scores = letters.scores(questions, parsed)
    first, whole = _circular(questions, scores)
    figures = {"overall": mean(whole)}
    for level in ("category", "l2-category"):
        for name in sorted({q.group[level] for q in first if level in q.group}):
            hits = [h for q, h in zip(first, whole, strict=True) if q.group.get(level) == name]
            figures[f"{level}/{name}"] = mean(hits)
    return Scored(scores, figures)


def upload(questions: Sequence[Question], answers: Sequence[str]) -> Mapping[str, bytes]:
    """The xlsx file for MMBench's server, with LLaVA's columns (convert_mmbench_for_submission)."""
    options = sorted({letter for question in questions for letter in question.options})
    labelled = questions[0].truth is not None
    header = ["index", "question", *options, "prediction", *(["answer"] if labelled else [])]
    rows: list[Sequence[str | int]] = [[*header, "split"]]
    for question, answer in zip(questions, answers, strict=True):
        texts = [question.options.get(letter, "") for letter in options]
        row = [int(question.id), question.text, *texts, answer]
        row += [question.truth] if labelled else []
        rows.append([*row, question.group.get("split", "")])
    return {UPLOAD: workbook.one_sheet(rows)}


def write_for_judge(questions: Sequence[Question], answers: Sequence[str]) -> Mapping[str, bytes]:
    """JSON lines {id, hint, question, options, answer} of the answers that no rule reads.

    A judge adds to each line "letter": that of the option which the answer means, or "Z" for none.
    """
    lines = [
        {"id": question.id, "hint": question.hint, "question": question.text,
         "options": dict(question.options), "answer": answer}
        for question, answer, letter in zip(
            questions, answers, _parsed(questions, answers), strict=True
        )
        if letter is None
    ]  # fmt: skip
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return {TO_JUDGE: text.encode()}


def read_judged(path: pathlib.Path, questions: Sequence[Question]) -> list[dict[str, Any] | None]:
    """{answer, letter} of each question that was judged; None for the others."""
    of_id = {question.id: question for question in questions}
    found: dict[str, dict[str, Any]] = {}
    for where, row in reading.json_lines(path):
        key, answer, letter = reading.fields(where, row, id=str, answer=str, letter=str)
        if key not in of_id:
            raise ValueError(f"{where}: the id {key!r} is of no question of this benchmark")
        if key in found:
            raise ValueError(f"{where}: the id {key!r} occurs twice; ids must differ")
        allowed = [*of_id[key].options, letters.NO_OPTION]
        if letter not in allowed:
            raise ValueError(f"{where}: letter is {letter!r}, expected one of {', '.join(allowed)}")
        found[key] = {"answer": answer, "letter": letter}
    return [found.get(question.id) for question in questions]


def judged(
    questions: Sequence[Question], answers: Sequence[str], judgements: Sequence[Any]
) -> Scored:
    """The figures of VLMEvalKit with a judge's letter where no rule reads one."""
    parsed = []
    for question, answer, letter, judgement in zip(
        questions, answers, _parsed(questions, answers), judgements, strict=True
    ):
        if (letter is None) != (judgement is not None):
            problem = "has no judgement" if letter is None else "needs no judgement but has one"
            raise ValueError(f"the answer to question {question.id} {problem}: {answer!r}")
        if judgement is not None and judgement["answer"] != answer:
            raise ValueError(
                f"the judgement of question {question.id} is of the answer "
                f"{judgement['answer']!r}, but this run's is {answer!r}"
            )
        parsed.append(letter or judgement["letter"])
    if questions[0].truth is None:
        return _unlabelled(parsed)
    return _scored(questions, parsed, _views(questions, parsed), unread=0)


def _first(question: Question) -> str:
    """The id of the copy whose options are as they were written."""
    return str(int(question.id) % COPY)


def _parsed(questions: Sequence[Question], answers: Sequence[str]) -> list[str | None]:
    return [
        letters.vlmevalkit(answer, letters.seen_by_pandas(question.options))
        for question, answer in zip(questions, answers, strict=True)
    ]


def _circular(
    questions: Sequence[Question], scores: Sequence[Score]
) -> tuple[list[Question], list[float]]:
    """(the first copies, 1.0 where all copies of the question are right)."""
    worst: dict[str, float] = {}
    for question, score in zip(questions, scores, strict=True):
        base = _first(question)
        worst[base] = min(worst.get(base, 1.0), score.score)
    first = [question for question in questions if question.id == _first(question)]
    return first, [worst[question.id] for question in first]


def _views(
    questions: Sequence[Question], parsed: Sequence[str | None]
) -> dict[str, dict[str, float]]:
    """Way of counting → VLMEvalKit's report."""
    scores = letters.scores(questions, parsed)
    first, whole = _circular(questions, scores)
    of_id = {q.id: score.score for q, score in zip(questions, scores, strict=True)}
    return {
        "circular": letters.accuracies(first, whole),
        "plain": letters.accuracies(first, [of_id[question.id] for question in first]),
        "plain_all_rotations": letters.accuracies(questions, [s.score for s in scores]),
    }


def _scored(
    questions: Sequence[Question],
    parsed: Sequence[str | None],
    views: Mapping[str, Mapping[str, float]],
    unread: int,
) -> Scored:
    figures = {f"{view}/{name}": v for view, found in views.items() for name, v in found.items()}
    return Scored(letters.scores(questions, parsed), figures, _notes(questions, unread))


def _unlabelled(parsed: Sequence[str | None]) -> Scored:
    note = "the answers of this split are not released: send the upload to MMBench's server"
    return Scored([Score(letter, None) for letter in parsed], {}, (note,))


def _notes(questions: Sequence[Question], unread: int) -> list[str]:
    notes = []
    if unread:
        notes.append(f"{unread} answers were read by no rule and count as wrong; a judge may help")
    copies: dict[str, int] = {}
    for question in questions:
        copies[_first(question)] = copies.get(_first(question), 0) + 1
    first = [question for question in questions if question.id == _first(question)]
    fewer = [question.id for question in first if copies[question.id] != len(question.options)]
    if fewer:
        notes.append(
            f"{len(fewer)} questions, {fewer[0]} the first, do not stand there once per option: "
            "their circular accuracy is that of the copies at hand"
        )
    lost = [
        question.id
        for question in first
        if len(letters.seen_by_pandas(question.options)) < len(question.options)
    ]
    if lost:
        notes.append(
            "VLMEvalKit takes an option of these questions for missing: " + ", ".join(lost)
        )
    return notes


def _lmms_letter(answer: str) -> str | None:
    words = answer.split()
    bare = [letter for letter in _LMMS_LETTERS if letter in words]
    # "A" in more than three words is taken for the article.
    if len(bare) == 1 and not ("A" in words and len(words) > 3):
        return bare[0]
    for form in _LMMS_FORMS:
        found = [letter for letter in _LMMS_LETTERS if form.format(letter) in words]
        if len(found) == 1:
            return found[0]
    return None


def _only_text(answer: str, options: Mapping[str, str]) -> str | None:
    found = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return found[0] if len(found) == 1 else None


MMBENCH = QuestionBenchmark(
    read,
    dict(vlmevalkit=vlmevalkit, lmms_eval=lmms_eval),
    headline="vlmevalkit/circular/Overall",
    versions=VERSIONS,
    submission=upload,
    judging=Judging(write_for_judge, read_judged, judged),
)
