"""PSNR and SSIM of image pairs, on the uint8 scale.

Both follow the definitions of published tokenizer tables (scikit-image), so that figures are
comparable. Everything is float64 numpy: these are measurements, not losses.
"""

import numpy as np

# PSNR of two identical images is infinite; a mean over images needs a finite value. An error of one
# level in one value of a 2048x2048 image is 119 dB, so this does not change other pairs.
IDENTICAL_DB = 120.0
# Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity",
# section III-C.
SSIM_K1, SSIM_K2, SSIM_SIGMA, SSIM_RADIUS = 0.01, 0.03, 1.5, 5


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, one value per image.

    Args:
      a, b: uint8 [..., H, W, C]; the mean squared error runs over the last three axes.

    Returns:
      float64 [...]: 10 log10(255^2 / MSE), at most IDENTICAL_DB.
    """
    a, b = _pair(a, b)
    error = np.mean((a - b) ** 2, axis=(-3, -2, -1))
    with np.errstate(divide="ignore"):
        return np.minimum(10.0 * np.log10(255.0**2 / error), IDENTICAL_DB)


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity, one value per image, in [-1, 1].

    The window is an 11x11 Gaussian of sigma 1.5, moments are population moments, the mean is over
    windows that are inside the image, and channels are averaged. It equals
    `skimage.metrics.structural_similarity` with `gaussian_weights=True,
    use_sample_covariance=False, data_range=255, channel_axis=-1`.

    Args:
      a, b: uint8 [..., H, W, C] with H and W at least 11.

    Returns:
      float64 [...].

    Raises:
      ValueError: images smaller than the window, or of different shapes or dtypes.
    """
    a, b = _pair(a, b)
    if min(a.shape[-3:-1]) < 2 * SSIM_RADIUS + 1:
        raise ValueError(f"SSIM needs images of at least 11x11, got {a.shape[-3]}x{a.shape[-2]}")
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    var_a = _window_mean(a * a) - mean_a**2
    var_b = _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    c1, c2 = (SSIM_K1 * 255.0) ** 2, (SSIM_K2 * 255.0) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    denominator = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return np.mean(numerator / denominator, axis=(-3, -2, -1))


def _pair(a, b):
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"images are compared as uint8, got {a.dtype} and {b.dtype}")
    if a.shape != b.shape or a.ndim < 3:
        raise ValueError(
            f"images to compare are [..., H, W, C] of one shape, got {a.shape} and {b.shape}"
        )
    return a.astype(np.float64), b.astype(np.float64)


def _window_mean(x: np.ndarray) -> np.ndarray:
    """Returns the Gaussian-weighted mean of every 11x11 window, [..., H-10, W-10, C]."""
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    kernel = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    kernel /= kernel.sum()
    for axis in (-3, -2):
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.size, axis=axis)
        x = windows @ kernel
    return x
