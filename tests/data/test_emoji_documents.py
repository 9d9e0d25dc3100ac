"""Edits and clips of the emoji corpus: what they ask for, and what is held out."""

import collections
import json
import re

import numpy as np
import pytest

from emu3_jax.data import media
from emu3_jax.data.emoji_documents import PERSONS, edits, write_documents
from emu3_jax.data.fluent_emoji import EMBEDDED, SPLITS, TONES, prepare
from emu3_jax.data.sources import open_source


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = prepare(EMBEDDED, tmp_path_factory.mktemp("emoji") / "corpus")
    write_documents(folder)
    return folder


def rows_of(corpus, name):
    return [json.loads(line) for line in (corpus / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def stills(corpus):
    """Path of an image → its row, with its split."""
    return {
        row["image"]: row | {"split": split}
        for split in SPLITS
        for row in rows_of(corpus, split)
        if "image" in row
    }


def test_there_are_edits_of_both_kinds_in_every_split(corpus):
    for split, least in zip(SPLITS, (5000, 500, 200), strict=True):
        kinds = collections.Counter(row["kind"] for row in rows_of(corpus, f"edits_{split}"))
        assert set(kinds) == {"tone", "person"} and kinds.total() > least, (split, kinds)
        ids = [row["id"] for row in rows_of(corpus, f"edits_{split}")]
        assert len(set(ids)) == len(ids)


def test_no_image_that_is_held_out_occurs_in_training(corpus, stills):
    for split in SPLITS:
        for row in rows_of(corpus, f"edits_{split}"):
            assert stills[row["target"]]["split"] == split
            assert stills[row["source"]]["split"] in ("train", split)
    held_out = {row["target"] for s in SPLITS[1:] for row in rows_of(corpus, f"edits_{s}")}
    assert held_out
    trained = {row[side] for row in rows_of(corpus, "edits_train") for side in ("source", "target")}
    assert not trained & held_out


@pytest.mark.parametrize("split", SPLITS)
def test_the_instruction_is_the_difference_of_the_captions(corpus, stills, split):
    for row in rows_of(corpus, f"edits_{split}"):
        source, target = stills[row["source"]], stills[row["target"]]
        if row["kind"] == "tone":
            assert source["base"] == target["base"] and source["tone"] != target["tone"]
            # The longest first, as "dark" is within "medium-dark".
            named = re.findall("|".join(sorted(TONES, key=len, reverse=True)), row["instruction"])
            assert named == ([TONES[target["tone"] - 1]] if target["tone"] else []), row
        else:
            before, after = re.findall(rf"\b(?:{'|'.join(PERSONS)})\b", row["instruction"])
            changed = re.sub(rf"\b{before}\b", after, source["text"])
            assert changed == target["text"] != source["text"], row


def test_all_pairs_of_one_emoji_are_taken_in_both_directions():
    stills = [
        {"id": f"{base} {tone}", "base": base, "tone": tone, "image": f"{base} {tone}",
         "split": "train"}
        for base in ("man", "woman", "manual")
        for tone in (None, 1, 5)
    ]  # fmt: skip
    made = edits([*stills, {"id": "a clip", "base": "man", "split": "train"}], "train")
    pairs = {(row["source"], row["target"]): row for row in made}
    assert len(pairs) == len(made) == 3 * 6 + 2 * 3
    assert pairs["man None", "woman None"]["instruction"].split()[-1] == "woman."
    assert ("manual 1", "man 1") not in pairs and ("man 1", "woman 5") not in pairs


def test_one_edit_of_style_for_each_target_of_a_corpus_of_styles():
    stills = [
        {"id": f"{style} {split}", "base": "cat", "tone": None, "style": style,
         "image": f"{style} {split}", "split": split}
        for style, split in (("3D", "train"), ("Noto", "train"), ("flat", "validation_style"),
                             ("Twemoji", "validation"))
    ]  # fmt: skip
    (trained,) = [row for row in edits(stills, "train") if row["target"] == "Noto train"]
    assert trained["source"] == "3D train"  # never one that is held out
    assert "Noto" in trained["instruction"] and trained["kind"] == "style"
    (held_out,) = edits(stills, "validation_style")
    assert held_out["target"] == "flat validation_style" and "flat" in held_out["instruction"]
    assert held_out["source"] in ("3D train", "Noto train")


def test_edits_and_clips_are_read(corpus):
    """By the readers of the configs that tokenize them, without a problem."""
    for spec, split in (("edit:edits", "validation"), ("videos", "train")):
        items = list(open_source(f"{spec}_{split}.jsonl", corpus).items(0))
        assert {(item.kind, item.problem) for item in items} == {("document", "")}
    assert items[0].segments[0]["loss"] is False


def test_each_clip_is_begun_by_its_first_image_and_by_its_first_half(corpus):
    for split in ("train", "validation"):
        clips = {row["id"]: row for row in rows_of(corpus, split) if "video" in row}
        rows = rows_of(corpus, f"videos_{split}")
        assert len(rows) == 2 * len(clips) > 90
        for row in rows:
            clip = clips[row["id"].rpartition("-")[0]]
            last = row["segments"][-1]
            assert (row["segments"][0]["text"], last["video"]) == (clip["text"], clip["video"])
            if row["kind"] == "continuation":
                assert last["context"] == clip["seconds"] / 2
        first = next(row for row in rows if row["kind"] == "image to video")["segments"]
        frames, _, _ = media.read_video(corpus / first[2]["video"])
        np.testing.assert_array_equal(media.read_image(corpus / first[1]["image"]), frames[0])
    assert not (corpus / "videos_validation_combination.jsonl").exists()


def test_a_second_call_writes_the_same_files(corpus):
    before = (corpus / "edits_train.jsonl").read_bytes()
    write_documents(corpus)
    assert (corpus / "edits_train.jsonl").read_bytes() == before


def test_another_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not the unpacked corpus"):
        write_documents(tmp_path)
