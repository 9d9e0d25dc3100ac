"""The card: memory and matrix units by the data sheet, and what is reached here."""

import importlib.metadata
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from emu3_jax.train.run import metrics

# 10^9 bytes per second of the memory, from NVIDIA's data sheets of the A100, H100 and H200, by how
# JAX calls a device. A name stands for all that begin with it.
BANDWIDTHS = {
    "NVIDIA A100-SXM4-40GB": 1555,
    "NVIDIA A100-PCIE-40GB": 1555,
    "NVIDIA A100-SXM4-80GB": 2039,
    "NVIDIA A100 80GB PCIe": 1935,
    "NVIDIA H100 80GB HBM3": 3350,  # SXM
    "NVIDIA H100 PCIe": 2000,
    "NVIDIA H100 NVL": 3900,
    "NVIDIA H200": 4800,
}


def bandwidth(device_kind: str) -> float | None:
    """Bytes per second by the data sheet; None if the card is not in the table."""
    matches = [name for name in BANDWIDTHS if device_kind.startswith(name)]
    return 1e9 * BANDWIDTHS[max(matches, key=len)] if matches else None


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Of some calls that return arrays, after one that is not timed."""
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def measure(device: jax.Device, mib: int, side: int) -> dict:
    """What floors are computed with: "bandwidth" in bytes/s and "peak" in FLOP/s.

    They are those of the data sheet, or of a card that is not in the tables what is reached: by a
    copy, and by a product of matrices.

    Args:
      device: the card.
      mib: MiB that are copied; a copy reads and writes them.
      side: of the square bfloat16 matrices that are multiplied.
    """
    key = jax.random.key(0)
    with jax.default_device(device):
        words = jax.random.bits(key, (mib * 2**18,), jnp.uint32)
        flip = jax.jit(lambda x: ~x)
        copied = 2 * words.nbytes / median_seconds(lambda: flip(words), 5)
        matrix = jax.random.normal(key, (side, side), jnp.bfloat16)
        multiply = jax.jit(jnp.matmul)
        multiplied = 2 * side**3 / median_seconds(lambda: multiply(matrix, matrix), 5)
    sheet = bandwidth(device.device_kind), metrics.peak_flops(device.device_kind)
    return {
        "name": device.device_kind,
        "memory_gib": (device.memory_stats() or {}).get("bytes_limit", 0) / 2**30,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        "data_sheet": all(sheet),
        "bandwidth": sheet[0] or copied,
        "peak": sheet[1] or multiplied,
        "copied": copied,
        "multiplied": multiplied,
    }
