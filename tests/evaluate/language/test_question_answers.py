"""Answers to questions: what is asked, what counts as right, and the figures beside it, by hand."""

import dataclasses

import numpy as np
import pytest
import tiny_models

from emu3_jax.data.tokens import records
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.evaluate.language import questions
from emu3_jax.evaluate.language.questions import Case, Known, Questions
from emu3_jax.generate import modalities
from emu3_jax.progress import Progress
from emu3_jax.sequence import Image, Text, Turn, chat_document

CODES = [np.full((2, 4), code, np.int32) for code in range(4)]


@pytest.fixture(scope="module")
def bundle():
    return tiny_models.initial_bundle(codebook_size=16)


def chat(grammar, key, *turns, **attributes):
    segments = tuple(
        dataclasses.replace(s, ids=grammar.text_ids(s.text)) if isinstance(s, Text) else s
        for s in chat_document(turns).segments
    )
    return records.Record(key, "test", "chat", segments, attributes)


def write(folder, bundle, chosen):
    kind = chosen[0].kind
    with records.ShardWriter(folder / "one.array_record") as writer:
        for record in chosen:
            writer.write(record)
    info = records.DatasetInfo(
        bundle.vocab, bundle.grammar.tokenizer.fingerprint, "", bundle.grammar.video_format,
        (records.Shard("one.array_record", kind, len(chosen)),),
        {kind: records.Counts(len(chosen))},
    )  # fmt: skip
    records.write_dataset_info(folder, info)


def shown(code):
    return (Image(CODES[code]),)


@pytest.fixture(scope="module")
def tokens(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    make = lambda key, *turns, **rest: chat(bundle.grammar, key, *turns, **rest)  # noqa: E731
    write(
        folder / "train", bundle,
        [
            make("a", Turn("color?", "red", shown(0)), Turn("is it red?", "yes")),
            make("b", Turn("color?", "blue", shown(1))),
            make("c", Turn("color?", "blue", shown(2))),
        ],
    )  # fmt: skip
    write(
        folder / "test", bundle,
        [
            make("x", Turn("color?", "Red.", shown(0)), kind="color"),
            make("y", Turn("first", "yes", shown(1)), Turn("color?", "blue"), kind="color"),
            make("z", Turn("never asked?", "no", shown(3)), kind="other"),
        ],
    )  # fmt: skip
    return folder


def test_a_case_is_the_document_up_to_its_last_answer(bundle, tokens):
    cases = questions.cases_of(tokens / "test", bundle.grammar)
    assert [(c.key, c.kind, c.question, c.truth) for c in cases] == [
        ("x", "color", "color?", "Red."),
        ("y", "color", "color?", "blue"),
        ("z", "other", "never asked?", "no"),
    ]
    asked = [
        [Turn("color?", media=shown(0))],
        [Turn("first", "yes", shown(1)), Turn("color?")],
        [Turn("never asked?", media=shown(3))],
    ]
    for case, turns in zip(cases, asked, strict=True):
        np.testing.assert_array_equal(case.prompt, bundle.grammar.chat_prompt(turns))
    assert [int(case.codes[0, 0]) for case in cases] == [0, 1, 3]
    assert len(questions.cases_of(tokens / "test", bundle.grammar, limit=2)) == 2


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [("red", "Red.", True), (" Red \n", "red", True), ("red, I think", "red", False),
     ("", "red", False)],
)  # fmt: skip
def test_what_counts_as_right(answer, truth, right):
    assert questions.is_right(answer, truth) == right


def test_figures_without_a_model_are_those_by_hand(bundle, tokens, monkeypatch):
    said, turns = [], questions.turns_of(tokens / "train", bundle.grammar)
    known = Known(turns, ("decoder",), 4, Progress(said.append, every_s=0.0))
    # Every image decodes to its first code as a grey level: 0 is nearest to 0, 3 to 2.
    monkeypatch.setattr(
        questions.vision_codec, "decode",
        lambda tokenizer, codes, batch, done: [
            np.full((64, 64, 3), 9 * c.flat[0], np.uint8) for c in codes
        ],
    )  # fmt: skip
    columns = known.columns(questions.cases_of(tokens / "test", bundle.grammar))
    # "color?" was answered with red once and with blue twice; "never asked?" falls back on all
    # four answers, of which blue is the most frequent and the one of image 2 is blue.
    np.testing.assert_allclose(columns["chance"], [1 / 2, 1 / 2, 1 / 3])
    assert columns["majority"] == [False, True, False]
    assert columns["nearest"] == [True, True, False]
    assert [line.partition(", ")[0] for line in said] == [
        f"images compared: {n} of 3" for n in (1, 2, 3)
    ]


def test_shares_are_means_over_all_and_over_each_kind():
    cases = [Case(str(i), kind, "", "", None, np.zeros(1)) for i, kind in enumerate("aab")]
    found = questions.shares(cases, {"right": [True, False, True]}, "test")
    assert found == {
        "right_test": pytest.approx(200 / 3), "count_test": 3,
        "right_a_test": 50.0, "count_a_test": 2, "right_b_test": 100.0, "count_b_test": 1,
    }  # fmt: skip


def test_every_question_is_asked_and_listed(bundle, tokens, monkeypatch):
    answers = iter(["red", "green", "no"])
    monkeypatch.setattr(
        modalities, "continue_texts", lambda b, prompts, *rest: [next(answers) for _ in prompts]
    )
    found = Questions(tokens=str(tokens), splits=("test",)).run(Subject(language_model=bundle))
    assert found.metrics["right_test"] == pytest.approx(200 / 3)
    assert found.metrics["right_color_test"] == 50.0
    assert [row[:6] for row in found.tables["test"].rows][1] == (
        "y", "color", "color?", "blue", "green", 0.0,
    )  # fmt: skip


def test_a_dataset_without_chats_is_named(bundle, tokens, tmp_path):
    text = Text("words", ids=bundle.grammar.text_ids("words"))
    write(tmp_path / "train", bundle, [records.Record("t", "test", "text", (text,))])
    evaluator = Questions(tokens=str(tmp_path), splits=("train",))
    with pytest.raises(ValueError, match="no records of kind 'chat', only text"):
        evaluator.check(bundle)
