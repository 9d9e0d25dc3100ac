"""Captions: parsing, scores against truths, and answers that ignore the image."""

import types

import evaluation_stand_ins as parts
import pytest

from emu3_jax.evaluate import language_use
from emu3_jax.evaluate.emoji.captions import EmojiCaptions
from emu3_jax.evaluate.emoji.names import ParsedCaption, normalise, parse_caption
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.train import weights


@pytest.mark.parametrize(
    ("text", "person", "tones"),
    [
        ("waving hand: dark skin tone", "waving hand", (4,)),
        ("person: medium-dark skin tone, blond hair", "person blond hair", (3,)),
        ("Woman: Medium Skin Tone", "woman", (2,)),
        ("man: medium light skin tone", "man", (1,)),
        ("medium-light skin tone", "", (1,)),
        ("kiss: man, man, light skin tone, dark skin tone", "kiss man man", (0, 4)),
        ("grinning face", "grinning face", ()),
        ("love-you gesture:  light skin tone ", "love-you gesture", (0,)),
        ("woman’s boot", "woman's boot", ()),
        ("- 'quoted' -", "quoted", ()),
        ("", "", ()),
    ],
)
def test_parse_caption(text, person, tones):
    assert parse_caption(text) == ParsedCaption(person, tones)
    assert parse_caption(f"{text}, Noto style") == ParsedCaption(person, tones, "Noto")


def test_a_caption_without_a_style_means_3d():
    assert parse_caption("apple, 3D style") == parse_caption("apple")
    assert parse_caption("apple in Noto style").style == "3D"


def test_base_and_caption_agree_on_the_person():
    assert parse_caption("woman: curly hair").person == (
        parse_caption("woman: light skin tone, curly hair").person
    )
    assert normalise("ＯＫ Hand") == "ok hand"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    parts.write_corpus(folder)
    return folder


@pytest.fixture
def evaluate(folder, monkeypatch):
    """(split, write) → the result of a model that answers images as `write` does."""
    tokenizer = (parts.GreyTokenizer(), {})
    monkeypatch.setattr(weights, "load_vision_tokenizer", lambda path: tokenizer)

    def evaluate(split, write):
        monkeypatch.setattr(language_use, "caption", lambda b, t, images, *_: write(images))
        evaluator = EmojiCaptions(data=str(folder), vision_tokenizer="grey", splits=(split,))
        return evaluator.run(Subject(language_model=types.SimpleNamespace(media={})))

    return evaluate


ANSWERS = ["man: light skin tone", "Woman: dark skin tone", "guards: medium skin tone"]


def test_shares_and_table(evaluate):
    result = evaluate("validation_combination", lambda images: ANSWERS)
    metric = {k.removesuffix("_validation_combination"): v for k, v in result.metrics.items()}
    assert metric["count"] == 3
    assert metric["tone_right"] == pytest.approx(200 / 3)
    assert metric["person_right"] == pytest.approx(200 / 3)
    assert metric["both_right"] == pytest.approx(100 / 3)
    assert metric["caption_exact"] == pytest.approx(100 / 3)
    assert metric["tone_chance_uniform"] == 20
    assert metric["tone_chance_majority"] == pytest.approx(100 / 3)
    table = result.tables["validation_combination"]
    assert table.columns[:3] == ("id", "truth", "generated")
    assert table.rows[1][:3] == ("woman1", "woman: medium-light skin tone", ANSWERS[1])


def test_the_nearest_training_image_cannot_name_an_unseen_combination(evaluate):
    metrics = evaluate("validation_combination", lambda images: ANSWERS).metrics
    assert metrics["both_nearest_image_validation_combination"] == 0
    assert metrics["person_nearest_image_validation_combination"] == 100


def test_only_toned_stills_are_asked_for_and_only_pixels_are_shown(evaluate):
    asked = []

    def write(images):
        asked.extend(images)
        return ["elf: medium-dark skin tone"] * len(images)

    metrics = evaluate("validation", write).metrics
    assert [p.shape for p in asked] == [(16, 16, 3)]
    assert metrics["both_right_validation"] == 100
