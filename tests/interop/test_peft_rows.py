"""Vectors that are trained whole, in PEFT's files: what PEFT wrote, and what it would read."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from paths import GOLDEN

from emu3_jax.interop.formats.safetensors_io import ADAPTER_CONFIG_FILE
from emu3_jax.interop.language import language_model, peft
from emu3_jax.models.language import lora
from emu3_jax.models.language.lora import LoraConfig

STORED = GOLDEN / "peft_rows"
BASE = GOLDEN / "post_training" / "sft"
CONFIG = LoraConfig(2, 4.0, targets=("gate",), rows=(303, 308))


@pytest.fixture(scope="module")
def base():
    model, variables = language_model.load_module(BASE)
    return model, variables["params"]


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(STORED, tmp_path / "adapter")
    return tmp_path / "adapter"


def _settings(folder, tokens):
    file = folder / ADAPTER_CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {peft.TOKENS: tokens}))


def _adapters(stored, params):
    """All adapters: of a file that has one matrix alone, zeros for the other."""
    zeros = jax.tree.map(lambda x: x.unbox(), lora.row_adapters(CONFIG, 48),
                         is_leaf=lambda x: hasattr(x, "unbox"))  # fmt: skip
    rows = lora.row_differences(CONFIG, params, stored.vectors)
    return lora.beside(zeros, lora.beside(stored.adapters, rows))


def test_logits_of_peft(base):
    model, params = base
    stored = peft.load(STORED, model.config)
    assert (stored.rank, stored.alpha, stored.rows) == (2, 4.0, CONFIG.rows)
    with np.load(STORED / "logits.npz") as figures:
        ids, expected = figures["ids"], figures["logits"]
    merged = lora.merged(CONFIG, params, _adapters(stored, params))
    found = model.apply({"params": merged}, ids)
    assert np.abs(found - expected).max() < 3e-4
    with lora.adapting(CONFIG):
        weights = lora.joined(CONFIG, params, _adapters(stored, params))
        assert np.abs(model.apply({"params": weights}, ids) - expected).max() < 3e-4
    assert np.abs(model.apply({"params": params}, ids) - expected).max() > 1


def test_what_is_written_is_what_peft_wrote(base, tmp_path):
    model, params = base
    adapters = _adapters(peft.load(STORED, model.config), params)
    vectors = lora.row_vectors(CONFIG, lora.merged(CONFIG, params, adapters))
    settings = dict(base_model="../sft", fingerprint="abc")
    peft.save(tmp_path, model.config, CONFIG, adapters, vectors, **settings)
    ours, theirs = (
        safetensors.numpy.load_file(folder / peft.WEIGHTS_FILE) for folder in (tmp_path, STORED)
    )
    assert ours.keys() == theirs.keys()
    stated = json.loads((STORED / ADAPTER_CONFIG_FILE).read_text())
    order = np.argsort(stated[peft.TOKENS]["lm_head"])
    for name, array in theirs.items():
        expected = array[order] if peft.TOKENS_TENSOR in name else array
        # Base plus difference: rounded twice.
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=5e-7)
    written = json.loads((tmp_path / ADAPTER_CONFIG_FILE).read_text())
    assert written[peft.TOKENS] == dict.fromkeys(stated[peft.TOKENS], list(range(303, 308)))
    assert written["target_modules"] == ["gate_proj"]
    again = peft.load(tmp_path, model.config)
    assert again.rows == CONFIG.rows and again.base == "abc"


def test_vectors_alone(base, tmp_path):
    model, params = base
    config, settings = dataclasses.replace(CONFIG, targets=()), dict(base_model="", fingerprint="")
    vectors = lora.row_vectors(config, params)
    peft.save(tmp_path, model.config, config, {}, vectors, **settings)
    stated = json.loads((tmp_path / ADAPTER_CONFIG_FILE).read_text())
    assert stated["target_modules"] == "dummy-target-modules"
    read = peft.load(tmp_path, model.config)
    assert not read.adapters and read.rows == (303, 308)
    differences = lora.row_differences(config, params, read.vectors)
    assert not any(np.any(x) for x in jax.tree.leaves(differences))


def test_the_embedding_alone(base, folder):
    """PEFT's short form, a list, is for the embedding."""
    model, params = base
    stated = json.loads((folder / ADAPTER_CONFIG_FILE).read_text())[peft.TOKENS]
    _settings(folder, stated["embed_tokens"])
    file = folder / peft.WEIGHTS_FILE
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file({n: a for n, a in tensors.items() if "lm_head" not in n}, file)
    adapters = _adapters(peft.load(folder, model.config), params)
    assert np.any(adapters["embed"]["rows"]) and not np.any(adapters["lm_head"]["rows"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            [1, 2, 4],
            "of embed_tokens are 3 ids from 1 to 4; expected a range without gaps or "
            "repeats, below 575",
        ),
        ([1, 2, 2], "of embed_tokens are 3 ids from 1 to 2; expected a range"),
        ([574, 575], "of embed_tokens are 2 ids from 574 to 575; expected a range"),
        ({"lm_head": "5"}, "of lm_head is not a list of ids"),
        ({"wte": [5]}, "is for wte, expected ids of embed_tokens and lm_head"),
        (
            {"embed_tokens": [1, 2], "lm_head": [2, 3]},
            "are other ids for embed_tokens than for lm_",
        ),
    ],
)
def test_ids_that_are_no_range(base, folder, tokens, message):
    _settings(folder, tokens)
    with pytest.raises(ValueError, match=f"adapter_config.json: {peft.TOKENS} {message}"):
        peft.load(folder, base[0].config)


def test_vectors_of_another_number(base, folder):
    _settings(folder, {"embed_tokens": [5, 6], "lm_head": [5, 6]})
    with pytest.raises(ValueError, match=r"trainable_tokens_delta has shape \[5, 48\], expected"):
        peft.load(folder, base[0].config)


def test_vectors_that_the_settings_do_not_name(base, folder):
    _settings(folder, None)
    with pytest.raises(ValueError, match="trainable_tokens_delta is unexpected"):
        peft.load(folder, base[0].config)
