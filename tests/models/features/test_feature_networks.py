"""FID's Inception v3 and I3D against torch on narrowed random weights, from files to features."""

import conftest
import jax
import numpy as np
import pytest
import safetensors.numpy

from emu3_jax.interop.vision import feature_networks
from emu3_jax.models.features import i3d, inception
from emu3_jax.models.features.inception_blocks import max_pool, mean_pool

# Some fifty layers deep, float32 (6e-8) with BatchNorm folded in: roots of that many roundings,
# 4e-7 of the largest feature (found: 3e-7 and 4e-7), times ten for other machines. A wrong padding
# or pool moves features by percents.
RELATIVE = 4e-6


def stored(name, folder):
    """(a safetensors file with the golden weights, pixels in [-1, 1], golden features)."""
    with np.load(conftest.GOLDEN / f"{name}.npz") as golden:
        arrays = dict(golden)
    pixels, features = arrays.pop("pixels"), arrays.pop("features")
    path = folder / f"{name}.safetensors"
    safetensors.numpy.save_file(arrays, path)
    return path, pixels.astype(np.float32) / 127.5 - 1, features


@pytest.mark.parametrize(
    ("name", "load", "model"),
    [
        ("inception", feature_networks.load_inception, inception),
        ("i3d", feature_networks.load_i3d, i3d),
    ],
)
def test_features_are_torchs(name, load, model, tmp_path):
    path, pixels, expected = stored(name, tmp_path)
    found = np.asarray(jax.jit(model.features)(load(path), pixels))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < RELATIVE * np.abs(expected).max()


def test_the_networks_have_the_published_number_of_units():
    # 94 convolutions of Inception v3 without the auxiliary head; I3D: 3 and 9 times 6.
    assert len(set(inception.UNITS)) == len(inception.UNITS) == 94
    assert len(set(i3d.UNITS)) == len(i3d.UNITS) == 57


def test_pools_leave_padding_out():
    x = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1) - 20
    assert mean_pool(x, (3, 3))[0, 0, 0, 0] == np.mean(x[0, :2, :2])
    assert max_pool(x, (3, 3), (1, 1))[0, 0, 0, 0] == x[0, 1, 1, 0]


def test_what_is_no_such_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="gone.pth: no such file; expected Inception v3"):
        feature_networks.load_inception(tmp_path / "gone.pth")
    path, _, _ = stored("inception", tmp_path)
    with pytest.raises(ValueError, match="is not I3D.*Conv3d_1a_7x7.conv3d.weight is missing"):
        feature_networks.load_i3d(path)
    arrays = safetensors.numpy.load_file(path)
    for key, value, message in (
        ("Mixed_6b.branch7x7_2.conv.weight", np.ones((8, 7, 1, 7), np.float16), "fit together"),
        ("Mixed_5b.branch1x1.bn.running_var", np.ones(3, np.float16), "width of Mixed_5b"),
        ("Mixed_5b.branch1x1.bn.bias", np.full(4, np.nan, np.float16), "not finite"),
    ):
        safetensors.numpy.save_file(arrays | {key: value}, path)
        with pytest.raises(ValueError, match=message):
            feature_networks.load_inception(path)


def test_clips_too_short_for_i3d_are_refused():
    with pytest.raises(ValueError, match="at least 9 frames, got 8"):
        i3d.features({}, np.zeros((1, 8, 16, 16, 3), np.float32))
