"""What is done differently on a GPU, and why."""

import jax

from emu3_jax.sharding import platform


def unscanned_layers(params) -> bool:
    """Whether decoding should run over a list of layers instead of a scan over stacked weights.

    Out of a stack XLA's GPU compiler copies each layer's weights and its live slots of the cache in
    every pass, before it multiplies. Compiled for an H100, a pass of Emu3-8B in bfloat16 with
    guidance over 8,064 slots moves 49.1 GB out of a stack and 19.0 GB out of a list. The list is a
    copy of the weights, which must find room beside as much again for the cache.
    """
    mesh = jax.sharding.get_abstract_mesh()
    arrays = jax.tree.leaves(params)
    if platform() != "gpu" or not (mesh.empty or mesh.size == 1):
        return False
    (device,) = arrays[0].devices()
    memory = device.memory_stats() or {}
    free = memory.get("bytes_limit", 0) - memory.get("bytes_in_use", 0)
    return 2 * sum(x.nbytes for x in arrays) <= free
