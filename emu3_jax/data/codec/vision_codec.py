"""Encoding and decoding: uint8 images and clips of any size to codes and back.

A clip longer than one latent frame is encoded either as one causal clip (`CAUSAL`), where later
codes depend on earlier frames, or as independent clips of one latent frame each (`INDEPENDENT`), as
the official script does with released weights. Decode the same way.

Images of many sizes share batches and programs (`canvases`). Every device of the current mesh
processes its rows of a batch. With several processes, all make the same calls with the same images,
and each receives all results.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from emu3_jax import sharding
from emu3_jax.data.codec.canvases import COMMON
from emu3_jax.data.codec.programs import Decoding, Encoding

CAUSAL, INDEPENDENT = CLIPS = ("causal", "independent")
Done = Callable[[int], None]


def encode(
    tokenizer: tuple[Any, Any],
    images: Sequence[np.ndarray],
    batch_size: int,
    clips: str = CAUSAL,
    done: Done = lambda count: None,
    one_size: bool | None = None,
) -> list[np.ndarray]:
    """Codes of uint8 [H, W, 3] or [T, H, W, 3] → int32 [h, w] or [t, h, w] each.

    Images are cropped at the right and the bottom, clips also at the end, to multiples of the
    tokenizer's factors. `done` is called after each batch with the number of its images.
    `one_size`: these and all images of later calls have one size, which is then not padded; None:
    as it is in this call.

    Raises:
      ValueError: an image or clip smaller than one token, or `clips` is not one of CLIPS.
    """
    cut = [whole_tokens(tokenizer[0].config, image) for image in images]
    owners = range(len(cut))
    if _independent(clips):
        cut, owners = _pieces(cut, tokenizer[0].config.temporal_downsample_factor, rank=4)
    return _joined(_all(Encoding(tokenizer), cut, batch_size, done, one_size), owners)


def decode(
    tokenizer: tuple[Any, Any],
    codes: Sequence[np.ndarray],
    batch_size: int,
    clips: str = CAUSAL,
    done: Done = lambda count: None,
    one_size: bool | None = None,
) -> list[np.ndarray]:
    """Pixels of codes: int32 [h, w] → uint8 [H, W, 3], [t, h, w] → uint8 [T, H, W, 3].

    `clips`, `done` and `one_size` are as for `encode`.
    """
    codes, owners = [np.asarray(c) for c in codes], range(len(codes))
    if _independent(clips):
        codes, owners = _pieces(codes, 1, rank=3)
    return _joined(_all(Decoding(tokenizer), codes, batch_size, done, one_size), owners)


def _all(program, arrays, batch_size: int, done: Done, one_size: bool | None) -> list[np.ndarray]:
    results: list = [None] * len(arrays)
    rows = max(1, min(batch_size, len(arrays)))
    if one_size is None:
        one_size = len({array.shape for array in arrays}) == 1
    common = 1 if one_size else COMMON
    batcher = program.batcher(rows, rows, finished=done, common=common)
    for index, array in enumerate(arrays):
        batcher.add(array, functools.partial(results.__setitem__, index))
    batcher.flush()
    return results


def _independent(clips: str) -> bool:
    if clips not in CLIPS:
        raise ValueError(f"clips must be one of {', '.join(CLIPS)}, found {clips!r}")
    return clips == INDEPENDENT


def _pieces(arrays: Sequence[np.ndarray], length: int, rank: int):
    """Arrays of `rank` cut along axis 0 into pieces of `length`, and the owner of each piece."""
    pieces, owners = [], []
    for index, array in enumerate(arrays):
        count = len(array) // length if array.ndim == rank else 1
        pieces += np.split(array, count) if count > 1 else [array]
        owners += [index] * count
    return pieces, owners


def _joined(pieces: Sequence[np.ndarray], owners: Sequence[int]) -> list[np.ndarray]:
    groups: dict[int, list] = {}
    for piece, owner in zip(pieces, owners, strict=True):
        groups.setdefault(owner, []).append(piece)
    return [np.concatenate(group) if len(group) > 1 else group[0] for group in groups.values()]


def whole_tokens(config: Any, image: np.ndarray) -> np.ndarray:
    """Crops uint8 [(T,) H, W, 3] to whole tokens; ValueError for anything else."""
    if image.dtype != np.uint8 or image.ndim not in (3, 4):
        raise ValueError(
            f"images must be uint8 [H, W, 3] and clips uint8 [T, H, W, 3], found {image.dtype} "
            f"{list(image.shape)}"
        )
    space, time = config.spatial_factor, config.temporal_downsample_factor
    height, width = (size - size % space for size in image.shape[-3:-1])
    frames = image.shape[0] - image.shape[0] % time if image.ndim == 4 else 1
    if 0 in (height, width, frames):
        raise ValueError(
            f"an image of shape {image.shape} is smaller than one token"
            f" ({time} frames of {space}x{space} pixels)"
        )
    image = image[..., :height, :width, :]
    return image[:frames] if image.ndim == 4 else image


def batches_of_one_shape(
    arrays: Sequence[np.ndarray], batch_size: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Groups arrays by shape → (their indices, the stacked batch padded to `batch_size`).

    The last batch of a shape repeats its first array, so that each shape compiles once; only the
    first `len(indices)` rows count. On a mesh the number of rows is rounded up to a multiple of the
    devices.
    """
    ways = sharding.ways_of(jax.sharding.get_abstract_mesh(), "batch")
    groups: dict[tuple, list[int]] = {}
    for index, array in enumerate(arrays):
        groups.setdefault(array.shape, []).append(index)
    for indices in groups.values():
        rows = -(-min(batch_size, len(indices)) // ways) * ways
        for start in range(0, len(indices), rows):
            chosen = indices[start : start + rows]
            padded = chosen + [chosen[0]] * (rows - len(chosen))
            yield chosen, np.stack([arrays[i] for i in padded])
