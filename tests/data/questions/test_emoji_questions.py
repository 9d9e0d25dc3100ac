"""Questions about emoji: true, balanced, and about held-out emoji only where they should be."""

import collections
import json

import pytest

from emu3_jax.data.fluent_emoji import EMBEDDED, SPLITS, TONES, prepare
from emu3_jax.data.questions import emoji


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = prepare(EMBEDDED, tmp_path_factory.mktemp("emoji") / "corpus")
    emoji.write_questions(folder)
    return folder


def rows_of(corpus, name):
    return [json.loads(line) for line in (corpus / f"{name}.jsonl").read_text().splitlines()]


def stills(corpus, split):
    return {row["id"]: row for row in rows_of(corpus, split) if "image" in row}


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_those_of_the_corpus(corpus, split):
    known = stills(corpus, split)
    for row in rows_of(corpus, f"questions_{split}"):
        of = known[row["id"].rpartition("-")[0]]
        assert row["turns"][0]["image"] == of["image"]
        for turn in row["turns"]:
            question, answer = turn["question"], turn["answer"]
            if answer in ("yes", "no"):
                right = [of["group"], *of["tags"]]
                right += [TONES[of["tone"] - 1]] if of["tone"] else []
                named = [
                    word
                    for form in (*emoji.IS_GROUP, *emoji.IS_TAG, *emoji.IS_TONE)
                    if (word := _named(form, question)) is not None
                ]
                assert any(word in right for word in named) == (answer == "yes"), turn
            else:
                tones = [TONES[of["tone"] - 1]] if of["tone"] else []
                assert answer in (of["base"], of["group"], *tones), turn


def _named(form, question):
    before, _, after = form.partition("{}")
    if question.startswith(before) and question.endswith(after):
        return question[len(before) : len(question) - len(after)]
    return None


def test_yes_and_no_are_balanced_within_four_standard_errors(corpus):
    rows = rows_of(corpus, "questions_train")
    answers = collections.Counter(t["answer"] for row in rows for t in row["turns"])
    count = answers["yes"] + answers["no"]
    assert count > 4000
    assert abs(answers["yes"] / count - 0.5) < 4 * 0.5 / count**0.5


def test_every_kind_is_asked_of_held_out_emoji(corpus):
    kinds = collections.Counter(row["kind"] for row in rows_of(corpus, "questions_validation"))
    assert set(kinds) == {"name", "group", "is group", "is tag", "tone", "which tone", "is tone"}
    assert kinds["name"] == len(stills(corpus, "validation"))
    combination = rows_of(corpus, "questions_validation_combination")
    assert sum(row["kind"] == "tone" for row in combination) == 73


def test_a_second_call_writes_the_same_files(corpus):
    before = (corpus / "questions_train.jsonl").read_bytes()
    emoji.write_questions(corpus)
    assert (corpus / "questions_train.jsonl").read_bytes() == before


def test_another_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not the unpacked corpus"):
        emoji.write_questions(tmp_path)


def test_the_style_is_asked_for_where_there_are_several():
    row = {"id": "1f436-noto", "base": "dog face", "group": "animals", "tags": [], "tone": None}
    kinds = lambda row: {asked.kind: asked.answer for asked in questions_of(row)}  # noqa: E731
    assert "style" not in kinds(row)
    assert kinds(row | {"style": "Noto"})["style"] == "Noto"


def questions_of(row):
    return emoji.questions(row, ["animals", "food"], ["bone"])
