"""Compile for machines that are not there: python -m emu3_jax.aot --config=FILE --topology=NAME

Compiles the very step that `python -m emu3_jax.train --config=FILE` runs, with the TPU's own
compiler and without a TPU, and says whether it fits, what crosses the mesh and how long it takes by
the compiler's estimate. No data is read where the config states model.vocab_size.

  --program    train: the update of the config's task, be it pretrain or vision_tokenizer;
               tokenize: a vision tokenizer's codes of a batch; sample: pictures of 720 x 720;
               evaluate: likelihood of held-out rows.
  --topology   v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB, tpu7x:AxBxC (needs requirements-aot.txt), or
               cpu:N, which needs nothing and knows no limits.
  --slices     so many of them; mesh axis `data` runs over the slices.
  --estimate   (default) two more compiles, of 2 and 4 layers without loops, give the time of all
               layers; --noestimate leaves them out.
  --search     the cheapest rematerialisation at the config's batch, then the largest batch.
  --plan       stop where the compiler knows every array and what crosses the mesh, before it writes
               code: some ten times faster, without an estimate.

The last line is one line of JSON. Exit status 1: it does not fit, and the line before says what to
change. docs/aot.md explains the figures.
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
PLAN = flags.DEFINE_bool("plan", False, "Stop at the compiler's plan, before it writes code.")
HBM = flags.DEFINE_float("hbm_gib", None, "Memory of a device to judge by; default: the chip's.")


def main() -> None:
    """Compiles and reports; exit status 1 where the program does not fit."""
    config = flags.FLAGS.config
    if config is None or TOPOLOGY.value is None:
        raise ConfigError("--config and --topology are needed; see --help")
    jax.config.update("jax_platforms", "cpu")  # a TPU that is there is left alone
    jax.config.update("jax_enable_compilation_cache", False)  # compile_s means compiling
    target = machine(TOPOLOGY.value, SLICES.value, HBM.value)
    found = compile_and_report(
        config,
        PROGRAM.value,
        target,
        search=SEARCH.value,
        with_estimate=ESTIMATE.value,
        plan_only=PLAN.value,
    )
    sys.exit(0 if found.fits else 1)


if __name__ == "__main__":
    command_line.run(main, __doc__)
