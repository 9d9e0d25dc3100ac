"""Images as CLIP's published preprocessing gives them (tests/golden/clip/make.py)."""

import clip_files
import numpy as np
import PIL
import pytest

from emu3_jax.scorers import clip_images


def golden():
    """[{name: array}, ...], one for each image; [3, side, side] turned to [side, side, 3]."""
    with np.load(clip_files.CLIP / "images.npz") as stored:
        arrays = dict(stored)
    found = [{} for _ in range(1 + max(int(key.split("/")[0]) for key in arrays))]
    for key, array in arrays.items():
        number, name = key.split("/")
        found[int(number)][name] = array if name == "pixels" else np.moveaxis(array, 0, -1)
    return found


SIDE = len(golden()[0]["torchvision"])


def as_bytes(pixels):
    values = (pixels * clip_images.DEVIATION + clip_images.MEAN) * 255
    assert np.abs(values - np.rint(values)).max() < 1e-3
    return np.rint(values).astype(np.uint8)


# The golden crops are of Pillow 13, which resizes the height of a tall image first. Earlier ones
# begin with the width, and their rounding between the two is another.
WIDTH_FIRST = int(PIL.__version__.split(".")[0]) < 13


@pytest.mark.parametrize("rule", ["torchvision", "transformers"])
def test_crops_are_those_of_the_projects(rule):
    for image in golden():
        found = getattr(clip_images, f"{rule}_crop")(image["pixels"], SIDE)
        assert found.dtype == np.float32
        height, width, _ = image["pixels"].shape
        if WIDTH_FIRST and height > 2 * width:
            continue
        assert np.array_equal(as_bytes(found), image[rule])


def test_values_are_normalised_as_in_transformers():
    image = golden()[0]
    found = clip_images.transformers_crop(image["pixels"], SIDE)
    assert np.abs(found - image["normalised"]).max() < 2e-6


def test_hps_pads_instead_of_cropping():
    compared = 0
    for image in golden():
        found = clip_images.longest_side(image["pixels"], SIDE)
        assert found.dtype == np.float32 and found.shape == (SIDE, SIDE, 3)
        if "hps" in image:
            compared += 1
            assert np.abs(found - image["hps"]).max() < 1e-5
    assert compared >= 3


def test_an_oblong_image_of_the_right_length_is_padded_too():
    found = clip_images.longest_side(np.full((SIDE, 4, 3), 255, np.uint8), SIDE)
    black, white = (-clip_images.MEAN, 1 - clip_images.MEAN)
    assert np.allclose(found[:, 0], black / clip_images.DEVIATION)
    assert np.allclose(found[:, SIDE // 2], white / clip_images.DEVIATION)


@pytest.mark.parametrize(
    "rule", [clip_images.torchvision_crop, clip_images.transformers_crop, clip_images.longest_side]
)
def test_what_is_no_image_is_refused(rule):
    for wrong in (
        np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8), None,
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 3\], found"):
            rule(wrong, SIDE)


def test_an_endlessly_oblong_image_is_refused():
    with pytest.raises(ValueError, match="expected 1 to"):
        clip_images.torchvision_crop(np.zeros((1, 60000, 3), np.uint8), 224)
    assert clip_images.longest_side(np.zeros((1, 60000, 3), np.uint8), 224).shape == (224, 224, 3)
