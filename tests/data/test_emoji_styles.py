"""The corpus of four styles: what is unpacked, how captions name a style, no split leaks."""

import collections
import json
import zipfile

import numpy as np
import pytest

from benchmarks.data.near_twins import nearest_psnr
from emu3_jax.data import emoji_styles, fluent_emoji, media
from emu3_jax.data.emoji_documents import edits
from emu3_jax.data.emoji_prompts import write_prompts
from emu3_jax.data.emoji_styles import DEFAULT, EMBEDDED, STYLES, split_style
from emu3_jax.data.fluent_emoji import UNSEEN_STYLE, read_rows, read_split, splits_of

HELD_OUT = ("validation", "validation_combination", UNSEEN_STYLE)


@pytest.fixture(scope="module")
def concepts():
    with zipfile.ZipFile(EMBEDDED) as archive:
        return read_rows(archive, emoji_styles.CONCEPTS)


def still_rows(concepts):
    """(concept, style, split, place) of every still."""
    return [(c, style, *where) for c in concepts for style, where in c["stills"].items()]


def small_zip(path, concepts):
    """A few concepts of the corpus with their sheets."""
    kept = [
        next(c for c in concepts if s in {x[0] for x in c["stills"].values()}) for s in HELD_OUT
    ]
    kept += [c for c in concepts if c["base"] == "man cook"]
    with zipfile.ZipFile(EMBEDDED) as full, zipfile.ZipFile(path, "w") as small:
        lines = "".join(json.dumps(concept) + "\n" for concept in kept)
        small.writestr(emoji_styles.CONCEPTS, lines)
        names = {
            emoji_styles.sheet(style, place // emoji_styles.TILES**2)
            for _, style, _, place in still_rows(kept)
            if place is not None
        }
        for name in names:
            small.writestr(name, full.read(name))
    return kept


@pytest.fixture(scope="module")
def small(concepts, tmp_path_factory):
    """(concepts, folder) of an unpacked part of the corpus."""
    folder = tmp_path_factory.mktemp("styles")
    kept = small_zip(folder / "small.zip", concepts)
    return kept, emoji_styles.prepare(folder / "small.zip", folder / "corpus")


def test_every_still_becomes_a_row_and_an_image(small):
    kept, corpus = small
    assert splits_of(corpus) == ("train", *HELD_OUT)
    found = {}
    for split in splits_of(corpus):
        for row in read_split(corpus, split):
            if "image" in row:
                assert media.read_image(corpus / row["image"]).shape == (64, 64, 3)
                found[row["base"], row["tone"], row["style"]] = split
    expected = {(c["base"], c["tone"], style): split for c, style, split, _ in still_rows(kept)}
    assert found == expected
    text = [row["text"] for row in read_split(corpus, "text")]
    trained = [c for c in kept if "train" in {split for split, _ in c["stills"].values()}]
    assert text == [fluent_emoji.sentence(concept) for concept in trained]


def test_a_still_of_the_3d_corpus_is_taken_from_it(small):
    row = next(r for r in read_split(small[1], "train") if r["id"] == "1f468-200d-1f373")
    with zipfile.ZipFile(fluent_emoji.EMBEDDED) as archive:
        expected = archive.read("stills/1f468-200d-1f373.webp")
    assert (small[1] / row["image"]).read_bytes() == expected


def test_captions_name_the_style_in_both_languages(small):
    _, corpus = small
    for split in splits_of(corpus):
        chinese = read_split(corpus, f"{split}_zh")
        for row, row_zh in zip(read_split(corpus, split), chinese, strict=True):
            plain, style = split_style(row["text"])
            assert style == row["style"] and row_zh["id"] == f"{row['id']}-zh"
            in_chinese = row_zh["text"].endswith(f"，{STYLES[style]}风格")
            if style != DEFAULT:
                assert row["text"] == emoji_styles.styled(plain, style) and in_chinese
            else:  # of a training still one of the two, of one that is held out none
                named = (row["text"] != plain) + in_chinese
                assert named == (split == "train")


def test_things_are_training_stills_of_concepts_without_tones(small):
    kept, corpus = small
    things = read_split(corpus, emoji_styles.THINGS)
    bases = {row["base"] for row in things}
    assert bases and "man cook" not in bases
    expected = {c["base"] for c in kept if c["base"] != "man cook"}
    trained = [row for row in read_split(corpus, "train") if "image" in row]
    assert things == [row for row in trained if row["base"] in expected]


def test_edits_keep_the_style_or_change_it_alone(small):
    _, corpus = small
    rows = [r | {"split": s} for s in splits_of(corpus) for r in read_split(corpus, s)]
    stills = {row["image"]: row for row in rows if "image" in row}
    kept, changed = set(), set()
    for edit in edits(rows, "train"):
        source, target = stills[edit["source"]], stills[edit["target"]]
        if edit["kind"] == "style":
            changed.add(target["style"])
            assert source["style"] != target["style"]
            assert (source["base"], source["tone"]) == (target["base"], target["tone"])
        else:
            kept.add(target["style"])
            assert source["style"] == target["style"]
    # The man cook of Twemoji is held out.
    assert kept == set(STYLES) - {"Twemoji"}
    assert changed == set(STYLES)


def test_no_known_caption_is_a_prompt_with_or_without_3d(small, tmp_path):
    _, corpus = small
    assert write_prompts(corpus, tmp_path / "prompts.txt")
    prompts = {split_style(p) for p in (tmp_path / "prompts.txt").read_text().splitlines()}
    assert ("woman cook", "Noto") in prompts
    for split in splits_of(corpus):
        assert not prompts & {split_style(row["text"]) for row in read_split(corpus, split)}


def test_a_zip_without_its_sheets_leaves_nothing(small, tmp_path):
    kept, _ = small
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(emoji_styles.CONCEPTS, json.dumps(kept[-1]))
    with pytest.raises(ValueError, match="bad.zip: cannot be unpacked as the emoji corpus"):
        emoji_styles.prepare(tmp_path / "bad.zip", tmp_path / "corpus")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.zip"]


# ----------------------------------------------------------------------- splits of the whole corpus


def test_every_place_of_a_sheet_is_used_once(concepts):
    places = collections.defaultdict(list)
    for _, style, _, place in still_rows(concepts):
        if place is not None:
            places[style].append(place)
    with zipfile.ZipFile(EMBEDDED) as archive:
        names = set(archive.namelist()) - {emoji_styles.CONCEPTS}
    per_sheet = emoji_styles.TILES**2
    assert names == {
        emoji_styles.sheet(style, number)
        for style, of_style in places.items()
        for number in range(-(-len(of_style) // per_sheet))
    }
    for of_style in places.values():
        assert of_style == list(range(len(of_style)))


def test_unseen_concepts_are_in_no_style_of_training(concepts):
    splits = collections.defaultdict(set)
    for concept, _, split, _ in still_rows(concepts):
        splits[concept["base"]].add(split)
    unseen = [found for found in splits.values() if "validation" in found]
    assert len(unseen) > 100 and all(found == {"validation"} for found in unseen)


def test_unseen_combinations_are_seen_apart_only(concepts):
    splits = collections.defaultdict(set)
    tones, bases = set(), set()
    for concept, _, split, _ in still_rows(concepts):
        splits[concept["base"], concept["tone"]].add(split)
        if split == "train":
            tones.add(concept["tone"])
            bases.add(concept["base"])
    unseen = [k for k, found in splits.items() if "validation_combination" in found]
    assert len(unseen) > 50
    for base, tone in unseen:
        assert splits[base, tone] == {"validation_combination"}
        assert tone in tones and base in bases


def test_an_unseen_pair_is_seen_in_another_style_and_its_base_not_in_this_one(concepts):
    trained = {
        (c["base"], style) for c, style, split, _ in still_rows(concepts) if split == "train"
    }
    count = collections.Counter()
    for concept, style, split, _ in still_rows(concepts):
        if split == UNSEEN_STYLE:
            count[style] += 1
            assert (concept["base"], style) not in trained
            assert "train" in {other for other, _ in concept["stills"].values()}
    assert count.keys() == set(STYLES) and min(count.values()) > 80


def test_what_the_3d_corpus_holds_out_is_held_out(concepts):
    with zipfile.ZipFile(fluent_emoji.EMBEDDED) as archive:
        old = {row["id"]: row["split"] for row in read_rows(archive)}
    for concept, _, split, _ in still_rows(concepts):
        if old.get(concept["id"], "train") != "train":
            assert split == old[concept["id"]]
    places = {c["id"]: c["stills"].get(DEFAULT, [None, 0])[1] for c in concepts}
    assert {emoji for emoji, place in places.items() if place is None} <= old.keys()


@pytest.mark.slow
def test_no_held_out_still_has_a_near_twin_in_training(tmp_path):
    """As benchmarks/data/near_twins.py counts them: 30 dB of PSNR, in any style."""
    corpus = emoji_styles.prepare(EMBEDDED, tmp_path / "corpus")

    def pixels(split):
        rows = [row for row in read_split(corpus, split) if "image" in row]
        stills = [media.read_image(corpus / row["image"]).ravel() for row in rows]
        return np.stack(stills).astype(np.float32)

    train_MD = pixels("train")
    for split in HELD_OUT:
        assert nearest_psnr(pixels(split), train_MD).max() < 30
