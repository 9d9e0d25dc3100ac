"""Which rows are in a dataset, and when too many are not: whatever the shards and the workers."""

import json

import pytest

from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.tokenize import run
from emu3_jax.tokenize.run import TokenizeError, tokenize
from emu3_jax.tokenize.tokenize_config import TokenizeConfig

ROWS = 40


def config(folder, **changes):
    fields = {"output": str(folder / "out"), "splits": {"train": ["train.jsonl"]}}
    return TokenizeConfig(**(fields | {"corpus": str(folder)} | changes))


def write(folder, rows):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def bad(number, count=ROWS):
    """`count` rows, the last `number` of them without content."""
    good = [{"id": i, "text": f"text {i}"} for i in range(count - number)]
    return good + [{"id": f"bad{i}"} for i in range(number)]


@pytest.mark.parametrize("far", [False, True])
def test_ids_that_repeat_are_all_kept_whatever_the_shards(far, tmp_path):
    """Conversations about one image often have its id."""
    rows = [{"id": str(i - (i % 3 == 2)), "text": f"row {i}"} for i in range(60)]
    if far:
        rows.sort(key=lambda row: int(row["text"].split()[1]) % 3 == 2)
    write(tmp_path, rows)
    for per in (7, 40, 60):
        out = str(tmp_path / f"out{per}")
        for worker in (1, 0):
            shards = {"items_per_shard": per, "workers": 2, "worker": worker}
            (folder,) = tokenize(config(tmp_path, output=out, max_skipped=0.0, **shards))
        records = open_dataset(folder).records("text")
        assert [r.segments[0].text for r in records] == [row["text"] for row in rows]
        assert [r.key for r in records] == [row["id"] for row in rows]


@pytest.mark.parametrize(
    "number, share, fails",
    [(5, 0.01, False), (6, 0.01, True), (6, 0.15, False), (7, 0.15, True), (1, 0.0, True)],
)
def test_the_limit_is_a_share_but_at_least_five_items(number, share, fails, tmp_path):
    write(tmp_path, bad(number))
    settings = config(tmp_path, max_skipped=share, items_per_shard=10)
    if fails:
        with pytest.raises(TokenizeError, match=f"skipped.jsonl lists why {number} of {ROWS} item"):
            tokenize(settings)
        assert not (tmp_path / "out/train/dataset.json").exists()
    else:
        assert open_dataset(tokenize(settings)[0]).info.skipped == number
    lines = (tmp_path / "out/train/skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [f"bad{i}" for i in range(number)]


def test_an_early_stop_lists_the_reasons_of_all_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "EARLY_STOP_ITEMS", 20)
    write(tmp_path, bad(4, 10) + bad(4, 10) + bad(4, 10) + bad(0, 10))
    tokenize(config(tmp_path, items_per_shard=10, workers=2, worker=1))  # 4 of 20: no error
    with pytest.raises(TokenizeError, match=r"lists why 8 of 30 .*allows \(at least 5\).*neither"):
        tokenize(config(tmp_path, items_per_shard=10, workers=2, worker=0))
    assert len((tmp_path / "out/train/skipped.jsonl").read_text().splitlines()) == 8


def test_a_corpus_without_any_record_lists_why(tmp_path):
    write(tmp_path, bad(2, 2))
    with pytest.raises(TokenizeError, match="skipped.jsonl lists why no item of 2 became a record"):
        tokenize(config(tmp_path, max_skipped=1.0))
    assert len((tmp_path / "out/train/skipped.jsonl").read_text().splitlines()) == 2
