"""Compile for devices you do not have: python -m emu3_jax.aot --config=FILE --topology=NAME

Compiles the step that `python -m emu3_jax.train --config=FILE` runs, with the TPU compiler and
without a TPU. Reports whether it fits, what crosses the mesh, and how long it takes by the
compiler's estimate. If the config sets model.vocab_size, no data is read.

  --program    train: the update of the config's task (pretrain or vision_tokenizer);
               tokenize: a vision tokenizer's codes of a batch; sample: images of 720 x 720;
               evaluate: likelihood of held-out rows.
               With --decoder, --window and --quantize as of `emu3_jax.generate`; beside memory
               it reports what a forward pass moves, and the least that it could.
  --topology   v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB, tpu7x:AxBxC (needs requirements-aot.txt), or
               cpu:N, which needs nothing and has no memory limit.
  --slices     number of such slices; mesh axis `data` runs over the slices.
  --estimate   (default) two more compiles, of 2 and 4 layers without loops, give the time of all
               layers; --noestimate leaves them out.
  --search     the cheapest rematerialisation at the config's batch, then the largest batch.
  --plan       stop when the compiler has placed every array and collective, before it generates
               code: some ten times faster, without an estimate.

The last line is one line of JSON. Exit status 1 means that the program does not fit; the line
before the last then says what to change. docs/how_to/aot.md explains the figures.
"""

import sys

import jax
from absl import flags

from emu3_jax import command_line
from emu3_jax.aot.compile_and_report import TRAIN, compile_and_report
from emu3_jax.aot.topology import machine
from emu3_jax.config import ConfigError

command_line.define_config(help_text="Whose program; see configs/. Override: --config.a.b=value.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Machine to compile for, such as v5p:4x4x4.")
PROGRAM = flags.DEFINE_string("program", TRAIN, "What to compile.")
SLICES = flags.DEFINE_integer("slices", 1, "Number of such slices.")
ESTIMATE = flags.DEFINE_bool("estimate", True, "Also estimate the time of a step (TPU only).")
SEARCH = flags.DEFINE_bool("search", False, "Find the cheapest remat policy and largest batch.")
PLAN = flags.DEFINE_bool("plan", False, "Stop at the compiler's plan, before it generates code.")
DECODER = flags.DEFINE_string("decoder", "sequential", "Of --program=sample.")
WINDOW = flags.DEFINE_integer("window", None, "Of that decoder; default: the decoder's.")
QUANTIZE = flags.DEFINE_list("quantize", [], "What is int8 when sampling: weights, cache.")
HBM = flags.DEFINE_float("hbm_gib", None, "Memory limit of a device in GiB; default: the chip's.")


def main() -> None:
    """Compiles and reports; exit status 1 if the program does not fit."""
    config = flags.FLAGS.config
    if config is None or TOPOLOGY.value is None:
        raise ConfigError("--config and --topology are needed; see --help")
    jax.config.update("jax_platforms", "cpu")  # leaves a present TPU alone
    jax.config.update("jax_enable_compilation_cache", False)  # compile_s measures compiling
    target = machine(TOPOLOGY.value, SLICES.value, HBM.value)
    found = compile_and_report(
        config,
        PROGRAM.value,
        target,
        search=SEARCH.value,
        with_estimate=ESTIMATE.value,
        plan_only=PLAN.value,
        sampling={flag.name: flag.value for flag in (DECODER, WINDOW, QUANTIZE) if flag.present},
    )
    sys.exit(0 if found.fits else 1)


if __name__ == "__main__":
    command_line.run(main, __doc__)
