"""Weights of the networks behind rFID and rFVD, from the user's own files.

  load_inception   the torch port of FID's Inception v3: `pt_inception-2015-12-05-6726825d.pth` of
                   the pytorch-fid project (names as torchvision's; the classifier is not read)
  load_i3d         I3D RGB of Kinetics-400: `rgb_imagenet.pt` of the pytorch-i3d project

Both are read without torch; safetensors files with the same names work too.
"""

import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax.interop.formats import torch_pickle
from emu3_jax.interop.formats.safetensors_io import read_file
from emu3_jax.models.features import i3d, inception
from emu3_jax.models.features.inception_blocks import units_of_torch


def load_inception(path: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Units for `models.features.inception.features`: name → (float32 kernel, float32 bias).

    Raises:
      ValueError: no such file, or it does not hold this network; names the file and the array.
    """
    tensors = _read(path, "Inception v3 of pytorch-fid (pt_inception-2015-12-05-6726825d.pth)")
    try:
        units = units_of_torch(tensors, inception.UNITS, "conv", "bn")
        _check(inception.features, units, (1, 8, 8, 3))
    except ValueError as error:
        raise ValueError(f"{path} is not FID's Inception v3: {error}") from error
    return units


def load_i3d(path: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Units for `models.features.i3d.features`; otherwise as `load_inception`."""
    tensors = _read(path, "I3D of pytorch-i3d (rgb_imagenet.pt)")
    kernel, bias = (f"{i3d.LOGITS}.conv3d.{part}" for part in ("weight", "bias"))
    try:
        units = units_of_torch(tensors, i3d.UNITS, "conv3d", "bn")
        if lacking := [name for name in (kernel, bias) if name not in tensors]:
            raise ValueError(f"{lacking[0]} is missing")
        logits = np.moveaxis(np.asarray(tensors[kernel], np.float32), (0, 1), (-1, -2))
        units[i3d.LOGITS] = (logits, np.asarray(tensors[bias], np.float32))
        _check(i3d.features, units, (1, i3d.MIN_FRAMES, 8, 8, 3))
    except ValueError as error:
        raise ValueError(f"{path} is not I3D on RGB: {error}") from error
    return units


def _read(path: str | os.PathLike, what: str) -> Mapping[str, np.ndarray]:
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected {what}")
    return read_file(path) if path.suffix == ".safetensors" else torch_pickle.read(path)


def _check(features: Callable, units: Mapping, shape: tuple[int, ...]) -> None:
    """Traces the network without running it, to find arrays that do not fit."""
    if broken := [name for name, unit in units.items() if not all(map(_finite, unit))]:
        raise ValueError(f"{broken[0]} holds numbers that are not finite")
    try:
        jax.eval_shape(features, units, jax.ShapeDtypeStruct(shape, jnp.float32))
    except (TypeError, ValueError) as error:
        raise ValueError(f"its arrays do not fit together ({error})") from error


def _finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all())
