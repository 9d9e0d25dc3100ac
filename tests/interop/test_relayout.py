"""Directory to directory: every bit is kept, and the files beside the weights are copied."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from paths import GOLDEN

from emu3_jax.interop import relayout
from emu3_jax.interop.formats.safetensors_io import CONFIG_FILE, WEIGHTS_FILE, write_tensors
from emu3_jax.interop.language import language_model
from emu3_jax.interop.vision import tokenizer_files

HF = GOLDEN / "hf"
TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def _tensors(path):
    return safetensors.numpy.load_file(path / WEIGHTS_FILE)


def _config(path):
    return json.loads((path / CONFIG_FILE).read_text())


def _copy(source, folder, dtype):
    """The directory with weights of another type, and BatchNorms that have counted."""
    folder.mkdir()
    shutil.copy(source / CONFIG_FILE, folder)
    tensors = {}
    for i, (name, array) in enumerate(_tensors(source).items()):
        counter = name.endswith(tokenizer_files.COUNTER)
        tensors[name] = np.asarray(1000 + i) if counter else array.astype(TYPES[dtype])
    write_tensors(folder, tensors.items())
    return folder


def _same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("vision_tokenizer", relayout.write_vision_tokenizer),
        ("language_model", relayout.write_language_model),
    ],
)
def test_there_and_back_every_bit_survives(tmp_path, name, write, dtype):
    source = _copy(GOLDEN / name, tmp_path / "source", dtype)
    write(source, tmp_path / "hf", hf=True)
    write(tmp_path / "hf", tmp_path / "back", hf=False)
    write(source, tmp_path / "same", hf=False)
    for folder in ("back", "same"):
        _same(_tensors(tmp_path / folder), _tensors(source))
        expected = _config(source) | {"torch_dtype": dtype}
        found = _config(tmp_path / folder)
        assert {key: found[key] for key in expected} == expected
    assert _config(tmp_path / "hf")["dtype"] == dtype


@pytest.mark.parametrize("dtype", TYPES)
def test_a_whole_model_apart_and_together_again(tmp_path, dtype):
    source = _copy(HF, tmp_path / "source", dtype)
    relayout.write_language_model(source, tmp_path / "language", hf=False)
    relayout.write_vision_tokenizer(source, tmp_path / "vision", hf=False)
    _same(
        _tensors(tmp_path / "language"),
        {
            name.removeprefix("text_model."): array
            for name, array in _tensors(source).items()
            if name.startswith("text_model.")
        },
    )
    assert language_model.read_transformer_config(
        tmp_path / "language"
    ) == language_model.read_transformer_config(HF)
    assert tokenizer_files.read_tokenizer_config(
        tmp_path / "vision"
    ) == tokenizer_files.read_tokenizer_config(HF)
    relayout.write_whole_model(source, source, tmp_path / "whole")
    relayout.write_whole_model(source, tmp_path / "vision", tmp_path / "joined")
    for folder in ("whole", "joined"):
        _same(_tensors(tmp_path / folder), _tensors(source))
        assert _config(tmp_path / folder)["vocabulary_map"] == _config(HF)["vocabulary_map"]
    with pytest.raises(ValueError, match="neither bundle.json nor"):
        relayout.write_whole_model(tmp_path / "language", tmp_path / "vision", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_type_that_is_asked_for(tmp_path):
    relayout.write_vision_tokenizer(HF, tmp_path, hf=False, dtype="bfloat16")
    for name, array in _tensors(tmp_path).items():
        if "running" in name or name.endswith(tokenizer_files.COUNTER):
            assert array.dtype != ml_dtypes.bfloat16, name
        else:
            assert array.dtype == ml_dtypes.bfloat16, name
    with pytest.raises(ValueError, match="dtype must be one of float32, .* found 'int8'"):
        relayout.write_vision_tokenizer(HF, tmp_path / "no", hf=False, dtype="int8")


def test_what_config_json_states_beside_the_sizes(tmp_path):
    source = _copy(GOLDEN / "language_model", tmp_path / "source", "float32")
    stated = {"image_area": 262144, "boi_token_id": 903, "initializer_range": 0.05}
    (source / CONFIG_FILE).write_text(json.dumps(_config(source) | stated))
    relayout.write_language_model(source, tmp_path / "hf", hf=True)
    relayout.write_language_model(tmp_path / "hf", tmp_path / "back", hf=False)
    for folder in ("hf", "back"):
        found = _config(tmp_path / folder)
        assert {key: found[key] for key in stated} == stated
        assert found["max_position_embeddings"] == 512
        ids = json.loads((tmp_path / folder / "generation_config.json").read_text())
        assert ids == {"bos_token_id": 901, "eos_token_id": 902, "pad_token_id": 900}
    assert _config(tmp_path / "back")["architectures"] == ["Emu3ForCausalLM"]


def test_files_beside_the_weights(tmp_path):
    source = _copy(GOLDEN / "vision_tokenizer", tmp_path / "source", "float32")
    for name in (relayout.PREPROCESSOR_FILE, "modeling_emu3visionvq.py", "README.md", "old.bin"):
        (source / name).write_text('{"min_pixels": 64}')
    relayout.write_vision_tokenizer(source, tmp_path / "hf", hf=True)
    relayout.write_vision_tokenizer(source, tmp_path / "same", hf=False)
    always = {CONFIG_FILE, WEIGHTS_FILE, relayout.PREPROCESSOR_FILE}
    assert {p.name for p in (tmp_path / "hf").iterdir()} == always
    same = always | {"modeling_emu3visionvq.py", "README.md"}
    assert {p.name for p in (tmp_path / "same").iterdir()} == same
