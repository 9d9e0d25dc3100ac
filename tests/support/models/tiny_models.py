"""Directories of tiny random models, for the tests of generation."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emu3_jax import vocab as vocab_lib
from emu3_jax.config import save_config, to_values
from emu3_jax.data import media
from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup
from emu3_jax.data.tokens.mixture import MixtureEntry
from emu3_jax.data.tokens.pipeline import DataConfig
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.interop import bundle as bundle_lib
from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.sequence import Grammar
from emu3_jax.text import ByteTokenizer
from emu3_jax.train.run.checkpoint import CheckpointConfig, Checkpoints
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.task import TrainState
from emu3_jax.train.tasks.language.pretrain import PretrainConfig
from emu3_jax.train.tasks.vision.vision_tokenizer import VisionTokenizerTrainConfig

LIMITS = media.PixelLimits(min_pixels=4 * 4, max_pixels=8 * 8, spatial_factor=2)
STEP = 7  # step of the checkpoint of `save_run`
GUIDED = Sampling(guidance=2.0, top_k=20, seed=4)


def random_weights(module, example, scale):
    """Normal weights without compiling an initialisation; vectors, such as norms, are near 1."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), example))
    return jax.tree.map(
        lambda leaf: (scale * rng.normal(size=leaf.shape) if len(leaf.shape) > 1 else
                      1 + 0.1 * rng.random(leaf.shape)).astype(np.float32),
        shapes,
    )  # fmt: skip


def save_vision_tokenizer(path, codebook_size=32):
    """Writes a vision tokenizer of spatial factor 2."""
    config = VisionTokenizerConfig(
        codebook_size=codebook_size, ch=4, ch_mult=(1, 1), num_res_blocks=1, norm_groups=2,
        attn_resolutions=(),
    )  # fmt: skip
    variables = random_weights(VisionTokenizer(config), jnp.zeros((1, 4, 4, 3)), 1.0)
    tokenizer_files.save(path, config, variables)


# Two layers, heads that share keys: all that the transformer does, in little.
TWO_LAYERS = dict(
    hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
)


def initial_bundle(codebook_size):
    """A language model of one layer, with the weights that training begins with, and bytes."""
    vocab = vocab_lib.small(256, codebook_size)
    config = TransformerConfig(vocab.size, 16, 24, 1, 2, 1, 8, vocab_multiple=64)
    model = Transformer(config)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    return bundle_lib.Bundle(model, variables, vocab, Grammar(vocab, ByteTokenizer()))


def language_model(vocab, hidden=16):
    """A transformer of one layer, and its weights."""
    model = Transformer(TransformerConfig(vocab.size, hidden, 24, 1, 2, 1, hidden // 2))
    return model, random_weights(model, jnp.zeros((1, 4), jnp.int32), 0.5)


def save_models(root):
    """Writes root/vision and root/language, a model with its fingerprint."""
    save_vision_tokenizer(root / "vision")
    fingerprint = vision_fingerprint(*tokenizer_files.load(root / "vision"))
    vocab = vocab_lib.small(256, 32)
    model, weights = language_model(vocab)
    bundle = bundle_lib.Bundle(
        model, weights, vocab, Grammar(vocab, ByteTokenizer()),
        vision_fingerprint=fingerprint, max_context=200,
    )  # fmt: skip
    bundle_lib.save_bundle(root / "language", bundle)
    return root


def save_vision_run(path, model, variables):
    """Writes a run directory of a vision tokenizer's config and variables."""
    data = PixelConfig("unused", groups=(PixelGroup("stills", "stills", model.spatial_factor, 1),))
    config = VisionTokenizerTrainConfig(model, data, RunConfig(steps=STEP))
    return save_run(path, config, variables)


def save_language_run(path, model, variables, ema=None):
    """Writes a run directory of a transformer's config and variables, without its language."""
    data = DataConfig((MixtureEntry("unused", "text"),), batch_size=1, sequence_length=8)
    config = PretrainConfig(model, data, RunConfig(steps=STEP), "bytes")
    return save_run(path, config, variables, ema)


def save_run(path, config, variables, ema=None):
    """Writes a run directory as training leaves it, with its checkpoint of step STEP."""
    save_config(to_values(config), path)
    params = variables["params"]
    others = {name: tree for name, tree in variables.items() if name != "params"}
    moments = jax.tree.map(np.zeros_like, params)
    state = TrainState(np.int32(STEP), params, others, moments, ema)
    checkpoints = Checkpoints(path, CheckpointConfig())
    checkpoints.save(STEP, jax.device_put(state), {}, wait=True)
    checkpoints.close()
    return path
