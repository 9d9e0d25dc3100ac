"""Initialises a vision tokenizer from a MoVQGAN, as Emu3's own was (paper section 2.2).

The 2-D networks have the same names and shapes and are copied. How Emu3 initialised the layers in
time and grew the codebook from 16,384 to 32,768 is not published; here:

Time. Residual layers begin as the identity, the halving layers as the mean of the frames they join,
the doubling ones as repetition. The SiLU after each of these is not linear, so values pass through
its nearly linear range: the first layer adds LIFT, and `quant_conv` subtracts it again (exact to
1e-6, since silu(t) = t up to t e^-t). In the decoder only convolutions with zero padding follow, so
LIFT must be removed before them: the last layer subtracts it and shrinks its output by SHRINK,
where silu(t) = t / 2 up to t² / 4; the next layer is scaled by 2 / SHRINK.

Codebook. The existing entries keep their codes; entry n + i begins next to entry i, moved by NEAR
times the standard deviation of all entries in each dimension.
"""

import os
import pathlib

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax.interop.formats.safetensors_io import differences, read_file
from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.models.vision.tokenizer import VisionTokenizer
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig

LIFT = 24.0
SHRINK = 2.0**-8
NEAR = 0.01

QUANT_CONVS = ("quant_conv", "post_quant_conv")
CODEBOOK = ("params", "quantize", "embedding")
# Parts of a training checkpoint that are not the tokenizer: losses and averaged copies.
NOT_READ = ("loss.", "ema_")


def load(file: str | os.PathLike, config: VisionTokenizerConfig) -> dict:
    """Variables of a tokenizer of `config` that reconstructs images as the MoVQGAN in `file` does.

    Args:
      file: safetensors with the names of the MoVQGAN repository. Its checkpoints are torch pickles;
        convert once: safetensors.torch.save_file(torch.load(ckpt)["state_dict"], file).
      config: the MoVQGAN's 2-D sizes, at least as many codes, and the quantizer "nearest".

    Returns:
      {"params": …, "batch_stats": …} of float32 numpy arrays.

    Raises:
      ValueError: another quantizer, not a safetensors file, or arrays that are missing, unexpected
        or of another shape; the message lists them all.
    """
    if config.quantizer != "nearest":
        raise ValueError(
            f"a MoVQGAN uses the nearest entry of a codebook, so model.quantizer must be "
            f"'nearest', found {config.quantizer!r}."
        )
    stored = {
        name: np.asarray(array, np.float32)
        for name, array in read_file(pathlib.Path(file)).items()
        if not name.startswith(NOT_READ)
    }
    pairs = [pair for pair in tokenizer_files.key_map(config) if not _in_time(pair.path)]
    expected = {_stored_name(pair): _stored_shape(pair) for pair in pairs}
    codebook = _stored_name(next(pair for pair in pairs if pair.path == CODEBOOK))
    size = len(stored.get(codebook, ()))
    if 0 < size <= config.codebook_size:
        expected[codebook] = (size, config.embed_dim)
    found = {name: array.shape for name, array in stored.items()}
    if problems := differences(found, expected):
        raise ValueError(f"{file} does not fit the config: {'; '.join(problems)}")
    flat = _initial(config)
    for pair in pairs:
        array = stored[_stored_name(pair)]
        if pair.path == CODEBOOK:
            flat[pair.path] = grown_codebook(array, config.codebook_size)
        elif pair.path[1] in QUANT_CONVS and pair.path[-1] == "kernel":
            kernel = np.zeros(
                pair.shape, np.float32
            )  # [3, 1, 1, in, out]; the newest frame is last
            kernel[-1, 0, 0] = array[:, :, 0, 0].T
            flat[pair.path] = kernel
        else:
            flat[pair.path] = pair.from_file(array)
    _begin_in_time(flat, config)
    return flax.traverse_util.unflatten_dict(flat)


def grown_codebook(codebook_ND: np.ndarray, size: int) -> np.ndarray:
    """float32 [size, D]: the entries, and slightly moved copies; see the module docstring."""
    entries, dim = codebook_ND.shape
    copies = np.arange(entries, size) % entries
    spread = NEAR * codebook_ND.std(axis=0)
    noise = np.random.default_rng(0).normal(size=(len(copies), dim)) * spread
    return np.concatenate([codebook_ND, codebook_ND[copies] + noise]).astype(np.float32)


def _begin_in_time(flat: dict, config: VisionTokenizerConfig) -> None:
    """Writes the layers in time, and the inverse of LIFT and SHRINK into their neighbours."""
    if not config.temporal_halvings:
        return
    last = config.temporal_halvings - 1
    for side, joined in (("encoder", 2), ("decoder", 1)):
        for i in range(last + 1):
            path = ("params", side, f"time_conv_{i}", "conv", "conv")
            kernel, bias = flat[*path, "kernel"], flat[*path, "bias"]
            kernel, bias = np.zeros_like(kernel), np.zeros_like(bias)
            _, kh, kw, channels, _ = kernel.shape
            kernel[-joined:, kh // 2, kw // 2] = np.eye(channels) / joined
            bias[:] = LIFT if i == 0 else 0.0
            if side == "decoder" and i == last:
                kernel *= SHRINK
                bias = (bias - LIFT if last else bias * 0) * SHRINK
            flat[*path, "kernel"], flat[*path, "bias"] = kernel, bias
    quant = ("params", "quant_conv", "conv")
    flat[*quant, "bias"] = flat[*quant, "bias"] - LIFT * flat[*quant, "kernel"][-1, 0, 0].sum(0)
    for path, array in flat.items():
        reads_latents = path[1:3] == ("decoder", "conv_in") or path[-2] in ("conv_y", "conv_b")
        if reads_latents and path[-1] == "kernel":
            flat[path] = array * (2.0 / SHRINK)


def _in_time(path: tuple[str, ...]) -> bool:
    return any(part.startswith("time_") for part in path)


def _stored_name(pair: tokenizer_files.Pair) -> str:
    """As in the released file, but MoVQGAN's convolutions around the quantizer are 2-D."""
    if pair.path[1] in QUANT_CONVS:
        return pair.name.replace(".conv.", ".")
    return pair.name


def _stored_shape(pair: tokenizer_files.Pair) -> tuple[int, ...]:
    if pair.path[1] in QUANT_CONVS and pair.path[-1] == "kernel":
        return (*pair.file_shape[:2], 1, 1)
    return pair.file_shape


def _initial(config: VisionTokenizerConfig) -> dict[tuple[str, ...], np.ndarray]:
    """Flat variables at initialisation; only the layers in time keep them."""
    side = config.spatial_factor
    still = jnp.zeros((1, side, side, config.in_channels), jnp.float32)
    variables = VisionTokenizer(config).init(jax.random.key(0), still)
    return {
        path: np.asarray(array)
        for path, array in flax.traverse_util.flatten_dict(nn.unbox(variables)).items()
    }
