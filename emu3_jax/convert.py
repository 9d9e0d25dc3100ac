"""Convert: python -m emu3_jax.convert export|import --model=DIR --output=DIR [--layout=hf] ...

export writes a language model or a vision tokenizer, of a run directory (the averaged weights where
the run keeps them) or of any model directory, as a directory of weights:
  --layout=baai  as the released weights are; a language model takes its vocabulary and text
                 tokenizer along where they are known
  --layout=hf    as transformers loads them; with --vision_tokenizer=DIR both parts as one model
Between directories every tensor keeps its bits, unless --dtype asks for another type.

import writes released weights of either layout as a model directory of this package, with the
vocabulary and the rank file (of an -hf model rebuilt from its tokenizer): every command takes it as
--model or --vision_tokenizer, and `train` as start.transformer or start.weights.
"""

import pathlib

from absl import flags

from emu3_jax import command_line, files
from emu3_jax.config import is_run_directory, read_config
from emu3_jax.evaluate import loading
from emu3_jax.interop import hf_export, relayout, vision_tokenizer
from emu3_jax.interop.bundle import (
    UnknownVocabularyError,
    load_language,
    save_bundle,
    save_language,
)
from emu3_jax.interop.safetensors_io import DTYPES, SAME, Tensors, replacing_model

LANGUAGE, VISION = PARTS = ("language_model", "vision_tokenizer")

MODEL = flags.DEFINE_string("model", None, "Run directory or model directory.")
OUTPUT = flags.DEFINE_string("output", None, "Directory to write; an earlier model is replaced.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of a run; default the newest.")
DTYPE = flags.DEFINE_enum("dtype", SAME, [SAME, *DTYPES], "Type of the weights.")
LAYOUT = flags.DEFINE_enum("layout", "baai", ["baai", "hf"], "Names and config of the directory.")
PART = flags.DEFINE_enum(
    "part", None, PARTS, "Half of a whole -hf model; default: both to hf, the language model else."
)
OTHER = flags.DEFINE_string(
    "vision_tokenizer", None, "For a language model in the layout hf: the other half of the model."
)


def main(verb: str) -> None:
    """Reads the model and writes the directory."""
    if not MODEL.value or not OUTPUT.value:
        raise ValueError("--model and --output are needed; see --help")
    parts = parts_to_write(MODEL.value)
    if OTHER.value and (parts != (LANGUAGE,) or LAYOUT.value == "baai"):
        raise ValueError("--vision_tokenizer goes with a language model and --layout=hf only")
    if verb == "import":
        _check_import()
    with replacing_model(OUTPUT.value) as folder:
        if is_run_directory(MODEL.value) or _is_run(OTHER.value):
            _write_run(folder, parts)
        else:
            _write_directory(folder, parts)
    report(OUTPUT.value, parts)


def _check_import() -> None:
    if is_run_directory(MODEL.value):
        raise ValueError(f"{MODEL.value} is a run of this package; every command takes it as it is")
    if LAYOUT.value == "hf":
        raise ValueError("--layout=hf goes with export only; an import is a model of this package")


def _is_run(path: str | None) -> bool:
    return path is not None and is_run_directory(path)


def parts_to_write(path: str) -> tuple[str, ...]:
    """Which of PARTS a run directory or a model directory gives; ValueError if none."""
    if is_run_directory(path):
        found = (VISION,) if read_config(path).task == "vision_tokenizer" else (LANGUAGE,)
    else:
        has = (relayout.has_language_model(path), relayout.has_vision_tokenizer(path))
        found = tuple(part for part, there in zip(PARTS, has, strict=True) if there)
    if not found or PART.value not in (None, *found):
        what = PART.value or f"{LANGUAGE} or {VISION}"
        raise ValueError(f"{path} holds no {what} in a layout that is known")
    if PART.value:
        return (PART.value,)
    return found if LAYOUT.value == "hf" and not OTHER.value else found[:1]


def report(path: str, parts: tuple[str, ...]) -> None:
    """Prints what was written."""
    size = sum(file.stat().st_size for file in pathlib.Path(path).glob("*.safetensors"))
    tensors = Tensors(path)
    types = sorted({tensors.type_name(name) for name in tensors.shapes()} & set(DTYPES))
    what = " and ".join(part.replace("_", " ") for part in parts)
    print(f"{path}: {what}, layout {LAYOUT.value}, {size / 1e6:.1f} MB in {', '.join(types)}")


def _write_directory(folder: pathlib.Path, parts: tuple[str, ...]) -> None:
    """From files to files."""
    source, hf, dtype = MODEL.value, LAYOUT.value == "hf", DTYPE.value
    if OTHER.value or parts == PARTS:
        relayout.write_whole_model(source, OTHER.value or source, folder, dtype)
    elif parts == (VISION,):
        relayout.write_vision_tokenizer(source, folder, hf, dtype)
    else:
        relayout.write_language_model(source, folder, hf, dtype)
        if not hf:
            _write_language(source, folder)


def _write_language(source: str, folder: pathlib.Path) -> None:
    try:
        save_language(folder, load_language(source))
    except UnknownVocabularyError as error:
        print(f"The weights alone are written, nothing can be generated from them: {error}")


def _write_run(folder: pathlib.Path, parts: tuple[str, ...]) -> None:
    """From checkpoints of a run, through memory."""
    if parts == (VISION,):
        _write_vision_run(folder)
        return
    model, _ = loading.load_model(MODEL.value, STEP.value)
    if LAYOUT.value == "baai":
        save_bundle(folder, model, DTYPE.value)
        return
    language = (model.model.config, model.variables["params"])
    if not OTHER.value:
        hf_export.save_language_model(folder, language, model.vocab, model.max_context, DTYPE.value)
        return
    vision, variables = loading.load_vision_tokenizer(OTHER.value)
    hf_export.save_model(
        folder,
        language,
        (vision.config, variables),
        model.vocab,
        model.max_context,
        model.vocab.placeholder(),
        DTYPE.value,
    )


def _write_vision_run(folder: pathlib.Path) -> None:
    model, variables = loading.load_vision_tokenizer(MODEL.value, STEP.value)
    if LAYOUT.value == "hf":
        hf_export.save_vision_tokenizer(folder, (model.config, variables), DTYPE.value)
    else:
        vision_tokenizer.save(folder, model.config, variables, DTYPE.value)
    # Pictures are brought to the sizes that the tokenizer was trained on.
    areas = [group["size"] ** 2 for group in read_config(MODEL.value).data.groups]
    limits = {"min_pixels": min(areas), "max_pixels": max(areas)}
    files.write_json(folder / relayout.PREPROCESSOR_FILE, limits)


if __name__ == "__main__":
    command_line.run(main, __doc__, verbs=("export", "import"))
