"""Adapters against PEFT; the folder is that of GOLDEN_POST_TRAINING.

Shapes and counts are those of the files, so the same tests read other figures.
"""

import json
import os
import pathlib
import re

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy
from paths import GOLDEN

from emu3_jax.interop.formats.safetensors_io import ADAPTER_CONFIG_FILE
from emu3_jax.interop.language import language_model, peft
from emu3_jax.models.language import lora
from emu3_jax.models.language.cross_entropy import chunked_cross_entropy

FOLDER = pathlib.Path(os.environ.get("GOLDEN_POST_TRAINING", GOLDEN / "post_training"))
ABOUT = json.loads((FOLDER / "lora" / "lora.json").read_text(encoding="utf-8"))["adapters"]
LOGITS, WEIGHTS, LOSS, NORMS = 3e-4, 1e-6, 1e-5, 1e-5


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "lora" / "lora.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def base():
    model, variables = language_model.load_module(FOLDER / "sft")
    return model, variables["params"]


@pytest.fixture(scope="module", params=sorted(ABOUT))
def adapter(request, base):
    """(its name, its config, its arrays)"""
    read = peft.load(FOLDER / "lora" / request.param, base[0].config)
    config = lora.LoraConfig(read.rank, read.alpha, read.rslora)
    return request.param, config, read.adapters


def _away(found, expected):
    return np.abs(np.asarray(found) - expected).max()


def test_the_base_is_that_of_the_figures(base, golden):
    model, params = base
    assert _away(model.apply({"params": params}, golden["ids"]), golden["base_logits"]) < LOGITS


def test_settings_and_scale(adapter):
    name, config, _ = adapter
    about = ABOUT[name]
    stated = (about["r"], about["lora_alpha"], about["use_rslora"])
    assert (config.rank, config.alpha, config.rslora) == stated
    assert config.scale == pytest.approx(about["scaling"], rel=1e-12)


def test_logits_beside_the_base(adapter, base, golden):
    (name, config, adapters), (model, params) = adapter, base
    with lora.adapting(config):
        weights = lora.joined(config, params, adapters)
        logits = model.apply({"params": weights}, golden["ids"])
    assert _away(logits, golden[f"{name}_logits"]) < LOGITS
    assert _away(logits, golden["base_logits"]) > 1


def test_merged_weights_and_their_logits(adapter, base, golden):
    (name, config, adapters), (model, params) = adapter, base
    weights = lora.merged(config, params, adapters)
    logits = model.apply({"params": weights}, golden["ids"])
    assert _away(logits, golden[f"{name}_merged_logits"]) < LOGITS
    written = dict(
        language_model.file_tensors(
            model.config, weights, "float32", language_model.key_map(model.config)
        )
    )
    compared = 0
    for key, expected in golden.items():
        found = re.fullmatch(rf"{name}_merged_([a-z]+_proj)(\d+)", key)
        if found:
            part, layer = found.groups()
            (tensor,) = [n for n in written if f"layers.{layer}." in n and f".{part}." in n]
            assert _away(written[tensor], expected) < WEIGHTS
            compared += 1
    assert compared


def test_loss_and_the_gradient_of_every_adapter(adapter, base, golden):
    (name, config, adapters), (model, params) = adapter, base
    ids, about = golden["ids"], ABOUT[name]["training"]

    def loss(adapters):
        weights = lora.joined(config, params, adapters)
        with lora.adapting(config):
            hidden = model.apply({"params": weights}, ids, method="hidden")
        found = chunked_cross_entropy(
            hidden[:, :-1],
            weights["lm_head"]["kernel"],
            ids[:, 1:],
            np.ones(ids[:, 1:].shape, np.float32),
            vocab_size=model.config.vocab_size,
        )
        return found.total / found.weight

    value, gradient = jax.jit(jax.value_and_grad(loss))(adapters)
    assert float(value) == pytest.approx(about["loss"], abs=LOSS)
    flat = flax.traverse_util.flatten_dict(gradient)
    norms = {
        pair.name: float(np.linalg.norm(flat[pair.path][pair.layer]))
        for pair in peft.adapter_pairs(model.config, config.rank)
        if pair.path in flat
    }
    assert norms == pytest.approx(about["grad_norms"], rel=NORMS)
    assert len(norms) == about["trainable_tensors"]
    assert sum(x.size for x in flat.values()) == about["trainable_numbers"]
    assert np.linalg.norm(list(norms.values())) == pytest.approx(about["grad_norm"], rel=NORMS)


def test_what_is_written_is_what_peft_wrote(adapter, base, tmp_path):
    name, config, adapters = adapter
    peft.save(
        tmp_path, base[0].config, config, adapters, {}, base_model="../../sft", fingerprint="abc"
    )
    theirs = FOLDER / "lora" / name
    ours, tensors = (
        safetensors.numpy.load_file(folder / peft.WEIGHTS_FILE) for folder in (tmp_path, theirs)
    )
    assert ours.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(ours[key], array)
    stated, expected = (
        json.loads((folder / ADAPTER_CONFIG_FILE).read_text()) for folder in (tmp_path, theirs)
    )
    same = set(stated) - {"lora_dropout"}
    assert {key: stated[key] for key in same} == {
        key: sorted(expected[key]) if key == "target_modules" else expected[key] for key in same
    }
    assert peft.load(tmp_path, base[0].config).base == "abc"
