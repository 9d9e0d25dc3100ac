"""Batches of preference pairs: whole images, an order that nothing but the seed decides."""

import dataclasses

import numpy as np
import pytest
from preference_records import pair, write_pairs
from token_records import GRAMMAR, image_record, write_dataset

from emu3_jax.data.tokens.preference_batches import (
    PairBatches,
    Pairs,
    PreferenceData,
    PreferenceEntry,
)
from emu3_jax.data.tokens.records import RecordError
from emu3_jax.sequence import Document, Text

LENGTH = 24


def data_of(*paths, null_prompt=0.0, **changes):
    entries = tuple(PreferenceEntry(str(path), null_prompt) for path in paths)
    return PreferenceData(entries, **({"batch_size": 4, "sequence_length": LENGTH} | changes))


def batches(data, rows=None):
    return PairBatches(data, GRAMMAR, rows or range(data.batch_size))


def prompts(batch):
    """The captions of a batch, read from its tokens; both sides must have the same."""
    found = []
    for rows, segments in zip(batch["inputs"], batch["segment_ids"], strict=True):
        texts = set()
        for ids, used in zip(rows, segments, strict=True):
            whole = [*ids[used > 0], GRAMMAR.vocab.eos]
            texts.add("".join(s.text for s in GRAMMAR.parse(whole).segments if type(s) is Text))
        (only,) = texts
        found.append(only)
    return found


def test_a_row_holds_a_caption_and_a_whole_image(tmp_path):
    records = [pair(i, ((2, 3), (3, 2))) for i in range(4)]
    batch = next(batches(data_of(write_dataset(tmp_path, records))))
    by_caption = {record.segments[0].text: record for record in records}
    for row, caption in enumerate(prompts(batch)):
        for side, image in enumerate(by_caption[caption].segments[1:]):
            built = GRAMMAR.build(Document((by_caption[caption].segments[0], image)))
            used = len(built) - 1
            arrays = {name: values[row, side] for name, values in batch.items()}
            np.testing.assert_array_equal(arrays["inputs"][:used], built.ids[:-1])
            np.testing.assert_array_equal(arrays["targets"][:used], built.ids[1:])
            assert arrays["segment_ids"].sum() == used
            # Behind IMG: codes and EOL of h rows, EOF, EOI, EOS.
            h, w = image.codes.shape
            assert arrays["counted"].sum() == h * (w + 1) + 3
            first = np.flatnonzero(arrays["counted"])[0]
            assert arrays["inputs"][first] == GRAMMAR.vocab.img


def test_codes_alone_can_count(tmp_path):
    batch = next(batches(data_of(write_pairs(tmp_path), counted="codes")))
    assert batch["counted"].sum() == 4 * 2 * 6
    assert GRAMMAR.vocab.is_visual(batch["targets"][batch["counted"] > 0]).all()


def test_each_pair_is_read_once_an_epoch_in_an_order_of_its_own(tmp_path):
    first, second = write_pairs(tmp_path / "a", 5), tmp_path / "b"
    write_dataset(second, [pair(100 + i) for i in range(3)])
    stream = batches(data_of(first, second))
    epochs = [prompts(next(stream)) + prompts(next(stream)) for _ in range(2)]
    wanted = {*(f"no {i}" for i in range(5)), *(f"no {100 + i}" for i in range(3))}
    assert set(epochs[0]) == set(epochs[1]) == wanted and epochs[0] != epochs[1]


def test_hosts_read_their_rows_and_the_batch_size_changes_no_order(tmp_path):
    path = write_pairs(tmp_path)
    whole = batches(data_of(path, null_prompt=0.3))
    parts = [batches(data_of(path, null_prompt=0.3), rows) for rows in (range(1), range(1, 4))]
    twos = batches(data_of(path, null_prompt=0.3, batch_size=2))
    for _ in range(4):
        batch, halves = next(whole), [next(part) for part in parts]
        small = [next(twos), next(twos)]
        for name in batch:
            for split in (halves, small):
                joined = np.concatenate([part[name] for part in split])
                np.testing.assert_array_equal(batch[name], joined)
    assert parts[1].share["inputs"] == (1, 4)


def test_a_share_of_prompts_is_empty_on_both_sides(tmp_path):
    path = write_pairs(tmp_path)
    stream = batches(data_of(path, null_prompt=0.25, batch_size=200))
    found = prompts(next(stream))
    assert 0.15 < found.count("") / 200 < 0.35
    never = prompts(next(batches(data_of(path, batch_size=200))))
    assert [a for a, b in zip(found, never, strict=True) if a] == [
        b for a, b in zip(found, never, strict=True) if a
    ]


def test_a_position_continues_where_it_was(tmp_path):
    data = data_of(write_pairs(tmp_path), null_prompt=0.3)
    stream = batches(data)
    next(stream)
    state = stream.get_state()
    wanted = next(stream)
    again = batches(data)
    again.set_state(state)
    for name, values in next(again).items():
        np.testing.assert_array_equal(values, wanted[name])
    other = batches(dataclasses.replace(data, seed=1))
    with pytest.raises(ValueError, match="of another mixture or seed"):
        other.set_state(state)
    other.set_state(other.adapt_state(state))
    remade = {**state, "vision_tokenizer": "v0"}
    with pytest.raises(ValueError, match="began on codes of the vision tokenizer 'v0'"):
        again.set_state(remade)


def test_an_answers_key_is_of_its_tokens_and_of_what_counts(tmp_path):
    path = write_pairs(tmp_path)
    keys = set()
    for counted in ("answer", "codes"):
        pairs = Pairs(data_of(path, counted=counted), GRAMMAR)
        keys |= {a.key for i in range(2) for null in (0, 1) for a in pairs.answers(i, bool(null))}
    assert len(keys) == 2 * 2 * 2 * 2


# --------------------------------------------------------------------------------- bad input


def test_what_does_not_fit_a_row_is_said_before_training(tmp_path):
    path = write_dataset(tmp_path, [pair(0), pair(1, ((2, 3), (5, 6))), pair(2)])
    # BOS, "no 1", BOI, "5*6", IMG, 5 rows of 7, EOF, EOI, EOS; the first is never predicted.
    needed = 1 + 4 + 1 + 3 + 1 + 5 * 7 + 3 - 1
    with pytest.raises(RecordError) as caught:
        batches(data_of(path))
    assert f"the pair 'p1' has {needed} tokens" in str(caught.value)
    assert f"data.sequence_length must be at least {needed}; it is {LENGTH}" in str(caught.value)
    batches(data_of(path, sequence_length=needed))


def test_a_prompt_longer_than_the_row_is_said(tmp_path):
    path = write_dataset(tmp_path, [pair(0, prompt="long " * 20)])
    with pytest.raises(RecordError, match="data.sequence_length must be at least 1"):
        batches(data_of(path))


def test_pairs_of_two_vision_tokenizers_are_refused(tmp_path):
    paths = [write_pairs(tmp_path / n, vision_tokenizer=n) for n in ("v1", "v2")]
    with pytest.raises(ValueError, match="vision tokenizer") as caught:
        batches(data_of(*paths))
    assert "v1" in str(caught.value) and "v2" in str(caught.value)


def test_a_dataset_without_pairs_is_refused(tmp_path):
    path = write_dataset(tmp_path, [image_record()])
    with pytest.raises(RecordError, match="no records of kind 'preference', only image"):
        batches(data_of(path))


def test_settings_without_a_meaning_are_refused():
    for settings, words in [
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(counted="all"), "counted must be one of answer, codes"),
        (dict(seed=-1), "seed must not be negative"),
        (dict(null_prompt=1.5), "null_prompt must be from 0 to 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            data_of("a", **settings)
    with pytest.raises(ValueError, match="two mixture entries have the name 'a'"):
        data_of("a", "a")
