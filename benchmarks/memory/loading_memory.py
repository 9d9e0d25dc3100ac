"""Peak host memory of loading a language model, on a synthetic checkpoint of many files.

  PYTHONPATH=. python benchmarks/memory/loading_memory.py --directory=DIR [--gigabytes=2]

Writes a checkpoint in the released layout (random weights, files of 200 MB) unless the directory
holds one, then loads it onto two CPU devices in its own process. Prints the peak memory of that
process beyond the weights, and the limit: three times the largest tensor plus 1 GiB. On a CPU the
devices' memory is the host's, so the weights are subtracted.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys

GIB = 2**30
FILE_BYTES = 200 * 10**6


def write(directory: pathlib.Path, gigabytes: float) -> None:
    """Writes a checkpoint of at least this many gigabytes, tensor by tensor."""
    import numpy as np

    from emu3_jax.files import write_json
    from emu3_jax.interop.formats.safetensors_io import CONFIG_FILE, write_tensors
    from emu3_jax.interop.language import language_model as lm
    from emu3_jax.interop.language.language_config import CONFIG_KEYS, RELEASED
    from emu3_jax.models.language.transformer import TransformerConfig, count_parameters

    sizes = dict(vocab_size=32_001, hidden_size=2048, intermediate_size=5632)
    heads = dict(num_heads=16, num_kv_heads=4, head_dim=128)
    layers = 1
    while 4 * count_parameters(TransformerConfig(num_layers=layers, **sizes, **heads)) < (
        gigabytes * 1e9
    ):
        layers += 1
    config = TransformerConfig(num_layers=layers, **sizes, **heads)
    generator = np.random.default_rng(0)
    pairs = lm.key_map(config)
    tensors = (
        (pair.name, generator.standard_normal(pair.file_shape, dtype=np.float32)) for pair in pairs
    )
    write_tensors(directory, tensors, FILE_BYTES)
    stored = RELEASED | {key: getattr(config, name) for key, name in CONFIG_KEYS.items()}
    write_json(directory / CONFIG_FILE, stored)


def peak() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load(directory: pathlib.Path) -> None:
    """Loads in this process and prints the figures."""
    import jax

    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_platforms", "cpu")
    from emu3_jax import sharding
    from emu3_jax.interop.language import language_model as lm

    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2))
    jax.block_until_ready(jax.numpy.zeros(1))
    before = peak()
    config, params = lm.load(directory, mesh=mesh)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    largest = 4 * max(
        int(jax.numpy.prod(jax.numpy.array(pair.file_shape))) for pair in lm.key_map(config)
    )
    files = sorted(directory.glob("*.safetensors"))
    stored = sum(file.stat().st_size for file in files)
    extra, bar = peak() - before - weights, 3 * largest + GIB
    print(f"{len(files)} files, {stored / 1e9:.2f} GB; largest tensor {largest / GIB:.2f} GiB")
    print(f"weights {weights / GIB:.2f} GiB; beyond them {extra / GIB:.2f} GiB at the peak")
    print(f"bar: 3 x largest + 1 GiB = {bar / GIB:.2f} GiB; ratio {extra / bar:.2f}")


def main() -> None:
    """Writes the checkpoint if needed and measures in a new process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=pathlib.Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.directory)
        return
    if not (arguments.directory / "config.json").exists():
        write(arguments.directory, arguments.gigabytes)
    command = [sys.executable, __file__, "--load", f"--directory={arguments.directory}"]
    root = str(pathlib.Path(__file__).parents[1])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": root})


if __name__ == "__main__":
    main()
