"""Letters in answers: what the made-up answers of the golden files do not show."""

import pytest

from emu3_jax.evaluate.benchmarks.choices import letters, mmmu_answers

OPTIONS = {"A": "red", "B": "green", "C": "blue"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B one two three", "B"),
        ("B one two three four", None),
        ("B one two three four B", None),  # where it first stands counts
        ("a", None),
        ("Z", "Z"),
        ("Cannot determine the answer, A", "Z"),
        ("the answer is a colour of the sky, in my opinion or so it seems", "A"),
        ("red and green", None),
        ("It is blue.", "C"),
        ("It is blue, I am sure of it", None),  # over twice as long as all options
    ],
)
def test_vlmevalkit(answer, letter):
    assert letters.vlmevalkit(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("", ""),
        ("A", "A"),
        ("B. because A is not", "B"),
        ("not A but (C) or so", "C"),
        ("(A) and then (B) follow", "B"),
        ("the answer is b, no: B it is", "B"),
        ("I say it is D", "D"),
        ("xAx", "A"),
        ("E", ""),
    ],
)
def test_lmms_eval(answer, letter):
    assert letters.lmms_eval(answer) == letter


def test_options_that_pandas_takes_for_missing():
    assert letters.seen_by_pandas({"A": "None", "B": "none", "C": "N/A", "D": "0"}) == {
        "B": "none",
        "D": "0",
    }


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("The answer is 1,234.567.", {"1,234.567", 1234.57}),
        ("x = 2\ny = 3.5e2", {"3.5e2", 350.0}),
        ("so it is so blue", {"blue"}),
        ("", {""}),
    ],
)
def test_phrases_of_mmmu(answer, found):
    phrases = mmmu_answers.phrases(answer)
    assert found & phrases
    assert mmmu_answers.is_right(phrases, ["1,234.567", "350", "blue"]) == bool(answer)
