"""Batches from datasets: the same for any hosts, workers and interruptions."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from token_records import GRAMMAR, text, write_dataset

from emu3_jax.data.tokens.mixture import MixtureEntry, open_mixture
from emu3_jax.data.tokens.pipeline import DataConfig, make_iterator
from emu3_jax.data.tokens.records import Record, RecordError
from emu3_jax.sequence import Image, LossWeights, TokenClass, Video, chat_document
from emu3_jax.sequence import Turn as ChatTurn

ROWS, LENGTH = 4, 128


def codes(seed, *shape):
    return np.random.default_rng(seed).integers(0, 100, shape)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    records = []
    for i in range(60):
        image = Image(codes(i, 4, 5))
        records.append(Record(f"i{i}", "s", "image", (text(f"picture {i}"), image)))
        records.append(Record(f"t{i}", "s", "text", (text(f"only text {i} " * (1 + i % 9)),)))
        if i < 20:
            video = Video(codes(i, 2, 3, 4), 4.0, 2.0)
            records.append(Record(f"v{i}", "s", "video", (text(f"clip {i}"), video)))
        chat = chat_document([ChatTurn(f"what {i}", f"answer {i}", (image,))]).segments
        chat = [text(s.text, s.loss) if hasattr(s, "text") else s for s in chat]
        records.append(Record(f"c{i}", "s", "chat", tuple(chat)))
    return str(write_dataset(tmp_path_factory.mktemp("data") / "tokens", records))


def config(dataset, tasks=None, **changes):
    tasks = tasks or {"text_to_image": 4, "image_to_text": 2, "text_to_video": 2, "text": 1}
    entries = tuple(MixtureEntry(dataset, task, weight) for task, weight in tasks.items())
    fields = {"batch_size": ROWS, "sequence_length": LENGTH, "pack_window": 4, "seed": 3}
    return DataConfig(entries, **(fields | changes))


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def documents(batches):
    """(ids with the last target, source) of every segment."""
    for batch in batches:
        for r in range(len(batch["inputs"])):
            for segment in range(1, batch["segment_ids"][r].max() + 1):
                here = batch["segment_ids"][r] == segment
                ids = np.append(batch["inputs"][r][here], batch["targets"][r][here][-1])
                yield ids, int(batch["sources"][r][here][0])


def test_batches_hold_the_documents_of_their_tasks(dataset):
    cfg = config(dataset)
    batch = next(make_iterator(cfg, GRAMMAR))
    kinds = {
        "inputs": np.int32,
        "targets": np.int32,
        "weights": np.float32,
        "classes": np.uint8,
        "sources": np.int32,
        "segment_ids": np.int32,
        "positions": np.int32,
    }
    assert {name: array.dtype for name, array in batch.items()} == kinds
    assert all(array.shape == (ROWS, LENGTH) for array in batch.values())
    assert cfg.source_names() == ("text_to_image", "image_to_text", "text_to_video", "text")
    seen = set()
    for ids, source in documents(take(make_iterator(cfg, GRAMMAR), 20)):
        if source == 3 and (ids[0] != GRAMMAR.vocab.bos or ids[-1] != GRAMMAR.vocab.eos):
            continue  # text that was cut
        parsed = GRAMMAR.parse(ids).segments
        kinds = ("Text Image", "Image Text", "Text Video", "Text")[source].split()
        assert [type(segment).__name__ for segment in parsed] == kinds
        if source == 0:
            i = int(parsed[0].text.split()[1])
            np.testing.assert_array_equal(parsed[1].codes, codes(i, 4, 5))
        seen.add(source)
    assert seen == {0, 1, 2, 3}


def test_loss_weights_go_by_class(dataset):
    weights = LossWeights(text=1.0, image=0.25, video=0.75, structure=2.0)
    for batch in take(make_iterator(config(dataset, loss_weights=weights), GRAMMAR), 3):
        np.testing.assert_array_equal(batch["weights"], weights.table()[batch["classes"]])
        assert np.all(batch["classes"][batch["segment_ids"] == 0] == TokenClass.PAD)
        inside = (batch["segment_ids"] > 0) & (batch["positions"] > 0)
        visual = GRAMMAR.vocab.is_visual(batch["targets"]) & inside
        assert np.all(np.isin(batch["classes"][visual], [TokenClass.IMAGE, TokenClass.VIDEO]))


def test_an_epoch_sees_every_record_once_in_an_order_of_its_own(dataset):
    cfg = config(dataset, {"image_to_text": 1.0})
    order = []
    for ids, _ in documents(take(make_iterator(cfg, GRAMMAR), 60)):
        order.append(GRAMMAR.parse(ids).segments[1].text)
    assert len(order) > 240
    # Rows pack at slightly different paces, so the ends of epochs overlap by a few windows.
    counts = np.unique(order, return_counts=True)[1]
    assert len(counts) == 60 and counts.max() - counts.min() <= 2
    one_row = dataclasses.replace(cfg, batch_size=1)
    order = [GRAMMAR.parse(ids).segments[1].text for ids, _ in _in_order(one_row, 180)]
    assert set(order[:60]) == set(order[60:120]) and order[:60] != order[60:120]


def _in_order(cfg, count):
    """The first documents of a one-row stream, window by window in stream order."""
    from emu3_jax.data.tokens.mixture import open_mixture, row_stream

    opened = open_mixture(cfg.mixture, GRAMMAR, cfg.loss_weights, LENGTH, cfg.seed)
    stream = row_stream(opened, cfg.mixture, 0, 1)
    return [(stream[i].ids, stream[i].source) for i in range(count)]


def test_weights_set_the_share_of_documents(dataset):
    cfg = config(dataset, {"text_to_image": 6, "text_to_video": 3, "chat": 1})
    sources = [source for _, source in _in_order(cfg, 300)]
    assert np.bincount(sources).tolist() == pytest.approx([180, 90, 30], abs=3)


def test_chat_trains_on_answers_alone(dataset):
    answers = 0
    for batch in take(make_iterator(config(dataset, {"chat": 1.0}), GRAMMAR), 4):
        trained = batch["weights"] > 0
        assert np.all(batch["classes"][trained] == TokenClass.TEXT)
        answers += trained.sum()
    assert answers


def test_null_prompts_and_untrained_conditions(dataset):
    entry = MixtureEntry(dataset, "text_to_image", null_prompt=0.25, train_condition=False)
    cfg = dataclasses.replace(config(dataset), mixture=(entry,))
    batches = take(make_iterator(cfg, GRAMMAR), 30)
    parsed = [GRAMMAR.parse(ids).segments for ids, _ in documents(batches)]
    assert 0.17 < np.mean([len(segments) == 1 for segments in parsed]) < 0.33
    for batch in batches:
        assert not batch["weights"][batch["classes"] == TokenClass.IMAGE].min() == 0
        text_targets = batch["classes"] == TokenClass.TEXT
        is_eos = batch["targets"] == GRAMMAR.vocab.eos
        assert np.all((batch["weights"] > 0)[text_targets] == is_eos[text_targets])
    again = take(make_iterator(cfg, GRAMMAR), 30)
    for one, other in zip(batches, again, strict=True):
        assert_same(one, other)


def test_batches_do_not_depend_on_the_number_of_hosts(dataset):
    cfg = config(dataset)
    whole = take(make_iterator(cfg, GRAMMAR), 12)
    for hosts in (2, 4):
        share = ROWS // hosts
        parts = [
            take(make_iterator(cfg, GRAMMAR, range(h * share, (h + 1) * share)), 12)
            for h in range(hosts)
        ]
        for n in range(12):
            joined = {k: np.concatenate([p[n][k] for p in parts]) for k in whole[n]}
            assert_same(joined, whole[n])


def test_batches_do_not_depend_on_workers_nor_on_a_stop(dataset):
    cfg = config(dataset)
    expected = take(make_iterator(cfg, GRAMMAR), 14)
    iterator = make_iterator(cfg, GRAMMAR)
    take(iterator, 5)
    state = json.dumps(iterator.get_state())
    assert len(state) < 70 * ROWS + 40 * len(cfg.mixture)  # not by the number of records
    with_workers = dataclasses.replace(cfg, workers=2)
    iterator = make_iterator(with_workers, GRAMMAR)
    iterator.set_state(json.loads(state))
    for batch, wanted in zip(take(iterator, 6), expected[5:11], strict=True):
        assert_same(batch, wanted)
    # And back, with a state from worker processes.
    state = json.dumps(iterator.get_state())
    iterator = make_iterator(cfg, GRAMMAR)
    iterator.set_state(json.loads(state))
    for batch, wanted in zip(take(iterator, 3), expected[11:], strict=True):
        assert_same(batch, wanted)


def test_a_state_of_another_host_is_worked_out_again(dataset):
    cfg = config(dataset)
    expected = take(make_iterator(cfg, GRAMMAR), 10)
    iterator = make_iterator(cfg, GRAMMAR, range(0, 2))
    take(iterator, 7)
    state = iterator.get_state()
    iterator = make_iterator(cfg, GRAMMAR, range(1, 4))  # rows 2 and 3 are not in the state
    iterator.set_state(state)
    for batch, wanted in zip(take(iterator, 3), expected[7:], strict=True):
        assert_same(batch, {name: array[1:4] for name, array in wanted.items()})
    with pytest.raises(ValueError, match="sequence_length 128, this run has 64"):
        make_iterator(dataclasses.replace(cfg, sequence_length=64), GRAMMAR).set_state(state)


def test_the_states_of_all_hosts_make_that_of_the_batch(dataset):
    cfg = config(dataset)
    whole = make_iterator(cfg, GRAMMAR)
    take(whole, 5)
    hosts = [make_iterator(cfg, GRAMMAR, range(first, first + 2)) for first in (0, 2)]
    for host in hosts:
        take(host, 5)
    merged = hosts[0].merge_states([json.loads(json.dumps(host.get_state())) for host in hosts])
    assert merged == json.loads(json.dumps(whole.get_state()))
    assert [host.share["inputs"] for host in hosts] == [(0, 4), (2, 4)]


@pytest.mark.parametrize(
    "changes",
    [dict(sequence_length=64), dict(batch_size=2), dict(pack_window=3), dict(tasks={"text": 1})],
    ids=str,
)
def test_a_run_with_other_data_goes_on_where_the_last_window_began(dataset, changes):
    """Adapted on request only: no row goes back before its last window."""
    old = make_iterator(config(dataset), GRAMMAR)
    take(old, 11)
    state = json.loads(json.dumps(old.get_state()))
    new = make_iterator(config(dataset, **changes), GRAMMAR)
    with pytest.raises(ValueError, match="the saved data position is of"):
        new.set_state(state)
    adapted = new.adapt_state(state)
    new.set_state(adapted)
    begins = [row[0] for row in state["rows"].values()]
    rows = ROWS if "batch_size" not in changes else 2
    mean = sum(begins) // 2
    expected = begins if rows == ROWS else [mean, mean]
    assert [row[:2] for row in adapted["rows"].values()] == [[begin, 0] for begin in expected]
    assert min(begins) > 0 and new.get_state()["batch"] == 11
    take(new, 2)
    assert old.adapt_state(state) == state


def test_a_dataset_made_anew_is_not_read_on_in_silence(tmp_path, caplog):
    """Its records stand in another order; the names of its documents would be others."""
    records = [Record(f"t{i}", "s", "text", (text(f"only text {i}"),)) for i in range(40)]
    path = str(write_dataset(tmp_path / "tokens", records[:30]))
    old = make_iterator(config(path, tasks={"text": 1}), GRAMMAR)
    take(old, 2)
    state = json.loads(json.dumps(old.get_state()))
    shutil.rmtree(path)
    write_dataset(tmp_path / "tokens", records)
    new = make_iterator(config(path, tasks={"text": 1}), GRAMMAR)
    with pytest.raises(ValueError, match="the dataset text was made anew .* --allow_changes"):
        new.set_state(state)
    assert not caplog.messages
    new.set_state(new.adapt_state(state))
    assert caplog.messages == ["made anew since the last checkpoint: text"]
    assert new.get_state()["batch"] == 2
    take(new, 2)


def test_codes_of_two_vision_tokenizers_do_not_meet(dataset, tmp_path):
    image = Record("i", "s", "image", (text("one"), Image(codes(0, 4, 5))))
    other = str(write_dataset(tmp_path / "other", [image], vision_tokenizer="v2"))
    words = Record("t", "s", "text", (text("words " * 9),))
    alone = str(write_dataset(tmp_path / "words", [words], vision_tokenizer=""))
    entries = [MixtureEntry(folder, "image_to_text", name=folder) for folder in (dataset, other)]
    with pytest.raises(ValueError, match="tokens was made .* v1, but .*other was made with v2"):
        make_iterator(DataConfig(tuple(entries), ROWS, LENGTH), GRAMMAR)
    # Text has no codes; the tokenizer of the others' codes counts, at any position in the mixture.
    entries[0] = MixtureEntry(alone, "text")
    state = make_iterator(DataConfig(tuple(entries), ROWS, LENGTH), GRAMMAR).get_state()
    assert state["vision_tokenizer"] == "v2"
    entries[1] = MixtureEntry(dataset, "image_to_text")
    with pytest.raises(ValueError, match="began on codes of the vision tokenizer 'v2'.*'v1'"):
        make_iterator(DataConfig(tuple(entries), ROWS, LENGTH), GRAMMAR).set_state(state)


def test_seeds_differ(dataset):
    one = next(make_iterator(config(dataset), GRAMMAR))
    other = next(make_iterator(config(dataset, seed=4), GRAMMAR))
    assert not np.array_equal(one["inputs"], other["inputs"])


def test_too_long_documents_are_counted_or_an_error(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("emu3_jax.data.tokens.packing.GIVE_UP_AFTER", 300)
    long = Record("l", "s", "image", (text("x" * 200), Image(codes(0, 4, 5))))
    short = Record("k", "s", "image", (text("x"), Image(codes(0, 4, 5))))
    mixed = write_dataset(tmp_path / "mixed", [long, short, short])
    cfg = config(str(mixed), {"text_to_image": 1.0})
    iterator = make_iterator(cfg, GRAMMAR)
    take(iterator, 9)
    assert iterator.counts()["documents_dropped"] > 0
    path = write_dataset(tmp_path / "long", [long])
    with pytest.raises(ValueError, match="none fits"):
        next(make_iterator(config(str(path), {"text_to_image": 1.0}), GRAMMAR))
    stated = json.loads((path / "dataset.json").read_text())
    stated["counts"]["image"]["shortest"] = 240
    (path / "dataset.json").write_text(json.dumps(stated))
    with pytest.raises(RecordError, match="even the shortest image document has 239 tokens"):
        make_iterator(config(str(path), {"text_to_image": 1.0}), GRAMMAR)


def test_bad_configs_are_one_sentence(dataset):
    for fields, reason in (
        ({"task": "images"}, "task must be one of"),
        ({"task": "text", "weight": 0.0}, "weight must be above zero"),
        ({"task": "image_to_text", "null_prompt": 0.1}, "captions that come first"),
    ):
        with pytest.raises(ValueError, match=reason):
            MixtureEntry(dataset, **fields)
    with pytest.raises(ValueError, match="the mixture is empty"):
        DataConfig((), 1, 8)
    entry = MixtureEntry(dataset, "text")
    with pytest.raises(ValueError, match="two mixture entries have the name 'text'"):
        DataConfig((entry, entry), 1, 8)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        DataConfig((entry,), 0, 8)
    with pytest.raises(ValueError, match="do not lie in a batch of 4"):
        make_iterator(config(dataset), GRAMMAR, range(3, 5))
    with pytest.raises(RecordError, match="no records of kind 'document'"):
        make_iterator(config(dataset, {"document": 1.0}), GRAMMAR)


def test_entries_that_read_the_same_records_draw_another_order(dataset):
    entries = tuple(MixtureEntry(dataset, "text", name=name) for name in ("one", "two"))
    one, two = open_mixture(entries, GRAMMAR, LossWeights(), LENGTH, seed=3)
    epoch = 60
    orders = [[bytes(part[i].ids) for i in range(epoch)] for part in (one, two)]
    assert sorted(orders[0]) == sorted(orders[1])  # both read each record once
    # Two random orders of 60 agree in one position on average; in more than 8 never.
    assert sum(a == b for a, b in zip(*orders, strict=True)) <= 8


@pytest.mark.parametrize(
    "changes", [{"seed": 4}, {"pack_window": 5}, {"tasks": {"text_to_image": 4, "text": 1}}]
)
def test_a_position_of_other_batches_is_refused(dataset, changes):
    state = make_iterator(config(dataset), GRAMMAR).get_state()
    other = make_iterator(config(dataset, **changes), GRAMMAR)
    with pytest.raises(ValueError, match="of another mixture, seed or pack_window"):
        other.set_state(state)
    other.set_state(other.adapt_state(state))
    make_iterator(config(dataset), GRAMMAR).set_state(state)
