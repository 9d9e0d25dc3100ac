"""The rule of VQA, apart from what the golden answers show."""

import pytest

from emu3_jax.evaluate.benchmarks.open_answers import normalising


@pytest.mark.parametrize(
    ("text", "official", "m4c", "vlmevalkit"),
    [
        ("A dog.", "dog", "dog", "dog"),
        ("left-side", "left side", "left side", "left side"),
        ("left -side", "left side", "left side", "left side"),
        ("10,000 a-b", "10000 ab", "10000 b", "10000 ab"),
        ("1,,2", "1 2", "12", "1 2"),
        ("1.5.", "1.5", "1.5", "1.5."),
        ("3.", "3", "3", "3."),
        (".5", ".5", ".5", ".5"),
        ("a.m.", "am", "am", "am"),
        ("What?", "what", "what", "what"),
        ("Bob's", "bob's", "bob 's", "bob's"),
        ("dont", "don't", "don't", "don't"),
        ("couldnt've", "couldn't've", "couldn't've", "couldn't've"),
        ("somebody'd", "somebodyd", "somebodyd", "somebodyd"),
        ("none of the ten", "0 of 10", "0 of 10", "0 of 10"),
        ("two\nthe\tdogs", "2 dogs", "2 dogs", "2 dogs"),
        ("٣,٤-b", "٣ ٤ b", "٣٤ b", "٣٤b"),
        ("x." * 33, "x" * 33 + ".", "x" * 33 + ".", "x" * 33 + "."),
    ],
)
def test_normalised(text, official, m4c, vlmevalkit):
    assert normalising.official(text) == official
    assert normalising.m4c(text) == m4c
    assert normalising.vlmevalkit(text) == vlmevalkit


def test_lmms_eval_keeps_the_possessive():
    assert normalising.lmms_eval("Bob's") == "bob's"


@pytest.mark.parametrize(("given", "share"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_agreement(given, share):
    people = ["yes"] * given + ["no"] * (10 - given)
    assert normalising.agreement("yes", people) == pytest.approx(share)
