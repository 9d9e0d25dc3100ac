"""rFID, rFVD and rfd_vgg from items to figures: which are measured, counts, and their cache."""

import dataclasses

import evaluation_stand_ins as parts
import jax
import pytest

from emu3_jax import sharding
from emu3_jax.data import media
from emu3_jax.evaluate import items
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.evaluate.vision import feature_distance, frechet
from emu3_jax.evaluate.vision.feature_distance import FrechetDistance
from emu3_jax.evaluate.vision.reconstruction import Reconstruction, reconstruct
from emu3_jax.interop.vision import feature_networks, perceptual_weights
from emu3_jax.progress import Progress
from emu3_jax.sharding import MeshConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    parts.write_corpus(folder)
    return folder


SUBJECT = Subject(vision_tokenizer=(parts.GreyTokenizer(), {}))


def mean_colour(scale, pixels):
    """float [B, 3]: a network whose features can be taken by hand."""
    return scale * pixels.mean(tuple(range(1, pixels.ndim - 1)))


@pytest.fixture
def colours(monkeypatch):
    """Both feature networks are `mean_colour`."""
    for module in (feature_distance.inception, feature_distance.i3d):
        monkeypatch.setattr(module, "features", mean_colour)
        monkeypatch.setattr(module, "resized", lambda pixels: pixels)
    for name in ("load_inception", "load_i3d"):  # the "file" is the weight
        monkeypatch.setattr(feature_networks, name, float)


def evaluator(folder, split="train", **settings):
    return FrechetDistance(data=str(folder), splits=(split,), **settings)


def test_distances_are_those_of_the_features(folder, colours, tmp_path):
    settings = dict(inception="2.0", i3d="3.0", cache=str(tmp_path), batch_size=3)
    result = evaluator(folder, **settings).run(SUBJECT)
    stills = items.Reader().read_images(folder, "train")
    originals, rebuilt, _ = reconstruct(SUBJECT.vision_tokenizer, stills, 3, Progress())
    sides = [
        frechet.Statistics.of([2.0 * media.to_model(p).mean((0, 1)) for p in side])
        for side in (originals, rebuilt)
    ]
    expected = frechet.distance(*sides)
    assert expected > 1e-3
    assert result.metrics["rfid"] == pytest.approx(expected, rel=1e-4)  # features are float32
    counts = {k: v for k, v in result.metrics.items() if k.endswith("_count")}
    assert counts == {"rfid_count": len(stills), "rfid_frames_count": 8, "rfvd_count": 1}
    assert any("rfvd rests on 1 samples of 3 dimensions" in note for note in result.notes)
    assert not any("rfid rests" in note for note in result.notes)
    assert any("played forwards and backwards" in note for note in result.notes)


def test_statistics_of_the_originals_are_computed_once(folder, colours, tmp_path, monkeypatch):
    settings = dict(inception="2.0", cache=str(tmp_path), batch_size=4)
    first = evaluator(folder, **settings).run(SUBJECT)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == 2  # stills, frames
    calls = []
    streamed = frechet.Statistics.streamed
    monkeypatch.setattr(
        feature_distance.Statistics, "streamed", lambda b: calls.append(1) or streamed(b)
    )
    assert evaluator(folder, **settings).run(SUBJECT).metrics == first.metrics
    assert len(calls) == 2  # of the reconstructions only
    evaluator(folder, **settings | dict(inception="2.5")).run(SUBJECT)
    evaluator(folder, "validation", **settings).run(SUBJECT)
    # Other weights: two. Other stills: one; the clip of both splits is the same.
    assert len(list(tmp_path.iterdir())) == 5


def test_the_perceptual_network_gives_a_distance_of_another_name(folder, monkeypatch):
    monkeypatch.setattr(perceptual_weights, "load", lambda file: parts.tiny_perceptual())
    result = evaluator(folder, perceptual="toy").run(SUBJECT)
    assert set(result.metrics) == {
        "rfd_vgg", "rfd_vgg_count", "rfd_vgg_frames", "rfd_vgg_frames_count", "items_skipped",
    }  # fmt: skip
    assert result.metrics["rfd_vgg"] > 0
    assert any("a toy" in note for note in result.notes)


def test_without_any_network_it_says_which_settings_there_are(folder):
    with pytest.raises(ValueError, match="perceptual is not set, nor inception nor i3d"):
        evaluator(folder).check(None)


@pytest.mark.parametrize("kind", [FrechetDistance, Reconstruction])
def test_a_mesh_gives_the_figures_of_one_device(folder, colours, monkeypatch, kind):
    """Of batches that it does not divide."""
    monkeypatch.setattr(perceptual_weights, "load", lambda file: parts.tiny_perceptual())
    networks = {} if kind is Reconstruction else dict(inception="2.0", i3d="3.0")
    one = kind(data=str(folder), splits=("train",), perceptual="toy", batch_size=3, **networks)
    expected = one.run(SUBJECT).metrics
    with jax.set_mesh(sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        found = dataclasses.replace(one).run(SUBJECT).metrics
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
