"""Inpainting: what is kept stays, the rest follows from what stands before it."""

import numpy as np
import pytest
from tiny_models import GUIDED

from emu3_jax.generate import Sampling, modalities
from emu3_jax.generate.completion.inpainting import inpaint, kept_codes


def images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 32, size).astype(np.int32) for size in sizes]


@pytest.mark.parametrize("decoder, window", [("sequential", None), ("jacobi", 4), ("zipar", 2)])
def test_what_is_kept_stays_and_the_rest_is_drawn(tiny_bundle, decoder, window):
    codes = images((4, 4), (3, 5), (4, 4))
    keep = [np.ones(image.shape, bool) for image in codes]
    keep[0][1:3, 1:3] = keep[1][:, 2] = keep[2][:] = False
    options = modalities.Options(Sampling(guidance=2.0, seed=1, decoder=decoder, window=window))
    drawn = inpaint(tiny_bundle, ["a", "b", "c"], codes, keep, options)
    for found, image, mask in zip(drawn, codes, keep, strict=True):
        np.testing.assert_array_equal(found[mask], image[mask])
        assert (found[~mask] != image[~mask]).any()
    # Where nothing is kept, the image is that of its caption, by the same draws.
    options = modalities.Options(options.sampling, first=2)
    (plain,) = modalities.text_to_image(tiny_bundle, ["c"], 4, 4, options)
    np.testing.assert_array_equal(drawn[2], plain)


def test_nothing_is_seen_of_what_stays_behind_the_hole(tiny_bundle):
    """Raster order has no look-ahead."""
    (image,) = images((4, 4))
    keep = np.ones((4, 4), bool)
    keep[1, 1:3] = False
    changed = image.copy()
    changed[2:] = (image[2:] + 1) % 32
    options = modalities.Options(GUIDED)
    one, other = inpaint(tiny_bundle, ["a"] * 2, [image, changed], [keep] * 2, options)
    alone = modalities.Options(GUIDED, first=1)
    (again,) = inpaint(tiny_bundle, ["a"], [image], [keep], alone)
    np.testing.assert_array_equal(again[:2], other[:2])
    assert (one[2:] != other[2:]).all()


def test_a_code_with_a_pixel_to_draw_is_drawn():
    drawn = np.zeros((4, 6), bool)
    drawn[1, 2] = True
    assert kept_codes(drawn, 2, 3).tolist() == [[True, False, True], [True, True, True]]
    # Rows 0, 1 (in part) and 1 (in part), 2 are those of the codes, columns one each.
    drawn = np.zeros((3, 2), bool)
    drawn[1, 0] = True
    assert kept_codes(drawn, 2, 2).tolist() == [[False, True], [False, True]]
    assert (
        kept_codes(np.eye(2, dtype=bool), 4, 2).tolist()
        == [[False, True]] * 2 + [[True, False]] * 2
    )


@pytest.mark.parametrize(
    "keep, words",
    [
        ([np.ones((2, 4), bool)], "Mask 0 has the size 2x4, but its image has 2x3 codes."),
        ([np.ones((2, 3), bool)], "'a' at 2x3: all codes are given; there is nothing to draw."),
        ([], "There are 1 images, 1 captions and 0 masks."),
    ],
)
def test_a_mask_that_does_not_fit_is_one_sentence(tiny_bundle, keep, words):
    with pytest.raises(ValueError, match=words):
        inpaint(tiny_bundle, ["a"], images((2, 3)), keep)
