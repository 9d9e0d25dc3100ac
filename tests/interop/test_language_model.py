"""The released layout: names, shapes, vocabulary padding, several files, one error for all."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from paths import GOLDEN

from emu3_jax import sharding
from emu3_jax.interop.formats import safetensors_io
from emu3_jax.interop.language import language_model
from emu3_jax.models.language.transformer import Transformer, released, unstack_layers
from emu3_jax.sharding import MeshConfig

PATH = GOLDEN / "language_model"


def _file(path):
    return safetensors.numpy.load_file(path / "model.safetensors")


def test_every_name_and_shape_of_the_released_checkpoint():
    shapes = {pair.name: pair.file_shape for pair in language_model.key_map(released())}
    expected = {
        "model.embed_tokens.weight": (184622, 4096),
        "model.norm.weight": (4096,),
        "lm_head.weight": (184622, 4096),
    }
    for i in range(32):
        expected |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (4096,),
                "self_attn.q_proj": (4096, 4096),
                "self_attn.k_proj": (1024, 4096),
                "self_attn.v_proj": (1024, 4096),
                "self_attn.o_proj": (4096, 4096),
                "post_attention_layernorm": (4096,),
                "mlp.gate_proj": (14336, 4096),
                "mlp.up_proj": (14336, 4096),
                "mlp.down_proj": (4096, 14336),
            }.items()
        }
    assert shapes == expected
    assert len(shapes) == 291
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 8_492_011_520


def test_save_is_the_inverse_of_load(tmp_path):
    config, params = language_model.load(PATH)
    language_model.save(tmp_path / "m", config, params, extra={"pad_token_id": 900})
    before, after = _file(PATH), _file(tmp_path / "m")
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    stored = json.loads((tmp_path / "m" / "config.json").read_text())
    original = json.loads((PATH / "config.json").read_text())
    shared = set(original) - {"max_position_embeddings", "bos_token_id", "eos_token_id"}
    shared -= {"initializer_range"}  # the golden model was drawn wider than the released one
    assert {key: stored[key] for key in shared} == {key: original[key] for key in shared}
    assert stored["auto_map"]["AutoModelForCausalLM"] == "modeling_emu3.Emu3ForCausalLM"
    assert language_model.read_transformer_config(tmp_path / "m") == config
    ids = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert ids == {"pad_token_id": 900}


def test_vocabulary_is_padded_with_zeros_and_cut_off_again(tmp_path):
    config, params = language_model.load(PATH)
    small = dataclasses.replace(config, vocab_size=1000, vocab_multiple=64)
    params["embed"]["embedding"] = params["embed"]["embedding"][:1024]
    language_model.save(tmp_path, small, params)
    assert _file(tmp_path)["lm_head.weight"].shape == (1000, 96)
    loaded, padded = language_model.load(tmp_path)
    assert loaded.padded_vocab_size == 1024
    np.testing.assert_array_equal(padded["lm_head"]["kernel"][:, 1000:], 0.0)
    np.testing.assert_array_equal(
        padded["embed"]["embedding"][:1000], params["embed"]["embedding"][:1000]
    )


def test_unstacked_layers_give_the_same_file(tmp_path):
    config, params = language_model.load(PATH)
    unstacked = jax.tree.map(np.asarray, unstack_layers(params))
    language_model.save(tmp_path, dataclasses.replace(config, scan_layers=False), unstacked)
    for name, array in _file(PATH).items():
        np.testing.assert_array_equal(_file(tmp_path)[name], array)


def test_bfloat16_and_a_head_dim_that_is_not_the_quotient(tmp_path):
    config, params = language_model.load(PATH)
    language_model.save(tmp_path / "low", config, params, dtype="bfloat16")
    low, low_params = language_model.load(tmp_path / "low", param_dtype="bfloat16")
    assert low.param_dtype == "bfloat16"
    kernel, right = low_params["lm_head"]["kernel"], params["lm_head"]["kernel"]
    assert kernel.dtype.name == "bfloat16"
    np.testing.assert_allclose(kernel.astype(np.float32), right, rtol=2**-8)

    wide = dataclasses.replace(config, head_dim=32, num_heads=3, num_kv_heads=1)
    shape = params["layers"]["attention"]["output"]["kernel"].shape
    assert shape == (3, 6, 16, 96)
    params["layers"]["attention"]["output"]["kernel"] = np.zeros((3, 3, 32, 96), np.float32)
    params["layers"]["attention"]["query"]["kernel"] = np.zeros((3, 96, 3, 32), np.float32)
    for name in ("key", "value"):
        params["layers"]["attention"][name]["kernel"] = np.zeros((3, 96, 1, 32), np.float32)
    language_model.save(tmp_path / "wide", wide, params)
    assert language_model.read_transformer_config(tmp_path / "wide") == wide
    narrow = dataclasses.replace(wide, hidden_size=64)
    with pytest.raises(ValueError, match=r"lm_head/kernel has shape \[96, 1024\], expected \[64,"):
        language_model.save(tmp_path / "no", narrow, params)


def test_several_files_with_an_index(tmp_path):
    tensors = _file(PATH)
    safetensors_io.write_tensors(tmp_path, tensors.items(), shard_bytes=200_000)
    shutil.copy(PATH / "config.json", tmp_path)
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    _, params = language_model.load(tmp_path)
    _, right = language_model.load(PATH)
    jax.tree.map(np.testing.assert_array_equal, params, right)
    assert not list(tmp_path.glob(".*"))


def test_files_of_an_earlier_model_are_removed(tmp_path):
    tensors = _file(PATH)
    for shard_bytes in (200_000, 400_000, 10**9):
        safetensors_io.write_tensors(tmp_path, tensors.items(), shard_bytes)
        files = {p.name for p in tmp_path.iterdir()}
        index = tmp_path / safetensors_io.INDEX_FILE
        if shard_bytes == 10**9:
            assert files == {safetensors_io.WEIGHTS_FILE}
        else:
            weight_map = json.loads(index.read_text())["weight_map"]
            assert files == {index.name, *weight_map.values()}


@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, {"type": "default"}])
def test_a_rotation_that_is_scaled_by_nothing(tmp_path, scaling):
    stored = json.loads((PATH / "config.json").read_text()) | {"rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert language_model.read_transformer_config(
        tmp_path
    ) == language_model.read_transformer_config(PATH)


def test_one_error_for_everything_that_does_not_fit(tmp_path):
    tensors = _file(PATH)
    del tensors["model.norm.weight"]
    tensors["model.layers.3.extra"] = np.zeros(2, np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:1000].copy()
    safetensors_io.write_tensors(tmp_path, tensors.items())
    shutil.copy(PATH / "config.json", tmp_path)
    with pytest.raises(ValueError) as caught:
        language_model.load(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "model.norm.weight is missing" in message
    assert "model.layers.3.extra is unexpected" in message
    assert "lm_head.weight has shape [1000, 96], expected [1024, 96]" in message


def test_what_old_conversions_keep_and_every_loader_computes_is_no_obstacle(tmp_path):
    tensors = safetensors_io.Tensors(PATH)
    stored = {name: tensors.read(name) for name in tensors.shapes()}
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    safetensors_io.write_tensors(tmp_path, stored.items())
    shutil.copy(PATH / "config.json", tmp_path)
    _, expected = language_model.load(PATH)
    _, params = language_model.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "gelu"}, "config.json: hidden_act is 'gelu', expected 'silu'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling is .*, expected None"),
        ({"attention_bias": True}, "config.json: attention_bias is True, expected False"),
        ({"mlp_bias": True}, "config.json: mlp_bias is True, expected False"),
        ({"num_key_value_heads": 4}, "config.json: model.num_heads=6 must be a multiple of"),
        ({"vocab_size": "many"}, "vocab_size is 'many', expected a number"),
    ],
)
def test_a_config_of_another_model_names_the_key(tmp_path, change, message):
    stored = json.loads((PATH / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=message):
        language_model.load(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="config.json cannot be read"):
        language_model.load(tmp_path)
    shutil.copy(PATH / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="model.safetensors cannot be read as safetensors"):
        language_model.load(tmp_path)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)], ids=["fsdp", "mixed"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_go_straight_onto_the_mesh(tmp_path, mesh, dtype):
    mesh = sharding.make_mesh(mesh)
    config, params = language_model.load(PATH)
    # 1,001 ids, padded to 1,024: no shard of the vocabulary ends where the file does.
    language_model.save(tmp_path, dataclasses.replace(config, vocab_size=1001), params)
    config, expected = language_model.load(tmp_path, param_dtype=dtype)
    _, params = language_model.load(tmp_path, param_dtype=dtype, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert not np.any(params["embed"]["embedding"][1001:])
    token = jax.ShapeDtypeStruct((1, 1), "int32")
    abstract = jax.eval_shape(Transformer(config).init, jax.random.key(0), token)["params"]
    layout = sharding.state_shardings(abstract, mesh)
    assert jax.tree.map(lambda x: x.sharding, params) == layout


def test_a_mesh_that_does_not_divide_the_model():
    with pytest.raises(ValueError, match="kv_heads.*=2 is split over mesh axis tensor=8"):
        language_model.load(PATH, mesh=sharding.make_mesh(MeshConfig(fsdp=1, tensor=8)))
