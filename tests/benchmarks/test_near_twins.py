"""Near twins across splits: the PSNR to the nearest training image."""

import numpy as np

from benchmarks.data.near_twins import nearest_psnr
from emu3_jax.evaluate.vision.psnr_ssim import psnr


def test_the_nearest_of_all_is_found():
    rng = np.random.default_rng(0)
    train, held_out = (rng.integers(0, 256, (n, 8, 8, 3), np.uint8) for n in (9, 4))
    held_out[0] = train[5]
    held_out[1] = np.clip(train[3].astype(int) + 2, 0, 255)
    flat = [images.reshape(len(images), -1).astype(np.float64) for images in (held_out, train)]
    found = nearest_psnr(*flat)
    assert np.isinf(found[0])
    expected = [max(psnr(one[None], other[None])[0] for other in train) for one in held_out[1:]]
    np.testing.assert_allclose(found[1:], expected, rtol=1e-6)
