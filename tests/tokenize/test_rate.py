"""Scores of a token dataset: of the decoded pixels, once, resumable, and who cannot be scored."""

import dataclasses
import json
import sys
import types

import numpy as np
import pytest
from token_records import text, write_dataset

from emu3_jax.config import ConfigError
from emu3_jax.data.codec import vision_codec
from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.data.tokens import quality
from emu3_jax.data.tokens.records import Record, open_dataset
from emu3_jax.sequence import Image, Video
from emu3_jax.tokenize.rate import RateConfig, rate

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 32, (2, 3 + i % 2)) for i in range(5)]
CLIPS = [RNG.integers(0, 32, (2, 2, 2)) for _ in range(3)]


@pytest.fixture
def judges(monkeypatch):
    made = types.ModuleType("judges")
    made.red = lambda prompts, images: np.array([image[..., 0].mean() for image in images])
    monkeypatch.setitem(sys.modules, "judges", made)
    return made


@pytest.fixture
def config(tmp_path, tiny_directories, tiny_bundle):
    records = [
        Record(f"i{i}", "s", "image", (text(f"{i}"), Image(c))) for i, c in enumerate(IMAGES)
    ]
    records += [
        Record(f"c{i}", "s", "video", (text(f"{i}"), Video(c, 8.0, 1.0)))
        for i, c in enumerate(CLIPS)
    ]
    records.append(Record("t", "s", "text", (text("words"),)))
    vision = vision_fingerprint(tiny_bundle.vision.config, tiny_bundle.vision_variables)
    write_dataset(tmp_path, records, vision_tokenizer=vision)
    entries = ({"scorer": "judges:red"},)
    return RateConfig(str(tmp_path), str(tiny_directories / "vision"), entries, batch_size=2)


def files(config):
    dataset = open_dataset(config.tokens)
    return {f.name: f.read_text() for f in sorted((dataset.path / "quality").iterdir())}


def test_scores_are_of_what_the_codes_decode_to(config, judges, tiny_bundle):
    assert rate(config) == 2
    vision = (tiny_bundle.vision, tiny_bundle.vision_variables)
    dataset = open_dataset(config.tokens)
    images = vision_codec.decode(vision, IMAGES, 8)
    found = quality.read_scores(dataset, "image")
    np.testing.assert_allclose(found["red"], [x[..., 0].mean() for x in images], rtol=1e-3)
    assert found["pixels"].tolist() == [x.shape[0] * x.shape[1] for x in images]
    clips = vision_codec.decode(vision, CLIPS, 8)
    found = quality.read_scores(dataset, "video")
    middle = [x[len(x) // 2][..., 0].mean() for x in clips]
    np.testing.assert_allclose(found["red"], middle, rtol=1e-3)
    np.testing.assert_allclose(found["motion"], [quality.motion(x) for x in clips], rtol=1e-3)


def test_finished_shards_are_kept_and_workers_share_them(config, judges):
    assert [
        rate(dataclasses.replace(config, worker=worker, workers=2)) for worker in (1, 0, 1)
    ] == [1, 1, 0]
    shared = files(config)
    assert rate(config) == 0 and files(config) == shared
    (open_dataset(config.tokens).path / "quality" / "image.array_record.json").unlink()
    assert rate(config) == 1 and files(config) == shared


def test_an_image_without_a_score_has_none(config, judges):
    def picky(prompts, images):
        if "3" in prompts:
            raise RuntimeError("no face found")
        return np.where(np.array(prompts) == "1", np.nan, 1.0)

    judges.red = picky
    rate(config)
    dataset = open_dataset(config.tokens)
    red = quality.read_scores(dataset, "image")["red"]
    np.testing.assert_array_equal(red, [1, np.nan, 1, np.nan, 1])
    stored = json.loads(files(config)["image.array_record.json"])
    assert stored["red"] == [1.0, None, 1.0, None, 1.0]
    assert quality.passing(dataset, "image", {"red": 1}).tolist() == [0, 2, 4]


def test_what_cannot_be_scored(config, judges, tmp_path):
    def refused(message, **changes):
        with pytest.raises(ValueError, match=message):
            rate(dataclasses.replace(config, **changes))

    refused("likelihood judges by the model that drew", scorers=({"scorer": "likelihood"},))
    taken = ({"scorer": "judges:red", "name": "motion"},)
    refused("the name 'motion' is taken; give it another", scorers=taken)
    refused("is not a finished dataset", tokens=str(tmp_path / "none"))
    words = write_dataset(
        tmp_path / "words", [Record("t", "s", "text", (text("a"),))], vision_tokenizer=""
    )
    refused("holds no images and no clips to score, only text", tokens=str(words))
    rate(config)
    refused(r"quality: was made with scorers \[.*now it is \[\]; delete", scorers=())
    with pytest.raises(ConfigError, match="there is no scorer 'clp'"):
        rate(dataclasses.replace(config, scorers=({"scorer": "clp"},)))
    for changes in ({"batch_size": 0}, {"worker": 1}, {"tokens": "gs://a/b"}):
        with pytest.raises(ValueError):
            dataclasses.replace(config, **changes)
