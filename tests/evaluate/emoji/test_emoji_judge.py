"""The judge: its features by hand, what it learns, how sure it is."""

import numpy as np
import pytest

from emu3_jax.evaluate.emoji import judge
from emu3_jax.evaluate.emoji.judge import Judge


def flat(*color) -> np.ndarray:
    return np.broadcast_to(np.uint8(color), (64, 64, 3))


def test_a_colour_is_shared_by_the_levels_around_it():
    found = judge.colours([flat(255, 0, 0), flat(51, 255, 255)]).reshape(2, 8, 8, 8) ** 2
    assert found[0, 7, 0, 0] == pytest.approx(1)
    assert found[1, 1, 7, 7] == pytest.approx(0.6)  # 51 is level 1.4 of 0 to 7
    assert found[1, 2, 7, 7] == pytest.approx(0.4)
    assert found.sum(axis=(1, 2, 3)) == pytest.approx([1, 1])


def test_an_outline_has_a_place_and_a_direction_but_no_sign():
    image = np.array(flat(0, 0, 0))
    image[:, 20:] = 255
    found = judge.outlines([image, 255 - image, image.transpose(1, 0, 2)]).reshape(3, 8, 8, 8)
    # Columns 19 and 20 differ across by 1; they are 2 of the 8 columns of their cell.
    expected = np.zeros((8, 8, 8))
    expected[:, 2, 0] = np.sqrt(2 / 8)
    assert found[0] == pytest.approx(expected)
    assert found[1] == pytest.approx(expected)
    assert found[2, 2, :, 4] == pytest.approx(np.full(8, np.sqrt(2 / 8)))


def noisy(count: int, noise: float, seed: int) -> tuple[list[np.ndarray], list[str]]:
    """Light and dark images, whose brightness overlaps more the more noise there is."""
    rng = np.random.default_rng(seed)
    names = ["light", "dark"] * (count // 2)
    grey = [150 if name == "light" else 90 for name in names]
    images = [flat(*[np.clip(g + rng.normal(0, noise), 0, 255)] * 3) for g in grey]
    return images, names


@pytest.mark.parametrize("noise", [3, 40])
def test_it_is_as_sure_as_it_is_right(noise):
    images, names = noisy(200, noise, seed=0)
    learned = Judge(images, {"tone": names}, [str(i) for i in range(200)])
    images, names = noisy(200, noise, seed=1)
    reading = learned.read(images)["tone"]
    right = np.mean([value == name for value, name in zip(reading.values, names, strict=True)])
    assert right > (0.99 if noise == 3 else 0.65)
    assert reading.probabilities.mean() == pytest.approx(right, abs=0.08)


def test_images_of_unknown_value_teach_nothing():
    images, names = noisy(40, 3, seed=0)
    bases = [str(i) for i in range(40)]
    few = Judge(images[:20], {"tone": names[:20]}, bases[:20])
    wrong = Judge(images, {"tone": [*names[:20], *[None] * 20], "activity": names}, bases)
    assert few.read(images)["tone"].values == wrong.read(images)["tone"].values == tuple(names)


def test_a_part_of_one_value_cannot_be_learned():
    images, _ = noisy(10, 3, seed=0)
    labels = {"tone": ["dark"] * 9 + [None]}
    with pytest.raises(ValueError, match="cannot learn to tell the tone: its images show 1 diff"):
        Judge(images, labels, [str(i) for i in range(10)])
