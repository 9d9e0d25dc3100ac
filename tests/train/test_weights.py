"""Models of run directories, loaded directly onto a mesh."""

import collections
import dataclasses
import gc

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_models

from emu3_jax import sharding, vocab
from emu3_jax.config import ConfigError
from emu3_jax.data.codec import vision_codec
from emu3_jax.interop import bundle
from emu3_jax.interop.vision import tokenizer_files as vision_files
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.sequence import Grammar
from emu3_jax.sharding import MeshConfig
from emu3_jax.text import ByteTokenizer
from emu3_jax.train import weights


def _language_model(words):
    model = Transformer(TransformerConfig(words.size, 32, 48, 2, 4, 2, 8))
    return model, tiny_models.random_weights(model, np.zeros((1, 4), np.int32), 0.5)


@pytest.fixture(scope="module", params=[False, True], ids=["weights", "averaged weights"])
def language_run(request, tmp_path_factory):
    """(directory, the weights to evaluate); the trained ones differ where averages are kept."""
    path, words = tmp_path_factory.mktemp("run"), vocab.small(256, 32)
    model, variables = _language_model(words)
    config = dataclasses.replace(model.config, dtype="bfloat16")
    ema = variables["params"] if request.param else None
    trained = jax.tree.map(lambda x: x + request.param, variables)
    bundle.save_language(path, bundle.Language(words, Grammar(words, ByteTokenizer())))
    return tiny_models.save_language_run(path, config, trained, ema), variables["params"]


@pytest.fixture(scope="module")
def vision_run(tmp_path_factory):
    """(directory, its variables); what only training needs lies beside them."""
    folder = tmp_path_factory.mktemp("vision")
    tiny_models.save_vision_tokenizer(folder / "weights")
    config, variables = vision_files.load(folder / "weights")
    params = variables["params"] | {"discriminator": {"kernel": np.zeros((64, 64), np.float32)}}
    saved = variables | {"params": params, "perceptual": {"vgg": np.zeros((64, 64), np.float32)}}
    return tiny_models.save_vision_run(folder / "run", config, saved), variables


class Accounts:
    """What devices hold beyond what they held before, looked at whenever something is put there."""

    def __init__(self, monkeypatch):
        gc.collect()
        self._before, self.most, self.dtypes = _bytes_by_device(), collections.Counter(), set()
        for name in ("device_put", "make_array_from_single_device_arrays"):
            monkeypatch.setattr(jax, name, self._watched(getattr(jax, name)))

    def _watched(self, function):
        def watched(*arguments, **keywords):
            result = function(*arguments, **keywords)
            self.dtypes |= {leaf.dtype.name for leaf in jax.tree.leaves(result)}
            held = _bytes_by_device()
            held.subtract(self._before)
            self.most |= held
            return result

        return watched


def _bytes_by_device():
    buffers = {}
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            buffers[shard.device, shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    held = collections.Counter()
    for (device, _), size in buffers.items():
        held[device] += size
    return held


def _assert_accounts(accounts, variables, mesh):
    """A device holds its shards, and beside them at most one tensor."""
    leaves = jax.tree.leaves(variables)
    largest = max(leaf.nbytes for leaf in leaves)
    whole = sum(leaf.nbytes for leaf in leaves)
    for device in mesh.devices.flat:
        shards = sum(
            shard.data.nbytes
            for leaf in leaves
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert 0 < shards < 0.6 * whole
        assert shards <= accounts.most[device] <= shards + largest < whole


@pytest.mark.parametrize(
    "mesh, dtype", [(MeshConfig(data=2, fsdp=2, tensor=2), None), (MeshConfig(fsdp=8), "bfloat16")]
)
def test_a_device_never_holds_more_than_its_shards_of_a_language_model(
    language_run, monkeypatch, mesh, dtype
):
    path, expected = language_run
    mesh = sharding.make_mesh(mesh)
    accounts = Accounts(monkeypatch)
    found, label = weights.load_language_model(path, None, mesh, dtype)
    monkeypatch.undo()
    _assert_accounts(accounts, found.variables, mesh)
    assert accounts.dtypes == {dtype or "float32"}  # brought to it before it is on a device
    assert label == f"{path} at step {tiny_models.STEP}"
    abstract = jax.eval_shape(found.model.init, jax.random.key(0), np.zeros((1, 1), np.int32))
    wanted = sharding.state_shardings(abstract, mesh)["params"]
    for array, exact, layout in zip(
        *map(jax.tree.leaves, (found.variables["params"], expected, wanted)), strict=True
    ):
        assert array.sharding == layout
        np.testing.assert_array_equal(array, exact.astype(dtype or "float32"))
    with jax.set_mesh(mesh):
        logits = jax.jit(found.model.apply)(found.variables, np.zeros((8, 8), np.int32))
    assert np.isfinite(logits).all()


@pytest.mark.slow
def test_a_device_never_holds_more_than_its_shards_of_a_vision_tokenizer(vision_run, monkeypatch):
    path, expected = vision_run
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2))
    with monkeypatch.context() as patch:
        accounts = Accounts(patch)
        module, variables = weights.load_vision_tokenizer(path, tiny_models.STEP, mesh)
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    assert all(held <= read for held in accounts.most.values())  # nothing that training alone needs
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, nn.unbox(expected))
    assert any(not x.is_fully_replicated for x in jax.tree.leaves(variables))
    images = [np.full((8, 8, 3), 40 * i, np.uint8) for i in range(3)]
    alone = vision_codec.encode((module, expected), images, 2)
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(vision_codec.encode((module, variables), images, 2), alone)
    here = weights.load_vision_tokenizer(path)
    np.testing.assert_array_equal(vision_codec.encode(here, images, 2), alone)


def test_a_run_keeps_its_own_types_unless_another_is_asked_for(language_run):
    own, _ = weights.load_language_model(language_run[0])
    assert (own.model.config.dtype, own.model.config.param_dtype) == ("bfloat16", "float32")
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(own.variables)} == {1}
    changed, _ = weights.load_language_model(language_run[0], dtype="float16")
    assert changed.model.config.dtype == changed.model.config.param_dtype == "float16"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(changed.variables)} == {"float16"}


def test_a_run_of_another_task_and_a_mesh_that_does_not_divide(language_run, vision_run, tmp_path):
    with pytest.raises(ValueError, match="task pretrain, which trains a language model; exp"):
        weights.load_vision_tokenizer(language_run[0])
    mesh = sharding.make_mesh(MeshConfig(tensor=8))
    with pytest.raises(ValueError, match="kv_heads.*split over mesh axis tensor=8"):
        weights.load_language_model(language_run[0], mesh=mesh)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="is not a run directory"):
        weights.load_vision_tokenizer(tmp_path)


def test_the_config_of_a_vision_tokenizer_is_known_without_its_weights(
    vision_run, language_run, monkeypatch
):
    with pytest.raises(ValueError, match="expected a vision tokenizer"):
        weights.vision_config(language_run[0])
    monkeypatch.setattr(weights, "load_vision_tokenizer", None)
    for path in (vision_run[0], vision_run[0].parent / "weights"):
        assert weights.vision_config(path) == vision_files.load(path.parent / "weights")[0]
