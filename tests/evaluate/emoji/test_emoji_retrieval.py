"""Retrieval: the feature space, ranks, recalls, ceiling and chance."""

import types

import evaluation_stand_ins as parts
import numpy as np
import pytest
from skimage import data, transform

from emu3_jax.evaluate import language_use
from emu3_jax.evaluate.emoji import retrieval
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.train import weights


def test_features_of_one_colour_are_that_colour():
    image = np.broadcast_to(np.uint8([255, 51, 0]), (64, 64, 3))
    found = retrieval.features([image]).reshape(16, 16, 3)
    assert found == pytest.approx(np.broadcast_to([1.0, 0.2, 0.0], (16, 16, 3)))


def test_features_are_a_blur_and_a_mean():
    from scipy import ndimage

    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    blurred = ndimage.gaussian_filter(image / 255.0, (2, 2, 0), mode="nearest", truncate=16)
    expected = blurred.reshape(16, 4, 16, 4, 3).mean((1, 3)).ravel()
    assert retrieval.features([image])[0] == pytest.approx(expected, abs=1e-6)


def test_a_moved_image_still_finds_itself():
    photographs = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    gallery = [
        (255 * transform.resize(p, (64, 64), anti_aliasing=True)).astype(np.uint8)
        for p in photographs
    ]
    gallery += [np.roll(gallery[0][::-1], 9, axis=0), gallery[1][:, ::-1]]
    moved = [np.roll(p, (2, -2), axis=(0, 1)) for p in gallery]
    ranks = retrieval.ranks_of_right(retrieval.features(moved), retrieval.features(gallery))
    assert ranks.tolist() == [1] * 6


def test_ranks_count_what_is_nearer_and_ties_against():
    gallery = np.array([[0.0], [1.0], [5.0], [5.0]])
    queries = np.array([[0.9], [0.9], [5.0], [4.0]])
    assert retrieval.ranks_of_right(queries, gallery).tolist() == [2, 1, 2, 2]


def test_only_images_of_the_same_style_are_compared():
    gallery = np.array([[0.0], [1.0], [5.0], [5.0]])
    queries = np.array([[0.9], [0.9], [5.0], [4.0]])
    styles = ["flat", "3D", "flat", "3D"]
    assert retrieval.ranks_of_right(queries, gallery, styles).tolist() == [1, 1, 1, 1]
    found = retrieval.chance(["flat", "3D", "flat", "flat"])
    assert found["recall_at_1_chance"] == pytest.approx(100 * (1 + 3 / 3) / 4)
    assert found["median_rank_chance"] == 2


def test_recall_metrics():
    found = retrieval.recall_metrics(np.array([1, 3, 6, 20]), "_x")
    assert found == {
        "recall_at_1_x": 25,
        "recall_at_5_x": 50,
        "recall_at_10_x": 75,
        "median_rank_x": 4.5,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    parts.write_corpus(folder)
    return folder


def test_a_perfect_artist_and_one_that_draws_the_same_always(folder, monkeypatch):
    tokenizer = (parts.GreyTokenizer(), {})
    monkeypatch.setattr(weights, "load_vision_tokenizer", lambda path: tokenizer)
    evaluator = retrieval.EmojiRetrieval(data=str(folder), vision_tokenizer="grey")

    def perfect(bundle, tokenizer, items, options):
        return [item.pixels for item in items]

    monkeypatch.setattr(language_use, "draw", perfect)
    metrics = evaluator.run(Subject(language_model=types.SimpleNamespace(media={}))).metrics
    assert metrics["gallery"] == 5
    assert metrics["recall_at_1"] == metrics["recall_at_1_validation"] == 100
    assert metrics["recall_at_1_chance"] == 20
    assert metrics["median_rank_chance"] == 3
    assert 0 < metrics["recall_at_1_ceiling"] <= 100

    def stubborn(bundle, tokenizer, items, options):
        return [np.zeros((16, 16, 3), np.uint8)] * len(items)

    monkeypatch.setattr(language_use, "draw", stubborn)
    result = evaluator.run(Subject(language_model=types.SimpleNamespace(media={})))
    assert result.metrics["recall_at_1"] == 20
    assert sorted(row[3] for row in result.tables["ranks"].rows) == [1, 2, 3, 4, 5]
    assert result.images["drawn"].dtype == np.uint8
