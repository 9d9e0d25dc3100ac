"""Convert: python -m emu3_jax.convert export|import --model=DIR --output=DIR [--layout=hf] ...

export reads a run directory (the averaged weights if the run keeps them) or any model directory and
writes its language model or vision tokenizer as a directory of weights:
  --layout=baai  the layout of the released weights; a language model is written with its
                 vocabulary and text tokenizer if they are known
  --layout=hf    the layout that transformers loads; --vision_tokenizer=DIR writes both parts as one
                 model
  --layout=peft  the adapters of a run with the section lora, without their base, in PEFT's files;
                 the other layouts hold the merged model
Between directories every tensor keeps its bits, unless --dtype names another type.

import writes released weights of either layout as a model directory of this package, with the
vocabulary and the rank file (for an -hf model, rebuilt from its tokenizer). Every command accepts
it as --model or --vision_tokenizer, and `train` as start.transformer or start.weights.
"""

import pathlib

from absl import flags

from emu3_jax import command_line, shipped
from emu3_jax.interop import exporting, relayout
from emu3_jax.interop.bundle import UnknownVocabularyError, load_language, save_language
from emu3_jax.interop.exporting import (
    BAAI,
    HF,
    LANGUAGE_MODEL,
    LAYOUTS,
    PARTS,
    PEFT,
    VISION_TOKENIZER,
)
from emu3_jax.interop.formats.safetensors_io import DTYPES, SAME, Tensors, replacing_model
from emu3_jax.train import weights
from emu3_jax.train.run import run_directory
from emu3_jax.train.tasks import registry

MODEL = command_line.define_path(
    "model", shipped.language_model, "Run directory, model directory, or shipped model."
)
OUTPUT = flags.DEFINE_string("output", None, "Directory to write; an earlier model is replaced.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of a run; default: the newest.")
DTYPE = flags.DEFINE_enum("dtype", SAME, [SAME, *DTYPES], "Type of the weights.")
LAYOUT = flags.DEFINE_enum("layout", "baai", LAYOUTS, "Names and config of the directory.")
PART = flags.DEFINE_enum(
    "part", None, PARTS, "Half of a whole -hf model; default: both for hf, else the language model."
)
OTHER = command_line.define_path(
    "vision_tokenizer",
    shipped.vision_tokenizer,
    "For a language model in the layout hf: the other half of the model.",
)
command_line.define_mesh()


def main(verb: str) -> None:
    """Reads the model and writes the directory."""
    if not MODEL.value or not OUTPUT.value:
        raise ValueError("--model and --output are needed; see --help")
    parts = parts_to_write(MODEL.value)
    if LAYOUT.value == PEFT and not _has_adapters(MODEL.value):
        raise ValueError(
            f"--layout=peft writes the adapters of a run with the section {registry.LORA}; "
            f"{MODEL.value} has none"
        )
    if OTHER.value and (parts != (LANGUAGE_MODEL,) or LAYOUT.value != HF):
        raise ValueError("--vision_tokenizer goes with a language model and --layout=hf only")
    if verb == "import":
        _check_import()
    with replacing_model(OUTPUT.value) as folder:
        if weights.is_run_directory(MODEL.value) or _is_run(OTHER.value):
            _write_run(folder)
        else:
            _write_directory(folder, parts)
    report(OUTPUT.value, parts)


def _check_import() -> None:
    if weights.is_run_directory(MODEL.value):
        raise ValueError(f"{MODEL.value} is a run of this package; every command reads it directly")
    if LAYOUT.value != BAAI:
        raise ValueError(
            f"--layout={LAYOUT.value} goes with export only; an import is a model of this package"
        )


def _has_adapters(path: str) -> bool:
    return _is_run(path) and hasattr(run_directory.read(path), registry.LORA)


def _is_run(path: str | None) -> bool:
    return path is not None and weights.is_run_directory(path)


def parts_to_write(path: str) -> tuple[str, ...]:
    """Which of PARTS a run directory or a model directory gives; ValueError if none."""
    if weights.is_run_directory(path):
        found = (registry.find(run_directory.read(path).task).kind,)
    else:
        has = (relayout.has_language_model(path), relayout.has_vision_tokenizer(path))
        found = tuple(part for part, there in zip(PARTS, has, strict=True) if there)
    if not found or PART.value not in (None, *found):
        what = PART.value or f"{LANGUAGE_MODEL} or {VISION_TOKENIZER}"
        raise ValueError(f"{path} holds no {what} in a known layout")
    if PART.value:
        return (PART.value,)
    return found if LAYOUT.value == "hf" and not OTHER.value else found[:1]


def report(path: str, parts: tuple[str, ...]) -> None:
    """Prints what was written."""
    if not set(parts) <= set(PARTS):  # a user's own task may write anything
        print(f"{path}: {' and '.join(parts)}")
        return
    size = sum(file.stat().st_size for file in pathlib.Path(path).glob("*.safetensors"))
    if LAYOUT.value == PEFT:
        print(f"{path}: adapters, layout {PEFT}, {size / 1e6:.1f} MB in float32")
        return
    tensors = Tensors(path)
    types = sorted({tensors.type_name(name) for name in tensors.shapes()} & set(DTYPES))
    what = " and ".join(part.replace("_", " ") for part in parts)
    print(f"{path}: {what}, layout {LAYOUT.value}, {size / 1e6:.1f} MB in {', '.join(types)}")


def _write_directory(folder: pathlib.Path, parts: tuple[str, ...]) -> None:
    """Converts files to files, without a model in memory."""
    source, hf, dtype = MODEL.value, LAYOUT.value == "hf", DTYPE.value
    if OTHER.value or parts == PARTS:
        relayout.write_whole_model(source, OTHER.value or source, folder, dtype)
    elif parts == (VISION_TOKENIZER,):
        relayout.write_vision_tokenizer(source, folder, hf, dtype)
    else:
        relayout.write_language_model(source, folder, hf, dtype)
        if not hf:
            _write_language(source, folder)


def _write_language(source: str, folder: pathlib.Path) -> None:
    try:
        save_language(folder, load_language(source))
    except UnknownVocabularyError as error:
        print(f"Only the weights are written; generation is not possible from them: {error}")


def _write_run(folder: pathlib.Path) -> None:
    """Writes a model through memory: at least one half comes from a run directory."""
    mesh = command_line.mesh()
    other = weights.load_vision_tokenizer(OTHER.value, mesh=mesh) if OTHER.value else None
    options = exporting.ExportOptions(LAYOUT.value, DTYPE.value, other)
    if weights.is_run_directory(MODEL.value):
        run = weights.open_run(MODEL.value, STEP.value, mesh)
        run.task.export(folder, run.variables, options)
    else:
        model, _ = weights.load_language_model(MODEL.value, mesh=mesh)
        exporting.write_language_model(folder, model, options)


if __name__ == "__main__":
    command_line.run(main, __doc__, verbs=("export", "import"))
