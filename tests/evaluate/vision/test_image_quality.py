"""PSNR and SSIM against scikit-image, and their edges."""

import numpy as np
import pytest
from skimage import data, metrics

from emu3_jax.evaluate.vision import psnr_ssim


@pytest.fixture(scope="module")
def pair():
    clean = data.astronaut()[100:196, 150:230]
    noise = np.random.default_rng(0).normal(0, 12, clean.shape)
    return clean, np.clip(clean + noise, 0, 255).astype(np.uint8)


def test_psnr_is_scikit_images(pair):
    expected = metrics.peak_signal_noise_ratio(*pair, data_range=255)
    assert psnr_ssim.psnr(*pair) == pytest.approx(expected, abs=1e-9)


def test_ssim_is_scikit_images(pair):
    expected = metrics.structural_similarity(
        *pair,
        gaussian_weights=True,
        use_sample_covariance=False,
        sigma=1.5,
        data_range=255,
        channel_axis=-1,
    )
    assert psnr_ssim.ssim(*pair) == pytest.approx(expected, abs=1e-9)


def test_a_stack_gives_one_value_per_image(pair):
    clean, noisy = pair
    a, b = np.stack([[clean, clean], [noisy, clean]]), np.stack([[noisy, clean], [clean, noisy]])
    for measure in (psnr_ssim.psnr, psnr_ssim.ssim):
        values = measure(a, b)
        assert values.shape == (2, 2)
        assert values[0, 0] == measure(clean, noisy)
    assert psnr_ssim.psnr(a, b)[0, 1] == psnr_ssim.IDENTICAL_DB
    assert psnr_ssim.ssim(a, b)[0, 1] == pytest.approx(1.0)


def test_wrong_input_is_named(pair):
    clean, _ = pair
    with pytest.raises(ValueError, match="uint8"):
        psnr_ssim.psnr(clean / 255.0, clean)
    with pytest.raises(ValueError, match="one shape"):
        psnr_ssim.psnr(clean[:10], clean)
    with pytest.raises(ValueError, match="11x11"):
        psnr_ssim.ssim(clean[:10], clean[:10])
