"""Recombined captions: what is changed, and that no caption of the corpus is among them."""

import json

import pytest

from emu3_jax.data.emoji_prompts import recombined, write_prompts
from emu3_jax.data.fluent_emoji import EMBEDDED, SPLITS, prepare


def test_persons_and_tones_are_exchanged_and_nothing_else():
    found = recombined(["man: light skin tone", "red heart", "manual"])
    assert "woman: medium-dark skin tone" in found and "man: dark skin tone" in found
    assert "man: light skin tone" not in found
    assert all(caption.endswith("skin tone") for caption in found)
    assert len(found) == 8 * 5 - 1
    assert "woman: dark skin tone" in recombined(["woman: medium-light skin tone"])


def test_no_caption_of_any_split_is_a_prompt(tmp_path):
    corpus = prepare(EMBEDDED, tmp_path / "corpus")
    count = write_prompts(corpus, tmp_path / "prompts.txt")
    prompts = (tmp_path / "prompts.txt").read_text().splitlines()
    assert count == len(set(prompts)) > 2000
    for split in SPLITS:
        rows = (corpus / f"{split}.jsonl").read_text().splitlines()
        assert not {json.loads(row)["text"] for row in rows} & set(prompts)


def test_another_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not the unpacked corpus"):
        write_prompts(tmp_path, tmp_path / "prompts.txt")
