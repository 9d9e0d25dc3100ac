"""The attention implementations by name, and the choice among them."""

import jax
import jax.numpy as jnp

from emu3_jax import sharding
from emu3_jax.models.language import zigzag
from emu3_jax.models.language.attention_kernels.blockwise import blockwise
from emu3_jax.models.language.attention_kernels.cudnn import cudnn
from emu3_jax.models.language.attention_kernels.reference import reference
from emu3_jax.models.language.attention_kernels.splash import splash
from emu3_jax.models.language.attention_kernels.triangle import triangle

IMPLEMENTATIONS = {
    "reference": reference,
    "blockwise": blockwise,
    "triangle": triangle,
    "splash": splash,
    "cudnn": cudnn,
}
"""Name -> f(q [B,S,N,H], k [B,S,K,H], v [B,S,K,H], segment_ids [B,S], dropout, dropout_key)
-> [B,S,N,H]. Padding, segment 0, gives zeros. They run on the mesh that is set."""

ZIGZAG = ("blockwise", "splash")
"""Those that shard rows over `context` themselves and need them in zigzag order there."""

WITHOUT_DROPOUT = ("splash", "cudnn")
"""Those that cannot drop probabilities."""

MACHINES = {"splash": "tpu", "cudnn": "gpu"}
"""Those that run on one kind of machine."""

WHOLE_ROWS = ("triangle", "cudnn")
"""Those that cannot shard rows over `context`."""

SHORT = 1024
"""Longest rows for which the whole score matrix (4 MiB per head) is as good as blocks of it."""

LONGEST_TRIANGLE = 8192
"""Longest rows whose blocks of scores are small (0.7 GB in all); they then take 0.85 of the time of
`blockwise`."""

LONGEST_MASK = 16_384
"""Longest rows for which cuDNN's mask is small (512 MiB)."""


def check(name: str, dropout: float, dtype) -> None:
    """ValueError if `model.attention=name` does not support the rest of the config."""
    if name in WITHOUT_DROPOUT and dropout > 0.0:
        raise ValueError(
            f"model.attention={name!r} has no dropout on probabilities, found {dropout}: set "
            "model.attention_dropout=0 or model.attention='blockwise'"
        )
    if name == "cudnn" and jnp.dtype(dtype).itemsize != 2:
        raise ValueError(
            f"model.attention='cudnn' needs model.dtype bfloat16 or float16, found {dtype}"
        )


def check_mesh(name: str, machine: str, context: int) -> None:
    """ValueError if `model.attention=name` does not run on these devices, `context` per row."""
    needed = MACHINES.get(name, machine)
    if needed != machine:
        raise ValueError(
            f"model.attention={name!r} runs on {needed}, these devices are {machine}: set "
            "model.attention='auto'"
        )
    if name in WHOLE_ROWS and context > 1:
        raise ValueError(
            f"model.attention={name!r} cannot cut rows over mesh axis context={context}: set "
            "model.attention='auto'"
        )


def choose(name: str, length: int, dropout: float, dtype) -> str:
    """The implementation for rows of `length` tokens with `model.attention=name`.

    "auto" depends on row length, dropout on probabilities, type and the mesh that is set:

    on a TPU, no dropout, bfloat16          splash
    on a GPU, no dropout, bfloat16 or float16, up to 16,384 tokens, rows not sharded: cudnn
    on a CPU, rows not sharded, up to 8,192 tokens, up to 1,024 with dropout: triangle
    else, up to 1,024 tokens                reference
    else                                    blockwise
    """
    mesh = jax.sharding.get_abstract_mesh()
    context = 1 if mesh.empty else mesh.shape["context"]
    machine = sharding.platform()
    if name != "auto":
        check_mesh(name, machine, context)
        return name
    dtype = jnp.dtype(dtype)
    if machine == "tpu" and dropout == 0.0 and dtype == jnp.bfloat16:
        return "splash"
    if machine == "gpu" and dropout == 0.0 and dtype.itemsize == 2 and context == 1:
        if length <= LONGEST_MASK:
            return "cudnn"
    longest = LONGEST_TRIANGLE if dropout == 0.0 else SHORT
    if machine == "cpu" and context == 1 and length <= longest:
        return "triangle"
    return "reference" if length <= SHORT else "blockwise"


def zigzag_devices(name: str, length: int, dropout: float, dtype) -> int:
    """Devices that share a row in zigzag order; 1 if rows keep their order. See `choose`."""
    return zigzag.parts(length) if choose(name, length, dropout, dtype) in ZIGZAG else 1
