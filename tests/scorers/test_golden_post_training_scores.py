"""Scores against the released formulas; the folder is that of GOLDEN_POST_TRAINING.

Shapes and counts are those of the files, so the same tests read other figures.
"""

import json
import os
import pathlib

import numpy as np
import pytest
from paths import GOLDEN

from emu3_jax.interop.vision import aesthetic_head, mps_head
from emu3_jax.models.features import mps, preference_heads

FOLDER = pathlib.Path(os.environ.get("GOLDEN_POST_TRAINING", GOLDEN / "post_training"))
TOLERANCE = 1e-5
# Scores of some 10 to 50 times a cosine, in float32.
SCALED = 1e-4


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "scores.npz") as stored:
        return dict(stored)


def below(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def test_embeddings_are_normalised_and_zero_stays_zero(golden):
    found = np.asarray(preference_heads.unit_length(golden["aesthetic/embedding"]))
    assert np.abs(found - golden["aesthetic/normalized"]).max() < TOLERANCE
    zero = ~golden["aesthetic/embedding"].any(axis=1)
    assert zero.any() and not found[zero].any()


def test_aesthetics_are_the_released_predictors(golden):
    embeddings = golden["aesthetic/embedding"]
    head = aesthetic_head.collapsed(below(golden, "aesthetic/state/"), embeddings.shape[1])
    found = np.asarray(preference_heads.aesthetic_scores(head, embeddings))
    assert np.abs(found - golden["aesthetic/score_float64"]).max() < TOLERANCE


def test_the_released_predictor_fits():
    about = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))["aesthetic"]
    shapes = about["released_shapes"]
    dimensions = shapes["layers.0.weight"][1]
    tensors = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    assert aesthetic_head.collapsed(tensors, dimensions)["kernel"].shape == (dimensions,)


def test_hps_is_the_cosine(golden):
    text, images = golden["clip/text_embedding"], golden["clip/image_embeddings"]
    found = np.asarray(preference_heads.cosines(text, images))
    assert np.abs(found - golden["hps_v2/score"]).max() < TOLERANCE
    assert np.abs(100 * found - golden["hps_v2/score_of_benchmark"]).max() < SCALED


def test_pickscore_and_its_probabilities(golden):
    found = preference_heads.pick_scores(
        golden["clip/text_embedding"], golden["clip/image_embeddings"], golden["clip/logit_scale"]
    )
    assert np.abs(np.asarray(found) - golden["pickscore/score"]).max() < SCALED
    shares = np.asarray(preference_heads.probabilities(found))
    assert np.abs(shares - golden["pickscore/probabilities"]).max() < SCALED


@pytest.mark.parametrize(
    ("variant", "share"),
    [("eval_script", mps.EVALUATION_SHARE), ("model_forward", mps.FORWARD_SHARE)],
)
def test_mps_attends_to_what_the_condition_selects(golden, variant, share):
    texts, condition = golden["mps/text_tokens"], golden["mps/condition_tokens"]
    mask = np.asarray(mps.selected(texts, condition, share))
    assert np.array_equal(mask, golden[f"mps/mask_{variant}"] > 0)
    head = mps_head.head_of(below(golden, "mps/state/"))
    images = golden["mps/image_tokens"]
    each = [np.broadcast_to(a, (len(images), *a.shape)) for a in (texts, golden["mps/text_eos"])]
    conditions = np.broadcast_to(condition, (len(images), *condition.shape))
    found = mps.scores(head, *each, conditions, images, golden["mps/logit_scale"], share)
    assert np.abs(np.asarray(found) - golden[f"mps/score_{variant}"]).max() < SCALED
