"""What MMBench's server and judge take, and judgements that are read back."""

import io
import json
import xml.etree.ElementTree as ElementTree
import zipfile

import pytest
from support.paths import GOLDEN

from emu3_jax.evaluate.benchmarks.choices import workbook
from emu3_jax.evaluate.benchmarks.choices.mmbench import MMBENCH, TO_JUDGE, UPLOAD, read

QUESTIONS = read(GOLDEN / "benchmarks" / "mmbench")
RIGHT = [question.truth for question in QUESTIONS]
MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def cells(content):
    """The rows of an xlsx file of inline texts and numbers."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        sheet = ElementTree.fromstring(file.read("xl/worksheets/sheet1.xml"))
        assert all(ElementTree.fromstring(file.read(name)) is not None for name in file.namelist())
    return [["".join(cell.itertext()) for cell in row] for row in sheet.iter(f"{MAIN}row")]


def test_upload():
    answers = [f"<{letter}> & more" for letter in RIGHT]
    ((name, content),) = MMBENCH.submission(QUESTIONS, answers).items()
    header, *rows = cells(content)
    assert name == UPLOAD
    assert header == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    for question, answer, row in zip(QUESTIONS, answers, rows, strict=True):
        options = [question.options.get(letter, "") for letter in "ABCD"]
        assert row == [question.id, question.text, *options, answer, question.truth, "dev"]
    assert MMBENCH.submission(QUESTIONS, answers)[UPLOAD] == content


def test_a_sheet_holds_any_text():
    rows = [[1, "a\x07b", " é<&>\n"], ["", "", -2]]
    assert cells(workbook.one_sheet(rows)) == [["1", "a_x0007_b", " é<&>\n"], ["", "", "-2"]]


def judge(tmp_path, answers, change=lambda lines: lines, letter=None):
    """The figures after a judge has looked at the file for it."""
    written = MMBENCH.judging.write(QUESTIONS, answers)[TO_JUDGE].decode().splitlines()
    truth = {question.id: question.truth for question in QUESTIONS}
    lines = [json.loads(line) for line in written]
    lines = change([line | {"letter": letter or truth[line["id"]]} for line in lines])
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    judgements = MMBENCH.judging.read(path, QUESTIONS)
    return MMBENCH.judging.rule(QUESTIONS, answers, judgements)


def with_unread():
    answers = list(RIGHT)
    answers[0], answers[-1] = "no idea what this might be", "all of them and none of them"
    return answers


def test_a_judge_reads_what_no_rule_does(tmp_path):
    answers = with_unread()
    unread = json.loads(MMBENCH.judging.write(QUESTIONS, answers)[TO_JUDGE].split(b"\n")[0])
    assert unread == {
        "id": QUESTIONS[0].id,
        "hint": QUESTIONS[0].hint,
        "question": QUESTIONS[0].text,
        "options": QUESTIONS[0].options,
        "answer": answers[0],
    }
    alone = MMBENCH.rules["vlmevalkit"](QUESTIONS, answers)
    assert [alone.scores[0].score, alone.scores[-1].score] == [0.0, 0.0]
    assert judge(tmp_path, answers).figures["plain_all_rotations/Overall"] == 1.0
    judged = judge(tmp_path, answers, letter="Z")
    assert judged.figures["circular/Overall"] == alone.figures["circular/Overall"]
    assert judged.scores[0].parsed == "Z"


def test_bad_judgements(tmp_path):
    first, last = QUESTIONS[0].id, QUESTIONS[-1].id
    more = {"id": QUESTIONS[1].id, "answer": RIGHT[1], "letter": "A"}
    bad = {
        f"the answer to question {last} has no judgement": lambda lines: lines[:1],
        "the id '5' is of no question": lambda lines: [lines[0] | {"id": "5"}],
        f"the id '{first}' occurs twice": lambda lines: [lines[0], lines[0]],
        "letter is 'E', expected one of": lambda lines: [lines[0] | {"letter": "E"}],
        "judged.jsonl:1: the field 'letter' is missing": lambda lines: [{"id": "1", "answer": ""}],
        f"the judgement of question {first} is of the answer 'old'": lambda lines: [
            lines[0] | {"answer": "old"},
            lines[1],
        ],
        f"question {more['id']} needs no judgement": lambda lines: [*lines, more],
    }
    for sentence, change in bad.items():
        with pytest.raises(ValueError, match=sentence):
            judge(tmp_path, with_unread(), change)


def test_without_released_answers_nothing_is_scored(tmp_path):
    """As of the test split: the upload alone."""
    lines = ["index\timage\tquestion\tA\tB\tsplit", f"1\t{'A' * 100}\tWhat?\tx\ty\ttest"]
    path = tmp_path / "MMBench_TEST_EN.tsv"
    path.write_text("\n".join(lines) + "\n")
    questions = read(tmp_path, "TEST_EN")
    for rule in MMBENCH.rules.values():
        scored = rule(questions, ["A"])
        assert (scored.scores[0].parsed, scored.scores[0].score) == ("A", None)
        assert not scored.figures
        assert "not released" in scored.notes[0]
    header, row = cells(MMBENCH.submission(questions, ["A"])[UPLOAD])
    assert header == ["index", "question", "A", "B", "prediction", "split"]
    assert row == ["1", "What?", "x", "y", "A", "test"]


def test_an_option_that_pandas_takes_for_missing(tmp_path):
    """VLMEvalKit cannot read its letter; the figures "na_kept" are those with its text."""
    rows = ["index\timage\tquestion\tA\tB\tanswer", f"1\t{'A' * 100}\tWhat?\tcat\tNone\tB"]
    rows += ["1000001\t1\tWhat?\tNone\tcat\tA"]
    (tmp_path / "MMBench_DEV_EN.tsv").write_text("\n".join(rows) + "\n")
    questions = read(tmp_path)
    assert questions[0].options == {"A": "cat", "B": "None"}
    scored = MMBENCH.rules["vlmevalkit"](questions, ["B", "A"])
    views = {view: scored.figures[f"{view}/Overall"] for view in ("circular", "circular_na_kept")}
    assert views == {"circular": 0.0, "circular_na_kept": 1.0}
    assert "VLMEvalKit takes an option of these questions for missing: 1" in scored.notes


def test_copies_that_are_not_there_are_told_of():
    first = [question for question in QUESTIONS if len(question.id) < 7]
    notes = MMBENCH.rules["vlmevalkit"](first, [question.truth for question in first]).notes
    assert f"{len(first)} questions, {first[0].id} the first, do not stand there" in notes[0]
