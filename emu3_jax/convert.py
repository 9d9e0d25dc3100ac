"""Convert: python -m emu3_jax.convert export --run=DIR --output=DIR [--step=N] [--dtype=bfloat16]

Writes the weights of a run's checkpoint (the averaged ones where the run keeps them) in the
released layout: config.json and model.safetensors, and for a language model the vocabulary and the
text tokenizer beside them. Every command takes such a directory where it takes a run directory.
"""

import json
import pathlib

from absl import flags

from emu3_jax import command_line
from emu3_jax.config import read_config
from emu3_jax.data.media import write_atomically
from emu3_jax.evaluate import loading
from emu3_jax.generate.pixels import PREPROCESSOR_FILE
from emu3_jax.interop import vision_tokenizer
from emu3_jax.interop.bundle import save_bundle

RUN = flags.DEFINE_string("run", None, "Run directory of python -m emu3_jax.train.")
OUTPUT = flags.DEFINE_string("output", None, "Directory to write; an earlier one is replaced.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to export; default the newest.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the weights.")


def export() -> None:
    """Reads the checkpoint and writes the directory, whole or not at all."""
    if not RUN.value or not OUTPUT.value:
        raise ValueError("--run and --output are needed; see --help")
    task = read_config(RUN.value).task
    if task == "vision_tokenizer":
        model, variables = loading.load_vision_tokenizer(RUN.value, STEP.value)
        vision_tokenizer.save(OUTPUT.value, model.config, variables, DTYPE.value)
        # Pictures are brought to the size that the tokenizer was trained on.
        area = read_config(RUN.value).data.image_size ** 2
        limits = {"min_pixels": area, "max_pixels": area}
        write_atomically(
            pathlib.Path(OUTPUT.value) / PREPROCESSOR_FILE, json.dumps(limits, indent=1).encode()
        )
    else:
        bundle, _ = loading.load_model(RUN.value, STEP.value)
        save_bundle(OUTPUT.value, bundle, DTYPE.value)
    size = sum(f.stat().st_size for f in pathlib.Path(OUTPUT.value).glob("*.safetensors"))
    print(f"{OUTPUT.value}: {task} weights, {size / 1e6:.1f} MB in {DTYPE.value}")


if __name__ == "__main__":
    command_line.run(lambda verb: export(), __doc__, verbs=("export",))
