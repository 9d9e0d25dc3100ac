"""Thresholds on stored scores: which records a mixture reads, and what is said if none is left."""

import json

import numpy as np
import pytest
from token_records import GRAMMAR, image_record, text, write_dataset

from emu3_jax.data.tokens import quality
from emu3_jax.data.tokens.mixture import MixtureEntry, content_of, open_mixture
from emu3_jax.data.tokens.pipeline import DataConfig, make_iterator
from emu3_jax.data.tokens.records import Record, RecordError, open_dataset
from emu3_jax.files import write_json
from emu3_jax.sequence import LossWeights

NICE = np.array([1.0, 6.0, np.nan, 7.0, 5.0])


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path, [image_record(i) for i in range(5)])
    dataset = open_dataset(tmp_path)
    (shard,) = dataset.info.shards
    pixels = np.array([10.0, 10, 10, 20, 20])
    quality.write_scores(dataset.path, shard, {"nice": NICE, "pixels": pixels})
    write_json(quality.plan_file(dataset.path), {"dataset": dataset.info.fingerprint})
    return tmp_path


def entry(folder, **at_least):
    return MixtureEntry(str(folder), "text_to_image", at_least=at_least)


def mixture(folder, **at_least):
    (data,) = open_mixture([entry(folder, **at_least)], GRAMMAR, LossWeights(), 64, 0)
    return data


@pytest.mark.parametrize(
    "at_least, kept",
    [({"nice": 5}, [1, 3, 4]), ({"nice": 5.5}, [1, 3]), ({"nice": 5, "pixels": 20}, [3, 4])],
)
def test_the_mixture_reads_what_passes(folder, at_least, kept):
    dataset = open_dataset(folder)
    assert quality.passing(dataset, "image", at_least).tolist() == kept
    data = mixture(folder, **at_least)
    read = {data[i].ids.tobytes() for i in range(len(kept))}
    built = [data_of for data_of in (mixture(folder)[i].ids.tobytes() for i in range(5))]
    assert len(read) == len(kept) and read < set(built)
    assert {data[i].ids.tobytes() for i in range(40)} == read  # epoch after epoch


def test_what_passes_is_part_of_the_position_of_a_run(folder):
    def state(**at_least):
        config = DataConfig((entry(folder, **at_least),), batch_size=1, sequence_length=64)
        return make_iterator(config, GRAMMAR).get_state()

    assert state() != state(nice=5) != state(nice=5.5)
    assert content_of(entry(folder, nice=5.5)) == content_of(entry(folder, nice=6))
    before = content_of(entry(folder, nice=5.5))
    dataset = open_dataset(folder)
    quality.write_scores(dataset.path, dataset.info.shards[0], {"nice": 10 - NICE})
    assert content_of(entry(folder, nice=5.5)) != before


def test_scores_that_cannot_be_used(folder):
    for at_least, message in (
        ({"nice": 8, "pixels": 20}, "no record of 5 of kind image passes at_least; nice of 8 is"),
        ({"nice": 6.5, "pixels": 30}, "nice of 6.5 is reached by 1, pixels of 30 is reached by 0"),
        ({"ugly": 1}, "there are no scores 'ugly' of kind image, only nice, pixels"),
    ):
        with pytest.raises(RecordError, match=message):
            mixture(folder, **at_least)
    quality.plan_file(open_dataset(folder).path).write_text(json.dumps({"dataset": "other"}))
    with pytest.raises(RecordError, match="its scores are of the content other, it holds"):
        mixture(folder, nice=5)
    (folder / "quality" / "image.array_record.json").unlink()
    with pytest.raises(RecordError, match="1 of 1 shards of kind image have no scores; make them"):
        mixture(folder, nice=5)
    for least in (np.nan, "5", True):
        with pytest.raises(ValueError, match="at_least.nice must be a number, found"):
            entry(folder, nice=least)


def test_texts_have_no_scores(tmp_path):
    write_dataset(tmp_path, [Record("t", "s", "text", (text("a"),))])
    with pytest.raises(RecordError, match="shards of kind text have no scores"):
        one = MixtureEntry(str(tmp_path), "text", at_least={"nice": 1})
        open_mixture([one], GRAMMAR, LossWeights(), 64, 0)


def test_motion_is_the_mean_difference_of_frames():
    clip = np.zeros((3, 2, 2, 3), np.uint8)
    clip[1] = 255  # there and back
    assert quality.motion(clip) == 255 and quality.motion(clip[:1]) == 0
    clip[2] = 155
    assert quality.motion(clip) == (255 + 100) / 2
