"""Checkpoints in the -hf layout, against figures of transformers."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import vision_tokenizer_tensors
from paths import GOLDEN

from emu3_jax.interop import hf_export
from emu3_jax.interop.formats.safetensors_io import WEIGHTS_FILE
from emu3_jax.interop.language import language_config, language_model
from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.models.language.transformer import released
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig
from emu3_jax.vocab import Vocab

HF = GOLDEN / "hf"
IDS = ("pad", "bos", "eos")


@pytest.fixture(scope="module")
def golden():
    return np.load(HF / "golden.npz")


def test_codes_and_pixels_are_those_of_transformers(golden):
    model, variables = tokenizer_files.load_module(HF)
    image = np.moveaxis(golden["image"], 1, -1)
    codes = jax.jit(lambda x: model.apply(variables, x, method="encode"))(image)
    np.testing.assert_array_equal(codes, golden["codes"])
    pixels = jax.jit(lambda x: model.apply(variables, x, method="decode"))(codes)
    np.testing.assert_allclose(np.moveaxis(pixels, -1, 1), golden["decoded"], atol=2e-4)


def test_logits_are_those_of_transformers(golden):
    model, variables = language_model.load_module(HF)
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


@pytest.mark.parametrize("part", [tokenizer_files, language_model], ids=["vision", "language"])
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
    _same(tokenizer_files.load(vision), tokenizer_files.load(HF))
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
        (tokenizer_files, "vqmodel.encoder.conv_in.bias"),
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
        language_model.read_transformer_config(tmp_path)


# Fields that transformers omits in the sections of a whole model: the defaults of its classes.
TEXT_DEFAULTS = ("attention_dropout", "hidden_act", "initializer_range", "rms_norm_eps")
VISION_DEFAULTS = ("attention_dropout", "attn_resolutions", "double_latent", "embed_dim",
                   "in_channels", "latent_channels", "num_attention_heads", "out_channels",
                   "temporal_downsample_factor")  # fmt: skip


@pytest.mark.parametrize("rope", [None, {"rope_type": "default"}, {"type": "default"}])
def test_sections_that_state_only_what_differs(tmp_path, rope):
    stored = json.loads((HF / "config.json").read_text())
    for section, names in (("text_config", TEXT_DEFAULTS), ("vq_config", VISION_DEFAULTS)):
        for name in names:
            del stored[section][name]
    stored["text_config"] |= {"rope_parameters": None, "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    shutil.copy(HF / WEIGHTS_FILE, tmp_path)
    _same(language_model.load(tmp_path), language_model.load(HF))
    _same(tokenizer_files.load(tmp_path), tokenizer_files.load(HF))


def test_sections_that_state_nothing_are_as_released(tmp_path):
    config = {"model_type": "emu3", "text_config": {"model_type": "emu3_text_model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = language_model.read_transformer_config(tmp_path)
    names = language_config.CONFIG_KEYS.values()
    assert all(getattr(found, name) == getattr(released(), name) for name in names)
    assert found.dropout == 0.1 and found.head_dim == 128
    assert tokenizer_files.read_tokenizer_config(tmp_path) == VisionTokenizerConfig()
    ids = {"pad_token_id": 151643, "bos_token_id": 151849, "eos_token_id": 151850}
    further = language_config.read_further(tmp_path)
    assert further == ids | {"max_position_embeddings": 9216, "initializer_range": 0.02}
    # The script of the released conversions states it for the whole model.
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 131072}))
    assert language_config.read_further(tmp_path)["max_position_embeddings"] == 131072


def test_attention_of_a_vision_tokenizer(tmp_path):
    stored = json.loads((HF / "config.json").read_text())
    file = tmp_path / "config.json"
    file.write_text(json.dumps(stored["vq_config"] | {"attn_resolutions": None}))
    assert tokenizer_files.read_tokenizer_config(tmp_path).attn_resolutions == ()
    file.write_text(json.dumps(stored["vq_config"] | {"num_attention_heads": 2}))
    with pytest.raises(ValueError, match="num_attention_heads is 2, expected 1"):
        tokenizer_files.read_tokenizer_config(tmp_path)


def test_names_at_the_released_size():
    text = {pair.name: pair.file_shape for pair in language_model.hf_key_map(released())}
    baai = {pair.name: pair.file_shape for pair in language_model.key_map(released())}
    assert text == {f"text_model.{name}": shape for name, shape in baai.items()}
    config = VisionTokenizerConfig()
    pairs = tokenizer_files.hf_key_map(config)
    vision = {pair.name: pair.file_shape for pair in pairs}
    vision |= dict.fromkeys(tokenizer_files.counters(pairs), ())
    assert vision == vision_tokenizer_tensors.hf()


def _released_vocab_part():
    """The token space of the golden checkpoint, from its config."""
    stored = json.loads((HF / "config.json").read_text())
    ids = stored["vocabulary_map"]
    text = stored["text_config"]
    roles = {role: text[f"{role}_token_id"] for role in IDS}
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
    language, vision = language_model.load(HF), tokenizer_files.load(HF)
    hf_export.save_model(tmp_path, language, vision, _released_vocab_part(), 256, image_token=130)
    golden = safetensors.numpy.load_file(HF / WEIGHTS_FILE)
    written = safetensors.numpy.load_file(tmp_path / WEIGHTS_FILE)
    assert written.keys() == golden.keys()
    for name, array in golden.items():
        if not name.endswith(tokenizer_files.COUNTER):
            np.testing.assert_array_equal(written[name], array, err_msg=name)
    expected = json.loads((HF / "config.json").read_text())
    found = json.loads((tmp_path / "config.json").read_text())
    expected["text_config"]["rope_theta"] = 1e6  # for versions that read it by itself
    for section in ("text_config", "vq_config"):
        defaults = {"use_cache": True}
        assert found[section] | defaults == expected[section] | defaults
    ids = json.loads((tmp_path / "generation_config.json").read_text())
    golden_ids = json.loads((HF / "generation_config.json").read_text())
    assert ids == {f"{name}_token_id": golden_ids[f"{name}_token_id"] for name in IDS}
    assert found["vocabulary_map"] == expected["vocabulary_map"]
    assert set(expected) - set(found) == {"transformers_version"}


def test_halves_that_do_not_belong_together(tmp_path):
    language, (config, variables) = language_model.load(HF), tokenizer_files.load(HF)
    other = (dataclasses.replace(config, codebook_size=65), variables)
    with pytest.raises(ValueError, match="has 65 codes; the language model's vocabulary has 64"):
        hf_export.save_model(tmp_path, language, other, _released_vocab_part(), 256, 130)
    assert not list(tmp_path.iterdir())


def test_exports_of_one_part(tmp_path):
    language, vision = language_model.load(HF), tokenizer_files.load(HF)
    hf_export.save_language_model(tmp_path / "text", language, _released_vocab_part(), 256)
    hf_export.save_vision_tokenizer(tmp_path / "vision", vision)
    _same(language_model.load(tmp_path / "text"), language)
    _same(tokenizer_files.load(tmp_path / "vision"), vision)


def test_an_export_of_what_transformers_has_no_class_for(tmp_path):
    config, variables = tokenizer_files.load(HF)
    other = dataclasses.replace(config, norm_groups=16)
    with pytest.raises(ValueError, match="norm_groups=16 must be 32 for transformers"):
        hf_export.save_vision_tokenizer(tmp_path / "out", (other, variables))
    wide = dataclasses.replace(config, attn_resolutions=(1, 3))  # widths 32 and 64
    with pytest.raises(ValueError, match="attention at level 1 has width 32, expected .* 64"):
        hf_export.save_vision_tokenizer(tmp_path / "out", (wide, variables))
    assert not (tmp_path / "out").exists()
