"""Editing triples, interleaved documents and clips to continue become documents."""

import json
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from grey_encoder import GreyEncoder, level, made_from, skipped_of, write_greys

from emu3_jax.data import media
from emu3_jax.data.sources import RawItem, SourceError, open_source
from emu3_jax.data.tokens.mixture import DOCUMENT_TASKS
from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.sequence import Text
from emu3_jax.tokenize.prepare import MediaRules, Medium, Prepared, moved, prepare


def shown(record):
    """(text or grey level, whether it is trained on) of each segment."""
    return [
        (part.text if isinstance(part, Text) else level(part), part.loss)
        for part in record.segments
    ]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def documents(dataset):
    return list(open_dataset(dataset).records(DOCUMENT_TASKS["document"].kind))


# Editing


def test_of_a_triple_the_target_is_trained_on(tmp_path):
    write_greys(tmp_path, [f"{i}.png" for i in range(4)])
    rows = [
        {"id": "a", "source": "1.png", "instruction": "invert", "target": "2.png", "seed": 3},
        {"id": "b", "source": ["1.png", "2.png"], "instruction": "mix", "target": ["3.png"]},
        {"source_img": "0.png", "instruction": "red", "target_img": "1.png"},
        {"original_image": "0.png", "edit_prompt": "old", "edited_image": "3.png", "mask": None},
    ]
    write_rows(tmp_path / "edits.jsonl", rows)
    records = documents(made_from(tmp_path, "edit:edits.jsonl"))
    assert [shown(record) for record in records] == [
        [(1, False), ("invert", False), (2, True)],
        [(1, False), (2, False), ("mix", False), (3, True)],
        [(0, False), ("red", False), (1, True)],
        [(0, False), ("old", False), (3, True)],
    ]
    assert records[0].attributes == {"seed": 3} and records[2].key == "edits.jsonl[2]"


def test_triples_of_a_parquet_file_with_a_mask(tmp_path):
    """A mask is an image like the others, and no attribute."""
    write_greys(tmp_path, ["0.png", "1.png"])
    first, second = ({"bytes": (tmp_path / name).read_bytes()} for name in ("0.png", "1.png"))
    row = {"img_id": "7", "turn_index": 1, "source_img": first, "mask_img": first}
    row |= {"instruction": "red", "target_img": second}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    (record,) = documents(made_from(tmp_path, "edit:a.parquet"))
    assert shown(record) == [(0, False), ("red", False), (1, True)]
    assert record.attributes == {"img_id": "7", "turn_index": 1}


@pytest.mark.parametrize(
    "row, reason",
    [
        (
            {"source": "0.png", "target": "0.png"},
            "expected the keys 'source', 'instruction', 'targ",
        ),
        ({"source": [], "instruction": "a", "target": "0.png"}, "found 0 and 1"),
        ({"source": "0.png", "instruction": "a", "target": ["0.png"] * 2}, "found 1 and 2"),
        (
            {"source": "0.png", "instruction": " ", "target": "0.png"},
            '"instruction" must be a text',
        ),
        ({"source": "none.png", "instruction": "a", "target": "0.png"}, "none.png"),
        ({"source": 1, "instruction": "a", "target": "0.png"}, '"source" must be a path, found 1'),
    ],
)
def test_a_triple_that_cannot_be_read_is_skipped(row, reason, tmp_path):
    check_skipped("edit", row, reason, tmp_path)


def check_skipped(kind, row, reason, folder):
    write_greys(folder, ["0.png"])
    good = {"source": "0.png", "instruction": "a", "target": "0.png"}
    good |= {"texts": ["a"], "images": [None]}
    write_rows(folder / "rows.jsonl", [row, good])
    dataset = made_from(folder, f"{kind}:rows.jsonl")
    (skipped,) = skipped_of(dataset)
    assert skipped["where"].endswith("rows.jsonl[0]")
    assert re.search(reason, skipped["reason"]), skipped["reason"]
    assert len(documents(dataset)) == 1


# Interleaved


def test_documents_of_both_layouts(tmp_path):
    write_greys(tmp_path, [f"{i}.png" for i in range(3)])
    info = [("1.png", 2), ("2.png", 0), ("0.png", 2)]
    info = [{"image_name": name, "matched_text_index": place} for name, place in info]
    rows = [
        {"texts": ["a\n", None, "b"], "images": [None, "1.png", None], "url": "u"},
        {"text_list": ["One.", "Two.", "Three.", "Four."], "image_info": info},
        {"text_list": ["One."], "image_info": []},
    ]
    (tmp_path / "docs.json").write_text(json.dumps(rows))
    records = documents(made_from(tmp_path, "interleaved:docs.json"))
    assert [shown(record) for record in records] == [
        [("a\n", True), (1, True), ("b", True)],
        [(2, True), ("One. Two.", True), (1, True), (0, True), ("Three. Four.", True)],
        [("One.", True)],
    ]
    assert records[0].attributes == {"url": "u"}


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"texts": ["a"]}, "expected the keys 'texts' and 'images'"),
        ({"texts": ["a"], "images": []}, "1 texts and 0 images"),
        ({"texts": ["a"], "images": ["0.png"]}, "place 0 must have either a text or an image"),
        ({"texts": [5], "images": [None]}, "a text of the document is 5"),
        ({"texts": [], "images": []}, "neither text nor images"),
        ({"texts": "a", "images": [None]}, '"texts" must be a list'),
        ({"texts": [None], "images": ["none.png"]}, "none.png"),
        (
            {"text_list": ["a"], "image_info": [{"image_name": "0.png"}]},
            '"matched_text_index" below 1',
        ),
        ({"text_list": [None], "image_info": []}, "sentence 0 is None"),
    ],
)
def test_a_document_that_cannot_be_read_is_skipped(row, reason, tmp_path):
    check_skipped("interleaved", row, reason, tmp_path)


# Clips to continue


def write_clip(path, frames, fps=4):
    """Frames of the grey levels 0, 1, 2, …"""
    levels = np.repeat(np.arange(frames, dtype=np.uint8), 16 * 16 * 3)
    media.write_webp(path, levels.reshape(frames, 16, 16, 3), fps=fps)


def test_a_clip_is_cut_into_context_and_continuation(tmp_path):
    write_clip(tmp_path / "a.webp", 12)
    write_rows(tmp_path / "clips.jsonl", [{"id": "a", "video": "a.webp", "text": "it fades"}])
    for seconds, first in [(1, 4), (1.3, 4), (1.5, 6), (2.5, 10)]:
        source = f"continuation:{seconds}:clips.jsonl"
        (record,) = documents(made_from(tmp_path, source, output=str(tmp_path / str(seconds))))
        caption, context, rest = record.segments
        assert (caption.text, caption.loss) == ("it fades", False)
        assert [context.loss, rest.loss] == [False, True]
        assert context.codes[:, 0, 0].tolist() == list(range(0, first, 2))
        assert rest.codes[:, 0, 0].tolist() == list(range(first, 12, 2))
        assert (context.seconds, rest.seconds) == (first / 4, 3 - first / 4)
    assert (context.fps, record.source) == (4, "clips")


def test_rate_and_frame_limit_come_first(tmp_path):
    write_clip(tmp_path / "a.webp", 12)
    write_rows(tmp_path / "clips.jsonl", [{"id": "a", "video": "a.webp"}])
    dataset = made_from(tmp_path, "continuation:2:clips.jsonl", fps=2.0, max_frames=6)
    (record,) = documents(dataset)
    assert [part.codes[:, 0, 0].tolist() for part in record.segments] == [[0, 4], [8]]


def test_what_cannot_be_continued_is_skipped(tmp_path):
    write_greys(tmp_path, ["0.png"])
    for name, frames in (("long", 10), ("short", 8)):
        write_clip(tmp_path / f"{name}.webp", frames)
    rows = [
        {"id": "good", "video": "long.webp"},
        {"id": "short", "video": "short.webp"},
        {"id": "image", "image": "0.png"},
        {"id": "text", "text": "a"},
        {"id": "none", "video": "none.webp"},
        {"id": 7, "video": 7},
    ]
    write_rows(tmp_path / "clips.jsonl", rows)
    dataset = made_from(tmp_path, "continuation:2:clips.jsonl")
    assert [record.key for record in documents(dataset)] == ["good"]
    reasons = {one["key"]: one["reason"] for one in skipped_of(dataset)}
    assert reasons["short"] == "the clip has 2 s, no more than the context of 2 s"
    assert reasons["image"] == "it is no clip that can be continued, but of the kind image"
    assert "kind text" in reasons["text"] and "none.webp" in reasons["none"]
    assert '"video" must be a path, found 7' in reasons["7"]


@pytest.mark.parametrize(
    "context, reason",
    [
        (0.2, "a context of 0.2 s has 1 frames, fewer than the vision tokenizer's"),
        ("2", "the \"context\" of a clip must be seconds above 0, found '2'"),
        (-1, "must be seconds above 0, found -1"),
    ],
)
def test_a_row_states_its_own_context(context, reason, tmp_path):
    write_clip(tmp_path / "a.webp", 8)
    rows = [
        {"id": i, "segments": [{"video": "a.webp", "context": seconds}, {"text": "end"}]}
        for i, seconds in enumerate((1, context))
    ]
    write_rows(tmp_path / "clips.jsonl", rows)
    dataset = made_from(tmp_path, "clips.jsonl")
    (record,) = documents(dataset)
    assert [part.loss for part in record.segments] == [False, True, True]
    (skipped,) = skipped_of(dataset)
    assert reason in skipped["reason"]


@pytest.mark.parametrize(
    "spec, reason",
    [
        ("continuation:clips.jsonl", 'expected "continuation:SECONDS:SOURCE"'),
        ("continuation:0:clips.jsonl", "a context has more than 0 s, found 0"),
        ("continuation:nan:clips.jsonl", "a context has more than 0 s, found nan"),
        ("continuation:2:none.jsonl", "none.jsonl: cannot be read"),
    ],
)
def test_a_continuation_of_nothing_is_refused(spec, reason, tmp_path):
    write_rows(tmp_path / "clips.jsonl", [{"id": 1, "text": "a"}])
    with pytest.raises(SourceError, match=reason):
        open_source(spec, tmp_path)


def test_pixels_without_a_rate_cannot_be_cut(tmp_path):
    rules = MediaRules(media.PixelLimits(256, 256, 8), GreyEncoder.temporal_factor)
    item = RawItem("k", segments=({"video": np.zeros((8, 16, 16, 3), np.uint8), "context": 1},))
    with pytest.raises(ValueError, match="states no frame rate .*; set fps"):
        prepare(item, rules)


def test_the_media_of_an_item_move_alike():
    """An edited image would else be somewhere else than its source."""
    pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    item = RawItem("k", segments=({"image": pixels}, {"image": pixels}))
    shifts = set()
    for copy in range(1, 10):
        first, second = moved(Prepared(item, [Medium(pixels), Medium(pixels)]), copy, 2).media
        np.testing.assert_array_equal(first.pixels, second.pixels)
        shifts.add(first.pixels.tobytes())
    assert len(shifts) > 3
