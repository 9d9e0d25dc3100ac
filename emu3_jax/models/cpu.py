"""Everything that is done differently on a CPU, and why. No other file tests for a CPU.

Results are the same to rounding. What is faster on a CPU and no slower elsewhere is done everywhere
and is in the file that uses it: 1x1 convolutions as matmuls, 3-D convolutions as 2-D ones over
stacked frames, pooling as maxima of slices. attention_kernels/choice.py picks the attention kernel
of a machine, a CPU included.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emu3_jax.sharding import platform

# Winograd: below either, the extra sums cost more than the saved products.
WINOGRAD_CHANNELS, WINOGRAD_FRAME = 256, 32 * 32
# Above both, the sixteen transforms of a kernel take 64 MiB, and an image of 1024 x 1024 could no
# longer be decoded within 4 GB.
LARGE_KERNEL, LARGE_IMAGE = 1024 * 1024, 64 * 64

LARGE_FRAME = 2**24
"""Positions times channels from which frames are processed one at a time: 256 x 256 x 256."""


def is_single_cpu() -> bool:
    """Whether the mesh that is set, else the default device, is a single CPU device.

    A mesh of CPU devices stands in for accelerators: what asks this function does not apply there.
    A batch is sharded, not processed frame by frame.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return (mesh.empty or mesh.size == 1) and platform() == "cpu"


def winograd_pays(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    """Whether `winograd.conv_3x3` is faster for float [F, H, W, I] and [kh, kw, I, O].

    With 256 channels or more it is 1.4 to 2.1 times as fast on a CPU. Accelerators have their own
    convolutions.
    """
    (_, H, W, _), (kh, kw, inputs, outputs) = x.shape, kernel.shape
    possible = (kh, kw, stride) == (3, 3, 1) and x.dtype == jnp.float32
    faster = H * W >= WINOGRAD_FRAME and min(inputs, outputs) >= WINOGRAD_CHANNELS
    too_much = H * W > LARGE_IMAGE and inputs * outputs >= LARGE_KERNEL
    return possible and faster and not too_much and is_single_cpu()


def one_at_a_time(frames: int, H: int, W: int, channels: int) -> bool:
    """Whether 2-D layers should process a batch of frames one by one.

    This pays for large frames: four frames of 256 x 256 took 1.27 times as long together as one by
    one, four of 128 x 128 0.92 times (with direct convolutions).
    """
    return is_single_cpu() and frames > 1 and H * W * channels >= LARGE_FRAME


def narrow_left_pays(dtype) -> bool:
    """Whether the gradient of a kernel should be inputs times cotangent, in this order.

    JAX has the cotangent on the left. XLA's CPU compiler then writes it transposed, one element at
    a time, as part of what computed it: 60 ms for the derivative of SiLU over 2,048 tokens of 1,408
    numbers, where the product takes 15. With the inputs on the left it copies nothing, and the
    gated MLP of 512 numbers trains in 0.76 of the time.
    """
    return jnp.dtype(dtype) == jnp.float32 and platform() == "cpu"


def single_query_as_sums(queries: int) -> bool:
    """Whether one query's attention to a cache is multiplied and summed, not a matmul.

    XLA runs a batch of small matmuls one after the other on one core, but shares sums among all.
    Eight rows of 512 slots took 0.6 ms a layer instead of 1.0 on two cores.
    """
    return queries == 1 and is_single_cpu()


# Of weights, above which two copies of them would not be kept.
MOST_COPIED = 4 * 2**30


def unscanned_layers(params) -> bool:
    """Whether decoding should run over a list of layers instead of a scan over stacked weights.

    In each step of a scan, XLA's CPU backend copies the layer's weights out of the stack. Decoding
    one row then takes 1.2 to 1.5 times as long, two rows 1.5 to 1.9 times. On a TPU the matmuls
    read the stack; see gpu.py for a GPU. The list is a copy of the weights.
    """
    size = sum(x.nbytes for x in jax.tree.leaves(params) if hasattr(x, "nbytes"))
    return is_single_cpu() and size <= MOST_COPIED


def options_to_run_once(mesh: Mesh) -> dict | None:
    """`compiler_options` of `jax.jit` for a program that runs once, such as an initialisation.

    XLA's CPU compiler takes minutes to optimise a program that then runs for a second.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 0} if on_cpu else None
