"""Preference rows to datasets: codes of both images, scores, and a list of what was skipped."""

import json

import numpy as np
from grey_encoder import level, made_from, skipped_of, write_greys

from emu3_jax.data import media
from emu3_jax.data.tokens.preference_pairs import documents_of
from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.sequence import Grammar
from emu3_jax.text import ByteTokenizer


def test_pairs_become_records(tmp_path):
    names = [f"{i}.png" for i in range(5)]
    write_greys(tmp_path, names)
    media.write_png(tmp_path / "wide.png", np.full((8, 32, 3), 9, np.uint8))
    media.write_png(tmp_path / "again.png", np.full((16, 16, 3), 3, np.uint8))
    rows = [
        {"id": "a", "prompt": "a fox", "chosen": "3.png", "rejected": "1.png"},
        {"id": "b", "prompt": "a cat", "chosen": "wide.png", "rejected": "2.png"},
        {"id": "c", "prompt": "same codes", "chosen": "again.png", "rejected": "3.png"},
        {"id": "d", "prompt": "missing", "chosen": "none.png", "rejected": "3.png"},
        {"id": "e", "prompt": "a dog", "image_path": names, "rank": [2, 3, 4, 1, 5]},
        {"id": "f", "prompt": "tie", "image_path": names, "rank": [1, 3, 4, 1, 5]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = made_from(tmp_path, "preferences:rows.jsonl")
    dataset = open_dataset(folder, vision_tokenizer="grey")
    records = list(dataset.records("preference"))
    assert [(r.key, *map(level, r.segments[1:])) for r in records] == [
        ("a", 3, 1), ("b", 9, 2), ("e", 3, 4),
    ]  # fmt: skip
    assert [r.segments[0].text for r in records] == ["a fox", "a cat", "a dog"]
    assert records[1].segments[1].codes.shape == (1, 4)  # sizes may differ
    assert records[2].attributes["scores"] == {"chosen": {"rank": 1.0}, "rejected": {"rank": 5.0}}
    reasons = [(one["key"], one["reason"]) for one in skipped_of(folder)]
    assert [key for key, _ in reasons] == ["d", "f", "c"] and dataset.info.skipped == 3
    assert "none.png" in reasons[0][1] and "tie" in reasons[1][1] and "same codes" in reasons[2][1]
    grammar = Grammar(dataset.info.vocabulary, ByteTokenizer(), dataset.info.video_format)
    lengths = [
        [grammar.document_length(d) for d in documents_of(r.kind, r.segments)] for r in records
    ]
    counts = dataset.info.counts["preference"]
    assert counts.records == 3 and counts.tokens == sum(map(sum, lengths))
    assert counts.longest == max(map(max, lengths)) and counts.shortest == min(map(max, lengths))


def test_all_pairs_of_a_ranking_are_records(tmp_path):
    names = [f"{i}.png" for i in range(3)]
    write_greys(tmp_path, names)
    row = {"id": "a", "prompt": "a dog", "generations": names, "ranking": [2, 3, 1]}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    dataset = open_dataset(made_from(tmp_path, "preferences:rows.json#all"))
    pairs = [tuple(map(level, r.segments[1:])) for r in dataset.records("preference")]
    assert pairs == [(0, 1), (2, 0), (2, 1)]
