"""Vision tokenizer weights in the released layout: read, written, and refused with reasons."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import vision_tokenizer_tensors
from paths import GOLDEN

from emu3_jax import sharding
from emu3_jax.interop import hf_export
from emu3_jax.interop.formats.safetensors_io import CONFIG_FILE, SAME, WEIGHTS_FILE, write_tensors
from emu3_jax.interop.vision import movqgan
from emu3_jax.interop.vision import tokenizer_files as interop
from emu3_jax.models.vision.tokenizer import VisionTokenizerConfig

RELEASED = GOLDEN / "vision_tokenizer"
TINY = VisionTokenizerConfig(
    codebook_size=64,
    ch=4,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(1,),
    norm_groups=4,
)


@pytest.fixture(scope="module")
def tiny():
    """Variables of the tiny config without running it: random numbers of the right shapes."""
    generator = np.random.default_rng(0)
    variables = {}
    for pair in interop.key_map(TINY):
        node = variables
        for part in pair.path[:-1]:
            node = node.setdefault(part, {})
        node[pair.path[-1]] = generator.normal(size=pair.shape).astype(np.float32)
    return variables


def test_round_trip_is_bit_identical(tmp_path):
    config, variables = interop.load(RELEASED)
    interop.save(tmp_path, config, variables)
    again_config, again = interop.load(tmp_path)
    assert again_config == config
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    old = safetensors.numpy.load_file(RELEASED / WEIGHTS_FILE)
    new = safetensors.numpy.load_file(tmp_path / WEIGHTS_FILE)
    assert set(new) == set(old)
    for name, array in old.items():
        # The counters are scalars: torch refuses a vector of one.
        assert new[name].shape == array.shape, name
        if not name.endswith(interop.COUNTER):
            np.testing.assert_array_equal(new[name], array)
            assert new[name].dtype == array.dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        CONFIG_FILE,
        WEIGHTS_FILE,
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_own_config_survives_and_half_the_digits_halve_the_file(tiny, tmp_path, dtype):
    interop.save(tmp_path / "full", TINY, tiny)
    interop.save(tmp_path / "half", TINY, tiny, dtype=dtype)
    stored = json.loads((tmp_path / "full" / CONFIG_FILE).read_text())
    assert stored["norm_groups"] == 4
    config, half = interop.load(tmp_path / "half")
    assert config == TINY
    rounded = jax.tree.map(lambda a: a.astype(dtype).astype(np.float32), tiny["params"])
    jax.tree.map(np.testing.assert_array_equal, half["params"], rounded)
    jax.tree.map(np.testing.assert_array_equal, half["batch_stats"], tiny["batch_stats"])


@pytest.mark.parametrize(
    "fields",
    [
        dict(quantizer="cosine", gradient="rotation"),
        dict(quantizer="lfq", codebook_size=16),
        dict(quantizer="fsq", codebook_size=16, fsq_levels=(2, 2, 2, 2)),
    ],
    ids=lambda fields: fields["quantizer"],
)
def test_other_quantizers_survive_and_the_released_one_is_not_named(tiny, tmp_path, fields):
    config = dataclasses.replace(TINY, **fields)
    params = dict(tiny["params"])
    if config.quantizer != "cosine":
        del params["quantize"]  # no table
    variables = tiny | {"params": params}
    interop.save(tmp_path / "other", config, variables, dtype="bfloat16")
    again, loaded = interop.load(tmp_path / "other")
    assert again == config
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    interop.save(tmp_path / "same", config, loaded, dtype=SAME)
    stored = json.loads((tmp_path / "same" / CONFIG_FILE).read_text())
    assert stored["torch_dtype"] == "float32"
    interop.save(tmp_path / "released", TINY, tiny)
    released = json.loads((tmp_path / "released" / CONFIG_FILE).read_text())
    assert set(stored) - set(released) == set(fields) - {"codebook_size"}


def test_what_needs_the_nearest_entry_of_a_table_says_so(tmp_path):
    config = dataclasses.replace(TINY, norm_groups=32, ch=32, quantizer="lfq", codebook_size=16)
    with pytest.raises(ValueError, match="quantizer='lfq' must be 'nearest' for transformers"):
        hf_export.vq_config(config)
    with pytest.raises(ValueError, match="model.quantizer must be 'nearest', found 'lfq'"):
        movqgan.load(tmp_path / "no such file", config)


def test_every_name_and_shape_of_the_released_checkpoint():
    pairs = interop.key_map(VisionTokenizerConfig())
    found = {pair.name: pair.file_shape for pair in pairs}
    trained = sum(int(np.prod(p.shape)) for p in pairs if p.path[0] == "params")
    assert trained == 270_740_287
    assert sum(int(np.prod(shape)) for shape in found.values()) + 8 == 270_740_359
    found |= dict.fromkeys(interop.counters(pairs), ())
    assert len(found) == 495 and found == vision_tokenizer_tensors.baai()


@pytest.mark.parametrize("attention, true", [([3], ()), ([1, 3], (1,)), (None, ()), ([], ())])
def test_levels_that_do_not_exist_have_no_attention(tmp_path, attention, true):
    stored = {"model_type": "Emu3VisionVQ", "ch": 32, "ch_mult": [1, 1]}
    file = tmp_path / CONFIG_FILE
    file.write_text(json.dumps(stored | {"attn_resolutions": attention}))
    assert interop.read_tokenizer_config(tmp_path).attn_resolutions == true


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_many_files_of_any_type_onto_the_host_and_onto_a_mesh(tmp_path, dtype):
    tensors = {
        name: array.astype(dtype) if array.dtype == np.float32 else array
        for name, array in safetensors.numpy.load_file(RELEASED / WEIGHTS_FILE).items()
    }
    write_tensors(tmp_path, tensors.items(), shard_bytes=500_000)
    shutil.copy(RELEASED / CONFIG_FILE, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    config, variables = interop.load(tmp_path)
    _, full = interop.load(RELEASED)
    expected = jax.tree.map(lambda a: a.astype(dtype).astype(np.float32), full)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2), jax.devices()[:2])
    _, on_mesh = interop.load_module(tmp_path, mesh)
    jax.tree.map(np.testing.assert_array_equal, on_mesh, expected)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(on_mesh))


def test_config_of_the_released_norms_has_no_extra_key(tmp_path):
    config, variables = interop.load(RELEASED)
    interop.save(tmp_path, config, variables)
    stored = json.loads((tmp_path / CONFIG_FILE).read_text())
    original = json.loads((RELEASED / CONFIG_FILE).read_text())
    assert set(stored) - set(original) == {"torch_dtype", "auto_map"}
    assert stored["auto_map"]["AutoModel"] == "modeling_emu3visionvq.Emu3VisionVQModel"
    assert {key: stored[key] for key in original} == original


def test_all_that_does_not_fit_is_listed(tmp_path):
    tensors = safetensors.numpy.load_file(RELEASED / WEIGHTS_FILE)
    del tensors["encoder.conv_in.bias"], tensors["quantize.embedding.weight"]
    tensors["teapot"] = np.zeros(1, np.float32)
    tensors["decoder.conv_out.bias"] = np.zeros(4, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / WEIGHTS_FILE)
    shutil.copy(RELEASED / CONFIG_FILE, tmp_path)
    with pytest.raises(ValueError) as caught:
        interop.load(tmp_path)
    message = str(caught.value)
    for words in (
        str(tmp_path),
        "encoder.conv_in.bias is missing",
        "quantize.embedding.weight is missing",
        "teapot is unexpected",
        "decoder.conv_out.bias has shape [4], expected [3]",
    ):
        assert words in message


def test_unreadable_directories(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        interop.load(tmp_path)
    (tmp_path / CONFIG_FILE).write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="Emu3VisionVQ"):
        interop.load(tmp_path)
    shutil.copy(RELEASED / CONFIG_FILE, tmp_path)
    content = (RELEASED / WEIGHTS_FILE).read_bytes()
    (tmp_path / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="model.safetensors"):
        interop.load(tmp_path)


def test_saving_what_does_not_fit_writes_nothing(tiny, tmp_path):
    target = tmp_path / "out"
    with pytest.raises(ValueError, match="do not fit the config"):
        interop.save(target, dataclasses.replace(TINY, codebook_size=65), tiny)
    with pytest.raises(ValueError, match="dtype must be one of"):
        interop.save(target, TINY, tiny, dtype="float64")
    assert not target.exists()
