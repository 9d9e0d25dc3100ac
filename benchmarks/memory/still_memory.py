"""Memory of one still in the vision tokenizer of the released size, float32, on a CPU.

  PYTHONPATH=. python benchmarks/memory/still_memory.py [--side=1024]

For encoding and for decoding, each in a fresh process: the temporaries that XLA plans for the
compiled program, with and without the weights, and the peak of the process, which includes Python,
JAX and compilation. The cache of compiled programs is not used.
"""

import argparse
import json
import resource
import subprocess
import sys

GIB = 2**30
DIRECTIONS = ("encode", "decode")


def measure(direction: str, side: int, config=None) -> dict[str, int]:
    """Compiles and runs one direction in this process; returns bytes.

    Args:
      direction: "encode" or "decode".
      side: side of the still, in pixels.
      config: VisionTokenizerConfig; None for the released one.

    Returns:
      weights, temporaries (of the program) and peak (of this process since it began).
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

    config = config or VisionTokenizerConfig()
    model, cells = VisionTokenizer(config), side // config.spatial_factor
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    # Not zeros, for which the system may use a single page.
    variables = jax.tree.map(lambda x: jax.device_put(np.full(x.shape, 1e-3, x.dtype)), shapes)
    given = {
        "encode": jnp.zeros((1, side, side, config.in_channels)),
        "decode": jnp.zeros((1, cells, cells), jnp.int32),
    }[direction]
    run = jax.jit(lambda variables, given: model.apply(variables, given, method=direction))
    program = run.lower(variables, given).compile()
    jax.block_until_ready(program(variables, given))
    return {
        "weights": sum(leaf.nbytes for leaf in jax.tree.leaves(variables)),
        "temporaries": program.memory_analysis().temp_size_in_bytes,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    """Measures both directions, each in a new process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024, help="in pixels (%(default)s)")
    parser.add_argument("--direction", choices=DIRECTIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side < 8 or arguments.side % 8:
        parser.error(f"--side must be a multiple of 8, found {arguments.side}")
    if arguments.direction:
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)
        print(json.dumps(measure(arguments.direction, arguments.side)))
        return
    for direction in DIRECTIONS:
        # This process imports nothing large: a child's peak starts from that of its parent.
        words = [sys.executable, __file__, f"--side={arguments.side}", f"--direction={direction}"]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        bytes_of = json.loads(done.stdout.splitlines()[-1])
        planned = bytes_of["temporaries"] + bytes_of["weights"]
        print(
            f"{direction}: temporaries {bytes_of['temporaries'] / GIB:.2f} GiB, with all weights "
            f"({bytes_of['weights'] / GIB:.2f} GiB) {planned / 1e9:.2f} GB; "
            f"peak of the process {bytes_of['peak'] / 1e9:.2f} GB"
        )


if __name__ == "__main__":
    main()
