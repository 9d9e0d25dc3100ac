"""Adapters in PEFT's files: what is refused, and names of either layout of the base."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
import safetensors.numpy
from paths import GOLDEN

from emu3_jax.interop.formats.safetensors_io import ADAPTER_CONFIG_FILE
from emu3_jax.interop.language import peft
from emu3_jax.interop.language.language_config import read_transformer_config
from emu3_jax.models.language.lora import LoraConfig

STORED = GOLDEN / "post_training" / "lora" / "adapter"
MODEL = read_transformer_config(GOLDEN / "post_training" / "sft")


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(STORED, tmp_path / "adapter")
    return tmp_path / "adapter"


def _tensors(folder, change):
    file = folder / peft.WEIGHTS_FILE
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file(change(tensors), file)


def _settings(folder, **changes):
    file = folder / ADAPTER_CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(use_dora=True), "use_dora is True, expected False"),
        (dict(peft_type="IA3"), "peft_type is 'IA3', expected 'LORA'"),
        (dict(rank_pattern={"q_proj": 8}), "rank_pattern is {'q_proj': 8}, expected {}"),
        (dict(modules_to_save=["lm_head"]), r"modules_to_save is \['lm_head'\], expected None"),
        (dict(r=None), "r is None, expected a whole number above zero"),
        (dict(lora_alpha="8"), "lora_alpha is '8', expected a number above zero"),
    ],
)
def test_settings_that_would_mean_something_else(folder, changes, message):
    _settings(folder, **changes)
    with pytest.raises(ValueError, match=f"adapter_config.json: {message}"):
        peft.load(folder, MODEL)


def test_another_rank_than_it_says(folder):
    _settings(folder, r=8)
    with pytest.raises(ValueError, match=r"does not fit rank 8 .* has shape \[4, 48\], expected"):
        peft.load(folder, MODEL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hidden_size=96), r"q_proj.lora_A.weight has shape \[4, 48\], expected \[4, 96\]"),
        (dict(num_layers=3), "layers.2.self_attn.q_proj.lora_A.weight is missing"),
        (dict(num_layers=1), "layers.1.mlp.down_proj.lora_A.weight is unexpected"),
    ],
)
def test_a_base_of_other_sizes(folder, changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        peft.load(folder, dataclasses.replace(MODEL, **changes))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_a_half_of_a_pair(folder):
    def without(tensors):
        return {n: array for n, array in tensors.items() if "1.mlp.up_proj.lora_B" not in n}

    _tensors(folder, without)
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj.lora_B.weight is missing$"):
        peft.load(folder, MODEL)


def test_no_tensors(folder):
    _tensors(folder, lambda tensors: {})
    with pytest.raises(ValueError, match="it has no tensors"):
        peft.load(folder, MODEL)


class _Harmful:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def test_a_pickle_is_refused_and_not_run(folder):
    (folder / peft.WEIGHTS_FILE).unlink()
    (folder / peft.PICKLE_FILE).write_bytes(pickle.dumps(_Harmful()))
    with pytest.raises(ValueError, match=r"adapter_model.bin, a pickle, which may run any code"):
        peft.load(folder, MODEL)
    (folder / peft.WEIGHTS_FILE).write_bytes(pickle.dumps(_Harmful()))
    with pytest.raises(ValueError, match="adapter_model.safetensors cannot be read as safetensors"):
        peft.load(folder, MODEL)


def test_no_adapter(tmp_path):
    with pytest.raises(ValueError, match="adapter_config.json"):
        peft.load(tmp_path, MODEL)


@pytest.mark.parametrize("root", ["model.text_model.", "text_model.model."])
def test_names_of_a_base_in_the_hf_layout(folder, root):
    def renamed(tensors):
        old, new = f"{peft.PREFIX}model.", peft.PREFIX + root
        return {name.replace(old, new): array for name, array in tensors.items()}

    expected = peft.load(folder, MODEL).adapters["layers"]["gate"]["lora_a"]
    _tensors(folder, renamed)
    found = peft.load(folder, MODEL).adapters["layers"]["gate"]["lora_a"]
    np.testing.assert_array_equal(found, expected)


def test_an_adapter_of_the_output_matrix_has_no_padding_in_the_file(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(48, 3)), rng.normal(size=(3, MODEL.padded_vocab_size))
    b[:, MODEL.vocab_size :] = 0
    adapters = {"lm_head": {"lora_a": a.astype("f4"), "lora_b": b.astype("f4")}}
    config = LoraConfig(3, 6.0, targets=("lm_head",))
    peft.save(tmp_path, MODEL, config, adapters, {}, base_model="base", fingerprint="")
    stored = safetensors.numpy.load_file(tmp_path / peft.WEIGHTS_FILE)
    name = "base_model.model.lm_head.lora_{}.weight"
    assert stored[name.format("A")].shape == (3, 48)
    assert stored[name.format("B")].shape == (MODEL.vocab_size, 3)
    read = peft.load(tmp_path, MODEL)
    for leaf, array in adapters["lm_head"].items():
        np.testing.assert_array_equal(read.adapters["lm_head"][leaf], array)
    assert (read.rank, read.alpha, read.rslora) == (3, 6.0, False)


def test_adapters_of_the_output_matrix_and_of_layers_are_read_together(tmp_path):
    read = peft.load(STORED, MODEL)
    a, b = np.ones((48, 4), "f4"), np.ones((4, MODEL.padded_vocab_size), "f4")
    b[:, MODEL.vocab_size :] = 0
    adapters = read.adapters | {"lm_head": {"lora_a": a, "lora_b": b}}
    config = LoraConfig(read.rank, read.alpha, targets=("*",))
    peft.save(tmp_path, MODEL, config, adapters, {}, base_model="base", fingerprint="")
    found = peft.load(tmp_path, MODEL).adapters
    assert found.keys() == adapters.keys()
    np.testing.assert_array_equal(found["lm_head"]["lora_b"], b)
