"""Initial weights of a fresh run: text models, codebooks, other vision tokenizers."""

import dataclasses
import json

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_tasks import pretrain_task, vision_task
from token_records import GRAMMAR, text, write_dataset

from emu3_jax import sharding
from emu3_jax.config import ConfigError
from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup
from emu3_jax.data.tokens.mixture import MixtureEntry
from emu3_jax.data.tokens.pipeline import DataConfig
from emu3_jax.data.tokens.records import Record
from emu3_jax.interop.formats.safetensors_io import WEIGHTS_FILE as FILE
from emu3_jax.interop.language import language_model
from emu3_jax.interop.vision import movqgan, tokenizer_files
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.sharding import MeshConfig
from emu3_jax.train.tasks.language.transformer_start import TransformerStart, project_codebook
from emu3_jax.train.tasks.vision.vision_start import VisionTokenizerStart

KEY = jax.random.key(0)
MODEL = TransformerConfig(GRAMMAR.vocab.size, 16, 32, 2, 4, 2, 4, vocab_multiple=64, dropout=0.0)
TEXT_IDS = 40


def _pretrain(dataset="unused", **start):
    data = DataConfig((MixtureEntry(str(dataset), "text"),), batch_size=8, sequence_length=32)
    return pretrain_task(MODEL, data, start=TransformerStart(**start))


def _laid_out(task, mesh):
    """The task's fresh variables on a mesh, and the same plain."""
    boxed = task.init(KEY)
    return jax.device_put(nn.unbox(boxed), sharding.state_shardings(boxed, mesh)), nn.unbox(boxed)


# ------------------------------------------------------------------------------- transformer


@pytest.fixture
def text_model(tmp_path):
    """A text model of the same layers, another vocabulary and shared matrices, as files."""
    config = dataclasses.replace(MODEL, vocab_size=60)
    params = nn.unbox(Transformer(config).init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32)))
    params = params["params"]
    params["lm_head"]["kernel"] = params["embed"]["embedding"].T
    language_model.save(tmp_path, config, params)
    return tmp_path, config, params


def _rewrite_config(path, **changes):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _rewrite_as_whole_hf_model(path):
    """With the names and the sections of an -hf model, and something of its other half."""
    tensors = {f"text_model.{name}": array for name, array in load_file(path / FILE).items()}
    save_file(tensors | {"vqmodel.quantize": np.zeros(3, np.float32)}, path / FILE)
    section = json.loads((path / "config.json").read_text()) | {"model_type": "emu3_text_model"}
    (path / "config.json").write_text(json.dumps({"model_type": "emu3", "text_config": section}))


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=1), MeshConfig(fsdp=4, tensor=2)])
@pytest.mark.parametrize("model_type", ["llama", "Emu3", "emu3"])
def test_the_layers_and_the_shared_ids_come_from_a_text_model(text_model, mesh, model_type):
    path, old_config, old = text_model
    _rewrite_config(path, model_type=model_type)
    if model_type == "emu3":
        _rewrite_as_whole_hf_model(path)
    mesh = sharding.make_mesh(mesh, jax.devices()[: mesh.fsdp * mesh.tensor])
    task = _pretrain(transformer=str(path), shared_ids=TEXT_IDS)
    with jax.set_mesh(mesh):
        laid_out, fresh = _laid_out(task, mesh)
        start = task.initial_weights()
        params = jax.device_get(start(laid_out)["params"])
    tokens = np.random.default_rng(0).integers(0, TEXT_IDS, (2, 8))
    found = Transformer(MODEL).apply({"params": params}, tokens)
    expected = Transformer(old_config).apply({"params": old}, tokens)
    np.testing.assert_array_equal(found[..., :TEXT_IDS], expected[..., :TEXT_IDS])
    for found, before in (
        (params["embed"]["embedding"], fresh["params"]["embed"]["embedding"]),
        (params["lm_head"]["kernel"].T, fresh["params"]["lm_head"]["kernel"].T),
    ):
        np.testing.assert_array_equal(found[TEXT_IDS:], before[TEXT_IDS:])


def test_tied_matrices_without_a_head(text_model):
    path, _, old = text_model
    stored = language_model.Tensors(path)
    kept = {name: stored.read(name) for name in stored.shapes() if name != "lm_head.weight"}
    save_file(kept, path / FILE)
    _rewrite_config(path, model_type="llama", tie_word_embeddings=True)
    task = _pretrain(transformer=str(path), shared_ids=TEXT_IDS)
    start = task.initial_weights()
    mesh = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    params = start(_laid_out(task, mesh)[0])["params"]
    head = np.asarray(params["lm_head"]["kernel"])[:, :TEXT_IDS]
    np.testing.assert_array_equal(head, old["embed"]["embedding"][:TEXT_IDS].T)


@pytest.mark.parametrize(
    ("changes", "shared_ids", "message"),
    [
        (dict(model_type="gpt2"), 0, "model_type is 'gpt2', expected one of Emu3, emu3"),
        (dict(attention_bias=True, hidden_size=8), 0, "attention_bias is True.*hidden_size is 8,"),
        (dict(rope_parameters=dict(rope_type="llama3")), 0, "rope_scaling is .*llama3"),
        ({}, 61, "it has 60 token ids and the run .* so 61 cannot be shared"),
        (dict(vocab_size=70), 0, r"lm_head.weight has shape \[60, 16\], expected \[70, 16\]"),
    ],
)
def test_text_models_that_do_not_fit(text_model, changes, shared_ids, message):
    _rewrite_config(text_model[0], **({"model_type": "llama"} | changes))
    with pytest.raises(ValueError, match=message):
        _pretrain(transformer=str(text_model[0]), shared_ids=shared_ids).initial_weights()


def test_vision_tokens_begin_as_a_linear_image_of_their_codebook_entries():
    codebook = np.random.default_rng(0).normal(size=(GRAMMAR.vocab.codebook_size, 3))
    codebook[1] = codebook[0] + 1e-3
    plain = nn.unbox(_pretrain().init(KEY))["params"]
    start = GRAMMAR.vocab.visual_start
    params = project_codebook(plain, codebook.astype(np.float32), start, KEY)
    vision = np.arange(start, start + len(codebook))
    for found, before in (
        (params["embed"]["embedding"], plain["embed"]["embedding"]),
        (params["lm_head"]["kernel"].T, plain["lm_head"]["kernel"].T),
    ):
        rows = np.asarray(found)[vision]
        assert np.linalg.matrix_rank(rows) == 3
        assert np.std(rows) == pytest.approx(0.02, rel=0.5)
        assert np.linalg.norm(rows[1] - rows[0]) < 1e-2 * np.linalg.norm(rows[2] - rows[0])
        rest = np.delete(np.arange(len(found)), vision)
        np.testing.assert_array_equal(np.asarray(found)[rest], np.asarray(before)[rest])
    assert params["layers"] is plain["layers"]


def test_settings_that_do_not_go_together(tmp_path):
    folder = write_dataset(tmp_path / "tokens", [Record("t", "s", "text", (text("a"),))])
    nano = "assets/vision_tokenizer_nano"
    with pytest.raises(ValueError, match="start.codebook='assets/vision_tokenizer_nano' is the"):
        _pretrain(folder, codebook=nano).initial_weights()
    with pytest.raises(ConfigError, match="start.shared_ids goes with start.transformer"):
        _pretrain(shared_ids=3).initial_weights()
    both = dict(transformer="any", shared_ids=MODEL.vocab_size, codebook=nano)
    with pytest.raises(ConfigError, match="both set the vectors of the vision tokens"):
        _pretrain(**both).initial_weights()
    assert _pretrain().initial_weights() is None


# -------------------------------------------------------------------------- vision tokenizer

VISION = VisionTokenizerConfig(
    codebook_size=96, ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4, attn_resolutions=(1,)
)
# Without layers that halve time, and with residual ones that do nothing, it is a MoVQGAN.
STILLS = dataclasses.replace(VISION, temporal_downsample_factor=1, codebook_size=64)


@pytest.fixture(scope="module")
def stills():
    """A MoVQGAN: variables whose layers in time are the identity."""
    shapes = jax.eval_shape(VisionTokenizer(STILLS).init, KEY, jnp.zeros((1, 16, 16, 3)))
    rng = np.random.default_rng(0)
    flat = {}
    for path, leaf in flax.traverse_util.flatten_dict(nn.unbox(shapes)).items():
        flat[path] = rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        if path[-1] in ("scale", "var"):
            flat[path] = abs(flat[path]) + 0.5
        if path[0] == "params" and path[2].startswith("time_") and path[3] == "conv2":
            flat[path][:] = 0
        if path[1] in movqgan.QUANT_CONVS and path[-1] == "kernel":
            flat[path][:-1] = 0
    return flax.traverse_util.unflatten_dict(flat)


@pytest.fixture
def movqgan_file(stills, tmp_path):
    tensors = {"loss.discriminator": np.zeros(3, np.float32)}
    flat = flax.traverse_util.flatten_dict(stills)
    for pair in tokenizer_files.key_map(STILLS):
        if any(part.startswith("time_") for part in pair.path):
            continue
        array = pair.to_file(flat[pair.path])
        if pair.path[1] in movqgan.QUANT_CONVS and array.ndim == 5:
            array = array[:, :, -1]
        tensors[pair.name.replace("quant_conv.conv.", "quant_conv.")] = np.ascontiguousarray(array)
    save_file(tensors, tmp_path / "movqgan.safetensors")
    return tmp_path / "movqgan.safetensors"


def test_a_movqgan_draws_the_same_images(stills, movqgan_file):
    loaded = movqgan.load(movqgan_file, VISION)
    pixels = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 16, 24, 3)), jnp.float32)
    expected = jax.jit(VisionTokenizer(STILLS).apply)(stills, pixels)
    model = VisionTokenizer(VISION)
    # Without the pixels the decoder is not compiled.
    read = jax.jit(lambda v, x: model.apply(v, x)._replace(pixels=None))
    found = read(loaded, pixels)
    # Passing far up the SiLU rounds at 24 * 6e-8, a few times over.
    np.testing.assert_allclose(found.latents, expected.latents, atol=2e-5)
    # New entries stand beside old ones; one between two old ones may now be the nearest.
    assert np.mean(found.codes % STILLS.codebook_size != expected.codes) < 0.02
    # Entries up to 1.2 bend by SHRINK * x² / 2 = 0.3 % at the last SiLU, and copies moved by 1 %.
    same = jax.jit(lambda v, x: model.apply(v, x, method="decode"))(loaded, expected.codes)
    error = np.abs(same - expected.pixels).mean()
    assert error < 0.01 * np.abs(expected.pixels - expected.pixels.mean()).mean()
    clip = jnp.repeat(pixels[:, None], 8, axis=1)
    np.testing.assert_allclose(read(loaded, clip).latents[:, 1], expected.latents[:, 0], atol=2e-5)


def test_the_codebook_grows_beside_its_entries():
    codebook = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    grown = movqgan.grown_codebook(codebook, 25)
    np.testing.assert_array_equal(grown[:10], codebook)
    offset = grown[10:] - codebook[np.arange(15) % 10]
    assert 0 < np.abs(offset).min() and np.abs(offset).max() < 0.06
    assert movqgan.grown_codebook(codebook, 10).shape == (10, 4)


def test_a_movqgan_that_does_not_fit(movqgan_file):
    wider = dataclasses.replace(VISION, ch=16)
    with pytest.raises(ValueError, match=r"encoder.conv_in.weight has shape \[8, 3, 3, 3\]"):
        movqgan.load(movqgan_file, wider)
    fewer = dataclasses.replace(VISION, codebook_size=32)
    with pytest.raises(ValueError, match=r"quantize.embedding.weight has shape \[64, 4\], exp"):
        movqgan.load(movqgan_file, fewer)
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        movqgan.load(__file__, VISION)


def _vision_task(model=VISION, size=16, **start):
    data = PixelConfig("unused", groups=(PixelGroup("clips", "clips", size, 1, 4),))
    return vision_task(model, data, start=VisionTokenizerStart(**start))


def test_a_vision_tokenizer_begins_from_weights(stills, movqgan_file, tmp_path):
    tokenizer_files.save(tmp_path / "stills", STILLS, stills)
    path = str(tmp_path / "stills")
    task = _vision_task(STILLS, weights=path)
    variables = nn.unbox(jax.jit(task.init)(KEY))
    found = task.initial_weights()(variables)
    jax.tree.map(np.testing.assert_array_equal, found, {**variables, **stills})
    started = _vision_task(movqgan=str(movqgan_file)).initial_weights()
    fresh = nn.unbox(jax.jit(_vision_task().init)(KEY))
    assert jax.tree.map(np.shape, started(fresh)) == jax.tree.map(np.shape, fresh)
    # At another resolution, and computed otherwise, it is the same tokenizer.
    other = dataclasses.replace(STILLS, remat=True, dtype="bfloat16")
    other = _vision_task(other, size=24, weights=path)
    again = other.initial_weights()(variables)
    jax.tree.map(np.testing.assert_array_equal, again, found)
    batch = {"clips": jax.ShapeDtypeStruct((1, 4, 24, 24, 3), jnp.float32)}
    params = again.pop("params")
    loss = jax.eval_shape(lambda p, s, b: other.loss(p, s, b, KEY, 0).total, params, again, batch)
    assert loss.shape == ()
    with pytest.raises(ConfigError, match="start.weights has the config"):
        _vision_task(weights=path).initial_weights()
    with pytest.raises(ConfigError, match="exclude each other"):
        _vision_task(weights="a", movqgan="b").initial_weights()
