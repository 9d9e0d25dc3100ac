"""Convert: python -m emu3_jax.convert export --model=DIR --output=DIR [--layout=hf] ...

Writes a language model or a vision tokenizer, of a run directory (the averaged weights where the
run keeps them) or of any model directory, as a directory of weights:
  --layout=baai  as the released weights are; a language model takes its vocabulary and text
                 tokenizer along, and every command takes such a directory as --model
  --layout=hf    as transformers loads them; with --vision_tokenizer=DIR both parts as one model
Parts of released weights can be brought from one layout to the other in this way.
"""

import json
import pathlib

from absl import flags

from emu3_jax import command_line
from emu3_jax.config import read_config
from emu3_jax.data.media import write_atomically
from emu3_jax.evaluate import loading
from emu3_jax.generate.pixels import PREPROCESSOR_FILE
from emu3_jax.interop import hf_export, vision_tokenizer
from emu3_jax.interop.bundle import save_bundle
from emu3_jax.interop.safetensors_io import read_json

MODEL = flags.DEFINE_string("model", None, "Run directory or model directory.")
OUTPUT = flags.DEFINE_string("output", None, "Directory to write; an earlier one is replaced.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of a run; default the newest.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the weights.")
LAYOUT = flags.DEFINE_enum("layout", "baai", ["baai", "hf"], "Names and config of the directory.")
VISION = flags.DEFINE_string(
    "vision_tokenizer", None, "For a language model in the layout hf: the other half of the model."
)


def export() -> None:
    """Reads the model and writes the directory."""
    if not MODEL.value or not OUTPUT.value:
        raise ValueError("--model and --output are needed; see --help")
    vision = is_vision_tokenizer(MODEL.value)
    if VISION.value and (vision or LAYOUT.value == "baai"):
        raise ValueError("--vision_tokenizer goes with a language model and --layout=hf only")
    (_export_vision_tokenizer if vision else _export_language_model)()
    size = sum(f.stat().st_size for f in pathlib.Path(OUTPUT.value).glob("*.safetensors"))
    what = "vision tokenizer" if vision else "language model"
    print(f"{OUTPUT.value}: {what}, layout {LAYOUT.value}, {size / 1e6:.1f} MB in {DTYPE.value}")


def is_vision_tokenizer(path: str) -> bool:
    """Whether a directory holds a vision tokenizer and no language model."""
    if loading.is_run_directory(path):
        return read_config(path).task == "vision_tokenizer"
    stored = read_json(pathlib.Path(path) / vision_tokenizer.CONFIG_FILE)
    return stored.get("model_type") in ("Emu3VisionVQ", "emu3_vqgan")


def _export_vision_tokenizer() -> None:
    model, variables = loading.load_vision_tokenizer(MODEL.value, STEP.value)
    if LAYOUT.value == "hf":
        hf_export.save_vision_tokenizer(OUTPUT.value, (model.config, variables), DTYPE.value)
    else:
        vision_tokenizer.save(OUTPUT.value, model.config, variables, DTYPE.value)
    if loading.is_run_directory(MODEL.value):
        # Pictures are brought to the size that the tokenizer was trained on.
        area = read_config(MODEL.value).data.image_size ** 2
        limits = {"min_pixels": area, "max_pixels": area}
        write_atomically(
            pathlib.Path(OUTPUT.value) / PREPROCESSOR_FILE, json.dumps(limits, indent=1).encode()
        )


def _export_language_model() -> None:
    bundle, _ = loading.load_model(MODEL.value, STEP.value)
    if LAYOUT.value == "baai":
        save_bundle(OUTPUT.value, bundle, DTYPE.value)
        return
    language = (bundle.model.config, bundle.variables["params"])
    if bundle.max_context is None:
        raise ValueError(f"{MODEL.value} states no longest sequence, which transformers needs")
    if not VISION.value:
        hf_export.save_language_model(
            OUTPUT.value, language, bundle.vocab, bundle.max_context, DTYPE.value
        )
        return
    vision, variables = loading.load_vision_tokenizer(VISION.value)
    hf_export.save_model(
        OUTPUT.value,
        language,
        (vision.config, variables),
        bundle.vocab,
        bundle.max_context,
        bundle.vocab.placeholder(),
        DTYPE.value,
    )


if __name__ == "__main__":
    command_line.run(lambda verb: export(), __doc__, verbs=("export",))
