"""Sizes of images in the official fine-tuning data; the folder is GOLDEN_POST_TRAINING's."""

import json
import os
import pathlib

import pytest
from paths import GOLDEN

from emu3_jax.data.media import MediaError, PixelLimits, smart_resize

FOLDER = pathlib.Path(os.environ.get("GOLDEN_POST_TRAINING", GOLDEN / "post_training"))
CASES = json.loads((FOLDER / "sft.json").read_text())["prepare_data_sizes"]
AREA = 720 * 720


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['width']}x{case['height']}")
def test_an_image_has_the_size_of_prepare_data(case):
    limits, sides = PixelLimits(area=AREA), (case["height"], case["width"])
    if "error" in case:
        with pytest.raises(MediaError, match="aspect ratio"):
            smart_resize(*sides, limits)
        return
    assert list(smart_resize(*sides, limits)) == case["then_hw"]
    factor = limits.spatial_factor
    assert [side // factor for side in smart_resize(*sides, limits)] == case["codes_hw"]


def test_a_negative_area():
    with pytest.raises(ValueError, match="an area of 0 or more, found -1"):
        PixelLimits(area=-1)
