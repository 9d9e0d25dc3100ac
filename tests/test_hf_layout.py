"""Checkpoints as the -hf conversions keep them, against figures of transformers."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import GOLDEN

from emu3_jax.interop import hf_export, language_model, vision_tokenizer
from emu3_jax.interop.safetensors_io import WEIGHTS_FILE
from emu3_jax.vocab import Vocab

HF = GOLDEN / "hf"


@pytest.fixture(scope="module")
def golden():
    return np.load(HF / "golden.npz")


def test_codes_and_pixels_are_those_of_transformers(golden):
    model, variables = vision_tokenizer.load_vision_tokenizer(HF)
    image = np.moveaxis(golden["image"], 1, -1)
    codes = jax.jit(lambda x: model.apply(variables, x, method="encode"))(image)
    np.testing.assert_array_equal(codes, golden["codes"])
    pixels = jax.jit(lambda x: model.apply(variables, x, method="decode"))(codes)
    np.testing.assert_allclose(np.moveaxis(pixels, -1, 1), golden["decoded"], atol=2e-4)


def test_logits_are_those_of_transformers(golden):
    model, variables = language_model.load_language_model(HF)
    logits = jax.jit(model.apply)(variables, golden["ids"])
    np.testing.assert_allclose(logits, golden["logits"], atol=2e-4)


def _renamed(tmp_path, rename, config):
    tensors = safetensors.numpy.load_file(HF / WEIGHTS_FILE)
    renamed = {rename(name): array for name, array in tensors.items() if rename(name)}
    safetensors.numpy.save_file(renamed, tmp_path / WEIGHTS_FILE)
    stored = json.loads((HF / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config(stored)))
    return tmp_path


def _as_in_memory(name):
    return (
        name.replace("text_model.lm_head", "lm_head")
        .replace("text_model.model.", "model.text_model.")
        .replace("vqmodel.", "model.vqmodel.")
    )


def _same(found, expected):
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


@pytest.mark.parametrize("part", [vision_tokenizer, language_model], ids=["vision", "language"])
def test_names_as_the_class_in_memory_has_them(tmp_path, part):
    folder = _renamed(tmp_path, _as_in_memory, dict)
    _same(part.load(folder), part.load(HF))


def test_either_part_alone(tmp_path):
    (tmp_path / "vision").mkdir()
    (tmp_path / "text").mkdir()
    vision = _renamed(
        tmp_path / "vision",
        lambda name: name.removeprefix("vqmodel.") if name.startswith("vqmodel.") else "",
        lambda stored: stored["vq_config"],
    )
    _same(vision_tokenizer.load(vision), vision_tokenizer.load(HF))
    text = _renamed(
        tmp_path / "text",
        lambda name: name.removeprefix("text_model.") if name.startswith("text_model.") else "",
        lambda stored: stored["text_config"],
    )
    _same(language_model.load(text), language_model.load(HF))


def test_what_is_missing_or_too_much_is_listed(tmp_path):
    tensors = safetensors.numpy.load_file(HF / WEIGHTS_FILE)
    del tensors["vqmodel.encoder.conv_in.bias"], tensors["text_model.lm_head.weight"]
    tensors["vqmodel.teapot"] = tensors["text_model.teapot"] = np.zeros(1, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / WEIGHTS_FILE)
    shutil.copy(HF / "config.json", tmp_path)
    for part, missing in (
        (vision_tokenizer, "vqmodel.encoder.conv_in.bias"),
        (language_model, "text_model.lm_head.weight"),
    ):
        with pytest.raises(ValueError) as error:
            part.load(tmp_path)
        root = missing.split(".")[0]
        assert f"{missing} is missing" in str(error.value)
        assert f"{root}.teapot is unexpected" in str(error.value)


def test_another_rotation_is_refused(tmp_path):
    stored = json.loads((HF / "config.json").read_text())
    stored["text_config"]["rope_parameters"]["rope_type"] = "yarn"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="rope_scaling is .*yarn"):
        language_model.read_config(tmp_path)


def _released_vocab_part():
    """The token space of the golden checkpoint, read off its config."""
    stored = json.loads((HF / "config.json").read_text())
    ids = stored["vocabulary_map"]
    text = stored["text_config"]
    roles = {role: text[f"{role}_token_id"] for role in ("pad", "bos", "eos")}
    free = dict(zip(("boi", "img", "eof", "eoi"), range(132, 136), strict=True))
    return Vocab(
        text_size=120,
        **roles,
        **free,
        eol=ids["<|extra_200|>"],
        visual_start=ids["<|visual token 000000|>"],
        codebook_size=64,
    )


def test_an_export_is_the_golden_checkpoint_again(tmp_path):
    language, vision = language_model.load(HF), vision_tokenizer.load(HF)
    hf_export.save_model(tmp_path, language, vision, _released_vocab_part(), 256, image_token=130)
    golden = safetensors.numpy.load_file(HF / WEIGHTS_FILE)
    written = safetensors.numpy.load_file(tmp_path / WEIGHTS_FILE)
    assert written.keys() == golden.keys()
    for name, array in golden.items():
        if not name.endswith(vision_tokenizer.COUNTER):
            np.testing.assert_array_equal(written[name], array, err_msg=name)
    expected = json.loads((HF / "config.json").read_text())
    found = json.loads((tmp_path / "config.json").read_text())
    for section in ("text_config", "vq_config"):
        defaults = {"use_cache": True}
        assert found[section] | defaults == expected[section] | defaults
    assert found["vocabulary_map"] == expected["vocabulary_map"]
    assert set(expected) - set(found) == {"transformers_version"}


def test_exports_of_one_part(tmp_path):
    language, vision = language_model.load(HF), vision_tokenizer.load(HF)
    hf_export.save_language_model(tmp_path / "text", language, _released_vocab_part(), 256)
    hf_export.save_vision_tokenizer(tmp_path / "vision", vision)
    _same(language_model.load(tmp_path / "text"), language)
    _same(vision_tokenizer.load(tmp_path / "vision"), vision)


def test_an_export_of_what_transformers_has_no_class_for(tmp_path):
    config, variables = vision_tokenizer.load(HF)
    other = dataclasses.replace(config, norm_groups=16)
    with pytest.raises(ValueError, match="norm_groups=16 must be 32 for transformers"):
        hf_export.save_vision_tokenizer(tmp_path / "out", (other, variables))
    assert not (tmp_path / "out").exists()
