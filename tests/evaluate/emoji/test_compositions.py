"""Compositions: what captions state, who is right, and a judge that is found out if it guesses."""

import itertools
import json
import types

import evaluation_stand_ins as parts
import numpy as np
import pytest

from emu3_jax.config import ConfigError
from emu3_jax.data import media
from emu3_jax.evaluate import language_use
from emu3_jax.evaluate.emoji import compositions, judged_sheet
from emu3_jax.evaluate.emoji.compositions import EmojiCompositions
from emu3_jax.evaluate.emoji.judge import Reading
from emu3_jax.evaluate.emoji.names import stated_parts
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.interop.bundle import Language
from emu3_jax.train import weights

YELLOW = (255, 220, 0)
SHIRTS = {"man": (200, 30, 30), "woman": (30, 220, 60), "person": (10, 10, 90)}
ACTIVITIES = ("running", "swimming", "singing")


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("woman: dark skin tone, blond hair", ["dark", "woman", "blond hair"]),
        ("man: medium-light skin tone", ["medium-light", "man", None]),
        ("pregnant person", [None, "person", "pregnant"]),
        ("waving hand: light skin tone", ["light", None, "waving hand"]),
        ("woman’s boot", [None, None, "woman's boot"]),
        ("women wrestling", [None, "women", "wrestling"]),
        ("kiss: man, man, light skin tone, dark skin tone", [None, None, None]),
        ("woman and man holding hands", [None, None, None]),
        ("", [None, None, None]),
    ],
)
def test_the_parts_that_a_caption_states(text, stated):
    found = stated_parts(text)
    assert [found.get(part) for part in ("tone", "person", "activity")] == stated


def image(tone: str | None, person: str | None, activity: str | None) -> np.ndarray:
    """A face above a shirt above bars, a floor or nothing, uint8 [16, 16, 3]."""
    pixels = np.full((16, 16, 3), 255, np.uint8)
    pixels[:4] = YELLOW if tone is None else parts.SKIN[parts.TONES.index(tone)]
    pixels[4:8] = SHIRTS.get(person, 255)
    pixels[8:] = 128
    if activity == "running":
        pixels[8:, 4:8] = pixels[8:, 12:] = 0
    elif activity == "swimming":
        pixels[12:] = 0
    return pixels


def write_splits(folder, splits) -> str:
    """Writes items (tone, person, activity) → the folder, as text."""
    folder.mkdir()
    for split, stated in splits.items():
        rows = []
        for i, (tone, person, activity) in enumerate(stated):
            words = " ".join(word for word in (person, activity) if word)
            name = f"{split}{i}"
            media.write_png(folder / f"{name}.png", image(tone, person, activity))
            text = f"{words}: {tone} skin tone" if tone else words
            rows.append({"id": name, "text": text, "image": f"{name}.png"})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


ALL = list(itertools.product((None, *parts.TONES), SHIRTS, ACTIVITIES))
UNSEEN = [one for one in ALL if one[1:] == ("man", "running")]
TOGETHER = [("dark", "woman", "singing"), ("light", "person", "swimming")]
TRAIN = [one for one in ALL if one not in (*UNSEEN, *TOGETHER)]
ALONE = [("dark", None, "fist"), (None, "woman", "juggling"), (None, None, "singing")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    splits = {
        "train": [*TRAIN, (None, None, "moon")],
        "validation": [(None, None, "moon"), *UNSEEN, *ALONE],
        "validation_combination": TOGETHER,
    }
    return write_splits(tmp_path_factory.mktemp("compositions") / "data", splits)


@pytest.fixture(autouse=True)
def grey(monkeypatch):
    tokenizer = (parts.GreyTokenizer(), {})
    monkeypatch.setattr(weights, "load_vision_tokenizer", lambda path: tokenizer)
    draw_with(monkeypatch, lambda item: item.pixels)


def draw_with(monkeypatch, one):
    """Lets the model draw one(item) for each caption."""
    monkeypatch.setattr(language_use, "draw", lambda b, t, chosen, o: [one(i) for i in chosen])


def evaluate(data, **settings):
    evaluator = EmojiCompositions(data=data, vision_tokenizer="grey", **settings)
    return evaluator.run(Subject(language_model=types.SimpleNamespace(media={})))


def test_a_perfect_artist_is_as_right_as_the_real_images(folder):
    result = evaluate(folder)
    metrics = result.metrics
    assert metrics["count"] == len(UNSEEN) + len(ALONE) + len(TOGETHER)
    assert [metrics[f"count_{name}"] for name in compositions.KINDS] == [1, 1, 1, 1, 7]
    assert metrics["overall_right"] == metrics["overall_real"] == 100
    assert 0 < metrics["overall_ceiling"] <= 100
    assert metrics["overall_chance"] < 50
    assert not [note for note in result.notes if "cannot read" in note]
    few = "tone_only 1, person_only 1, activity_only 1, two 1, three 7"
    assert f"few captions of a kind, so overall is uncertain: {few}" in result.notes
    assert list(metrics)[:4] == [f"overall_{n}" for n in ("right", "ceiling", "real", "chance")]


def test_an_artist_as_good_as_the_tokenizer_reaches_the_ceiling(folder, monkeypatch):
    def through_codes(item):
        tokenizer = parts.GreyTokenizer()
        codes = tokenizer.encode(item.pixels[None] / 127.5 - 1)
        return np.asarray((tokenizer.decode(codes)[0] + 1) * 127.5).round().astype(np.uint8)

    draw_with(monkeypatch, through_codes)
    metrics = evaluate(folder).metrics
    for figure in ("overall", "whole", "tone", "person", "activity", "three"):
        assert metrics[f"{figure}_right"] == metrics[f"{figure}_ceiling"]


def test_an_artist_who_ignores_the_caption_is_right_by_chance(folder, monkeypatch):
    draw_with(monkeypatch, lambda item: image("dark", "woman", "singing"))
    result = evaluate(folder)
    for name in ("overall", "whole", "tone", "person", "activity", "three"):
        assert result.metrics[f"{name}_right"] == pytest.approx(result.metrics[f"{name}_chance"])
    right = [row for row in result.tables["judged"].rows if row[4]]
    assert [row[2] for row in right] == [
        "fist: dark skin tone", "woman juggling", "singing", "woman singing: dark skin tone",
    ]  # fmt: skip


def test_a_judge_that_cannot_learn_is_found_out(folder, monkeypatch):
    judge = compositions.Judge

    def misled(images, labels, bases):
        rng = np.random.default_rng(0)
        shuffled = {part: list(rng.permutation(np.array(v))) for part, v in labels.items()}
        return judge(images, shuffled, bases)

    monkeypatch.setattr(compositions, "Judge", misled)
    result = evaluate(folder)
    assert result.metrics["overall_real"] < 60
    assert result.metrics["whole_real"] < 30
    doubts = [note for note in result.notes if "cannot read" in note]
    assert len(doubts) == 3
    assert "what it says of drawn images means nothing" in doubts[0]


def test_limit_counts_compositions(folder):
    metrics = evaluate(folder, limit=1).metrics
    assert metrics["count"] == 2
    assert metrics["count_two"] == 1 and metrics["count_three"] == 1


def test_a_part_that_is_never_stated_is_said_to_be_unjudged(tmp_path):
    train = [(tone, "man", None) for tone in parts.TONES]
    train += [(tone, "woman", None) for tone in parts.TONES[1:]]
    train += [("dark", None, "fist"), ("light", None, "fist")]
    data = write_splits(tmp_path / "d", {"train": train, "test": [("light", "woman", None)]})
    result = evaluate(data, splits=("test",))
    assert result.metrics["two_right"] in (0, 100)
    assert "activity_right" not in result.metrics
    assert any("known activity: it was not judged" in note for note in result.notes)


def reading(*values):
    return Reading(values, np.full(len(values), 0.5))


def test_figures_by_hand():
    stated = [
        {"tone": "dark"},
        {"tone": "light"},
        {"tone": "dark", "person": "man"},
        {"tone": "dark", "person": "man", "activity": "bowing"},
    ]
    read = {
        "tone": reading("dark", "dark", "dark", "light"),
        "person": reading("man", "man", "woman", "man"),
        "activity": reading("bowing", "", "", "bowing"),
    }
    found = compositions.figures(stated, {"right": read, "real": read})
    assert found["tone_only_right"] == 50
    assert found["two_right"] == found["three_right"] == 0
    assert found["overall_right"] == pytest.approx(50 / 3)
    assert found["whole_right"] == 25
    assert found["tone_right"] == 50
    assert found["person_right"] == 50
    assert found["activity_right"] == 100
    # Any image for any caption: tone 3/4 and 1/4; two 2/4, of images 0 and 1; three 1/4.
    assert found["tone_only_chance"] == 50
    assert found["two_chance"] == 50
    assert found["three_chance"] == 25
    assert found["overall_chance"] == pytest.approx(125 / 3)
    assert found["tone_confidence"] == found["activity_confidence_real"] == 50
    assert found["count_two"] == 1


def test_the_sheet_has_a_tile_for_each_image_shown():
    images = [image("dark", "man", "running"), np.zeros((8, 24, 3), np.uint8)]
    read = {"tone": reading("dark", ""), "person": reading("man", "woman")}
    found = judged_sheet.sheet(images, images, [{"tone": "dark"}, {"person": "man"}], read, 9)
    assert found.dtype == np.uint8 and found.shape[1] > 2 * 2 * judged_sheet.SIDE


BAD = {
    "no persons": (
        {"train": [(None, None, "moon"), (None, None, "sun")], "validation": ALONE},
        "the captions of the split 'train' do not state two different tones of skin, nor",
    ),
    "no compositions": (
        {"train": TRAIN, "validation": [(None, None, "moon")]},
        "no caption of the split 'validation' states a tone, a person or an activity that",
    ),
    "one base": (
        {"train": [one for one in TRAIN if one[1:] == ("woman", "running")], "validation": ALONE},
        "a judge needs images of at least 3 bases",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_data_without_compositions_is_refused_in_one_sentence(tmp_path, name):
    splits, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(write_splits(tmp_path / "d", splits), splits=("validation",))
    assert "\n" not in str(caught.value)


def test_settings_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must not name 'train', from which the judge learns"):
        EmojiCompositions(splits=("train",))
    data = write_splits(tmp_path / "d", {"validation": ALONE})
    evaluator = EmojiCompositions(data=data, vision_tokenizer="grey", splits=("validation",))
    with pytest.raises(ConfigError, match="has no split 'train'"):
        evaluator.check(Language.__new__(Language))
