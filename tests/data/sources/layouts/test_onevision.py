"""LLaVA-OneVision's mixtures: which rows of which files."""

import json
import math

import pytest
import yaml

from emu3_jax.data.sources import SourceError, open_source
from emu3_jax.data.sources.layouts import onevision

TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def write_files(folder, **sizes):
    for name, size in sizes.items():
        rows = [{"id": f"{name}{i}", "conversations": TALK} for i in range(size)]
        (folder / f"{name}.json").write_text(json.dumps(rows))


def keys(folder, mixture, **settings):
    (folder / "mix.yaml").write_text(yaml.safe_dump(mixture))
    source = open_source("onevision:mix.yaml", folder, **settings)
    return [item.key for shard in range(source.num_shards) for item in source.items(shard)]


def entry(name, strategy="all"):
    return {"json_path": f"{name}.json", "sampling_strategy": strategy}


def test_rows_in_the_order_of_the_mixture(tmp_path):
    write_files(tmp_path, a=3, b=7, c=7, d=5, e=2)
    entries = [
        *(entry("a"), entry("b", "first:2"), entry("c", "end:2"), entry("d", "first:21%")),
        *(entry("e", "end:9"), entry("b", "end:100%")),
    ]
    del entries[0]["sampling_strategy"]
    wanted = ["a0", "a1", "a2", "b0", "b1", "c5", "c6", "d0", "d1", "e0", "e1"]
    wanted += [f"b{i}" for i in range(7)]
    for per_shard in (1, 2, 100):
        assert keys(tmp_path, {"datasets": entries}, items_per_shard=per_shard) == wanted


def test_a_percentage_is_rounded_up():
    """As math.ceil(percent * rows / 100) of the official code."""
    for rows in (1, 7, 10, 33):
        for percent in (1, 10, 30, 99, 100):
            count = math.ceil(percent * rows / 100)
            assert list(onevision.chosen(f"first:{percent}%", rows, [0])) == list(range(count))
            assert len(onevision.chosen(f"random:{percent}%", rows, [0])) == count


def test_random_rows_depend_on_the_seed_and_the_file(tmp_path):
    write_files(tmp_path, a=40, b=40)
    entries = [entry("a", "random:25%"), entry("b", "random:10")]
    found = {
        seed: keys(tmp_path, {"datasets": entries} | ({} if seed is None else {"seed": seed}))
        for seed in (None, 0, 1)
    }
    assert found[None] == found[0] != found[1]
    assert found[0] == keys(tmp_path, {"datasets": entries}, items_per_shard=3)
    first, second = ([int(key[1:]) for key in found[0][i : i + 10]] for i in (0, 10))
    assert first == sorted(set(first)) and second == sorted(set(second)) and first != second
    assert len(found[0]) == 20


@pytest.mark.parametrize(
    "mixture, reason",
    [
        (
            {"datasets": [entry("a", "middle:3")]},
            "a.json: the sampling_strategy is 'middle:3', exp",
        ),
        ({"datasets": [entry("a", "first:0")]}, "the sampling_strategy is 'first:0', expected all"),
        ({"datasets": [entry("a", "random:5.5%")]}, "the sampling_strategy is 'random:5.5%'"),
        ({"datasets": [entry("a", 5)]}, "the sampling_strategy is 5"),
        ({"datasets": [entry("none")]}, "none.json: .*cannot be read .No such file"),
        ({"datasets": [entry("../a")]}, "lies outside of the folder"),
        ({"datasets": ["a.json"]}, "a dataset must have a \"json_path\", found 'a.json'"),
        ({"datasets": []}, 'expected a list "datasets" with at least one file'),
        (["a.json"], 'expected a list "datasets"'),
        (
            {"datasets": [entry("a")], "seed": "x"},
            "\"seed\" must be a whole number from 0, found 'x'",
        ),
    ],
)
def test_a_mixture_that_cannot_be_read_is_an_error(mixture, reason, tmp_path):
    write_files(tmp_path, a=3)
    with pytest.raises(SourceError, match=f"mix.yaml: .*{reason}|mix.yaml: {reason}"):
        keys(tmp_path, mixture)


@pytest.mark.parametrize("text", ["a: [", "a: !!python/object:os.system {}", "\x00"])
def test_what_is_no_plain_yaml_is_an_error(text, tmp_path):
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(SourceError, match="mix.yaml: cannot be read as yaml"):
        open_source("onevision:mix.yaml", tmp_path)


def test_media_have_a_folder_of_their_own(tmp_path):
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]
    (tmp_path / "data").mkdir()
    rows = [{"id": 1, "image": "sub/a.png", "conversations": talk}]
    (tmp_path / "data" / "a.jsonl").write_text(json.dumps(rows[0]))
    mixture = {"datasets": [{"json_path": "a.jsonl", "sampling_strategy": "all"}]}
    (tmp_path / "data" / "mix.yaml").write_text(yaml.safe_dump(mixture))
    for spec, folder in [("data/mix.yaml", "data"), ("data/mix.yaml#images", "images")]:
        (item,) = open_source(f"onevision:{spec}", tmp_path).items(0)
        assert item.turns[0]["question"] == [{"image": str(tmp_path / folder / "sub/a.png")}]
