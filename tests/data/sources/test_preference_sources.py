"""Preference rows of several projects to pairs; what a reader cannot honour says why."""

import json
import math

import pytest

from emu3_jax.data.sources import SourceError, open_source

TEXT = [{"type": "text", "text": "a fox"}]


def items(folder, rows, spec="preferences:rows.json"):
    (folder / "rows.json").write_text(json.dumps(rows))
    source = open_source(spec, folder, 2)
    return [item for shard in range(source.num_shards) for item in source.items(shard)]


def shown(folder, *names):
    return tuple(str(folder / name) for name in names)


def said(role, *parts):
    return {"role": role, "content": list(parts)}


def drawn(path):
    return said("assistant", {"type": "image", "image": path})


@pytest.mark.parametrize(
    "row, layout, scores",
    [
        ({"chosen": "a.png", "rejected": "b.png"}, "pairs", None),
        ({"chosen": {"path": "a.png", "bytes": None}, "rejected": "b.png"}, "pairs", None),
        ({"chosen": [drawn("a.png")], "rejected": [drawn("b.png")]}, "pairs", None),
        (
            {"chosen": "a.png", "rejected": "b.png", "score_chosen": 0.5, "score_rejected": 0},
            "pairs",
            ({"score": 0.5}, {"score": 0.0}),
        ),
        (
            {"chosen": {"image": "a.png", "scores": {"clip": 2}}, "rejected": {"image": "b.png"}},
            "pairs",
            ({"clip": 2.0}, {}),
        ),
        (
            {"image_path": ["b.png", "a.png"], "human_preference": [0, 1]},
            "hpd",
            ({"human_preference": 1.0}, {"human_preference": 0.0}),
        ),
        (
            {"image_path": ["b.png", "c.png", "a.png"], "rank": [3, 2, 1]},
            "hpd",
            ({"rank": 1.0}, {"rank": 3.0}),
        ),
        (
            {"generations": ["c.webp", "a.png", "b.png"], "ranking": [2, 1, 3]},
            "imagereward",
            ({"ranking": 1.0}, {"ranking": 3.0}),
        ),
    ],
)
def test_layouts(tmp_path, row, layout, scores):
    (item,) = items(tmp_path, [{"id": 7, "prompt": "a fox", "seed": 3} | row])
    assert (item.problem, item.kind, item.key, item.text) == ("", "preference", "7", "a fox")
    assert item.pair == shown(tmp_path, "a.png", "b.png")
    assert item.attributes["source"] == {"corpus": "rows", "layout": layout}
    found = item.attributes.get("scores")
    assert found == (scores and dict(zip(("chosen", "rejected"), scores, strict=True)))
    assert item.attributes["seed"] == 3 and "prompt" not in item.attributes


def test_messages_hold_the_prompt_apart_or_in_each_side(tmp_path):
    asked = said("user", *TEXT)
    apart = {"prompt": [asked], "chosen": [drawn("a.png")], "rejected": [drawn("b.png")]}
    within = {"chosen": [asked, drawn("a.png")], "rejected": [asked, drawn("b.png")]}
    plain = {"role": "user", "content": "a fox"}
    other = {"chosen": [plain, drawn("a.png")], "rejected": [said("user"), drawn("b.png")]}
    one, two, three = items(tmp_path, [apart, within, other])
    assert one.text == two.text == "a fox" and one.pair == two.pair
    assert (
        three.problem == "the prompts of chosen and rejected differ, 'a fox' and ''; expected one"
    )


def test_pickapic_rows_hold_bytes(tmp_path):
    import pyarrow
    from pyarrow import parquet

    row = {"caption": "a fox", "jpg_0": b"zero", "jpg_1": b"one", "ranking_id": 5, "url": None}
    labels = [(1.0, 0.0, True), (0.0, 1.0, True), (0.5, 0.5, True), (1.0, 0.0, False)]
    labels += [(math.nan, 1.0, True), (None, 1.0, True)]
    rows = [row | {"label_0": a, "label_1": b, "has_label": c} for a, b, c in labels]
    for name in ("train-0.parquet", "train-1.parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), str(tmp_path / name))
    source = open_source("preferences:train-*.parquet", tmp_path, 4)
    assert source.num_shards == 4
    found = [item for shard in range(4) for item in source.items(shard)]
    assert [item.pair for item in found[:2]] == [(b"zero", b"one"), (b"one", b"zero")]
    assert found[0].key == "5" and found[0].attributes["scores"]["chosen"] == {"label": 1.0}
    assert [item.problem for item in found[2:5]] == [
        "a tie, both labels are 0.5; expected one to be preferred",
        'nobody chose between the images ("has_label" is false)',
        '"label_0" must be a finite number, found nan',
    ]
    assert "expected the keys of a preference" in found[5].problem
    assert [i.problem for i in found[:6]] == [i.problem for i in found[6:]]


def test_all_pairs_of_a_ranking(tmp_path):
    row = {"id": "r", "prompt": "a fox", "generations": list("abc"), "ranking": [2, 1, 3]}
    row["generations"] = [f"{name}.png" for name in row["generations"]]
    found = items(tmp_path, [row], "preferences:rows.json#all")
    assert [item.key for item in found] == ["r/1-0", "r/0-2", "r/1-2"]
    assert [item.pair for item in found] == [
        shown(tmp_path, *names)
        for names in (("b.png", "a.png"), ("a.png", "c.png"), ("b.png", "c.png"))
    ]
    tied = items(tmp_path, [row | {"ranking": [1, 1, 3]}], "preferences:rows.json#all")
    assert tied[0].problem == "a tie, images 0 and 1 have one rank (ranking [1.0, 1.0, 3.0])"
    assert [item.problem for item in tied[1:]] == ["", ""]


RANKED = {"prompt": "a", "image_path": ["a.png", "b.png", "c.png"], "rank": [1, 2, 3]}
TWO = {"prompt": "a", "chosen": "a.png", "rejected": "b.png"}


@pytest.mark.parametrize(
    "row, problem",
    [
        (RANKED | {"rank": [1, 1, 3]}, "a tie, 2 images share the best place (rank [1.0, 1.0"),
        (RANKED | {"rank": [1, 3, 3]}, "a tie, 2 images share the worst place"),
        (RANKED | {"rank": [1, 2]}, '"image_path" has 3 images and "rank" 2 numbers, expected as'),
        (RANKED | {"rank": [1, 2, math.nan]}, '"rank" must be a finite number, found nan'),
        (RANKED | {"rank": 1}, '"rank" must be a list, found 1'),
        (RANKED | {"image_path": ["a.png", "b.png", 3]}, '"image_path" must be an image'),
        (TWO | {"rejected": "a.png"}, "chosen and rejected are the same image"),
        (TWO | {"prompt": ""}, "the prompt is empty"),
        (TWO | {"prompt": 3}, "a caption must be a string, found 3"),
        (TWO | {"chosen": "I think so."}, '"chosen" must be an image, its path or bytes'),
        (TWO | {"chosen": "../a.png"}, "'../a.png' lies outside of the folder"),
        (TWO | {"score_chosen": math.nan}, '"score_chosen" must be a finite number, found nan'),
        (TWO | {"images": ["c.png"]}, 'images before the answer ("images") are not read'),
        (TWO | {"chosen": {"image": "a.png", "prompt": "b"}}, "the prompts of chosen and rejected"),
        (
            TWO | {"chosen": {"image": "a.png", "scores": {"x": "y"}}},
            '"chosen, x" must be a',
        ),
        (TWO | {"chosen": {"image": "a.png", "scores": 3}}, '"scores" of chosen must be an object'),
        (TWO | {"chosen": [said("assistant", *TEXT)]}, 'the answer in "chosen" must be one image'),
        (TWO | {"chosen": [said("user", *TEXT)]}, 'the last message of "chosen" must be the role'),
        (TWO | {"prompt": [said("system", *TEXT)]}, 'one message of the role "user"'),
        (
            TWO | {"prompt": [said("user", {"type": "image", "image": "c.png"})]},
            "images within a prompt are not read; expected text alone",
        ),
        ({"prompt": "a", "answer": "b"}, "expected the keys of a preference, pickapic: caption"),
        ([1], "expected an object, found a list"),
    ],
)
def test_rows_that_cannot_be_honoured(tmp_path, row, problem):
    (item,) = items(tmp_path, [row])
    assert problem in item.problem and not item.pair and len(item.problem.splitlines()) == 1
    assert item.where.endswith("rows.json, row 0")


def test_what_is_no_corpus_of_preferences(tmp_path):
    for spec, message in (
        ("preferences:none-*.json", "the corpus is empty; no file matches"),
        ("preferences:rows.json#some", "must be best_worst or all, found 'some'"),
    ):
        with pytest.raises(SourceError, match=message):
            items(tmp_path, [TWO], spec)
    (tmp_path / "rows.json").write_text(json.dumps([TWO]))
    with pytest.raises(SourceError, match="holds preferences, expected images or clips"):
        open_source("preferences:rows.json", tmp_path).listed(0)
