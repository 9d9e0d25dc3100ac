"""The weights of LAION's aesthetic predictor: `sac+logos+ava1-l14-linearMSE.pth` and its kin.

Names are layers.<n>.weight, layers.<n>.bias with gaps in n for dropout. The layers have no
activations between them, so they are multiplied into one affine map, in float64.
"""

import os
import pathlib
import re

import numpy as np

from emu3_jax.interop.formats import torch_pickle
from emu3_jax.interop.formats.safetensors_io import read_file

NAME = re.compile(r"layers\.(\d+)\.(weight|bias)")


def load(path: str | os.PathLike, dimensions: int) -> dict[str, np.ndarray]:
    """{"kernel": float32 [dimensions], "bias": float32 []} of a .pth or .safetensors file.

    Args:
      path: the file.
      dimensions: of the embeddings that it is to score.

    Raises:
      ValueError: no such file, or tensors that are missing, surplus, mis-shaped or infinite; names
        the file and the tensor.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; expected the aesthetic predictor, such as "
            "sac+logos+ava1-l14-linearMSE.pth"
        )
    tensors = read_file(path) if path.suffix == ".safetensors" else torch_pickle.read(path)
    try:
        return collapsed(tensors, dimensions)
    except ValueError as error:
        raise ValueError(f"{path} is not an aesthetic predictor: {error}") from error


def collapsed(tensors: dict[str, np.ndarray], dimensions: int) -> dict[str, np.ndarray]:
    """As `load`, of the tensors themselves."""
    if surplus := [name for name in tensors if not NAME.fullmatch(name)]:
        raise ValueError(f"{surplus[0]} is unexpected")
    numbers = sorted({int(NAME.fullmatch(name)[1]) for name in tensors})
    if not numbers:
        raise ValueError("layers.0.weight is missing")
    kernel, bias = np.eye(dimensions), np.zeros(dimensions)
    for number in numbers:
        names = [f"layers.{number}.{part}" for part in ("weight", "bias")]
        if missing := [name for name in names if name not in tensors]:
            raise ValueError(f"{missing[0]} is missing")
        weight_OI, bias_O = (np.asarray(tensors[name], np.float64) for name in names)
        last = 1 if number == numbers[-1] else "any number"
        fits = weight_OI.ndim == 2 and weight_OI.shape[1] == len(bias)
        if not fits or (last == 1 and len(weight_OI) != 1):
            raise ValueError(
                f"{names[0]} has shape {list(weight_OI.shape)}, expected [{last}, {len(bias)}]"
            )
        if bias_O.shape != weight_OI.shape[:1]:
            raise ValueError(
                f"{names[1]} has shape {list(bias_O.shape)}, expected [{len(weight_OI)}]"
            )
        if not (np.isfinite(weight_OI).all() and np.isfinite(bias_O).all()):
            raise ValueError(f"layers.{number} holds numbers that are not finite")
        kernel, bias = kernel @ weight_OI.T, weight_OI @ bias + bias_O
    return {"kernel": kernel[:, 0].astype(np.float32), "bias": bias[0].astype(np.float32)}
