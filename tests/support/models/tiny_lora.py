"""The smallest run that trains adapters: a base model on disk, token data and a config."""

import jax.numpy as jnp
from tiny_models import random_weights
from tiny_pretraining import write_run
from token_records import GRAMMAR

from emu3_jax.interop import bundle
from emu3_jax.models.language.transformer import Transformer, TransformerConfig

MODEL = TransformerConfig(GRAMMAR.vocab.size, 16, 32, 1, 2, 2, 8, vocab_multiple=64, dropout=0.0)


def write_base(folder, scale=0.2):
    """Writes a model directory in BAAI's layout; returns it."""
    model = Transformer(MODEL)
    weights = random_weights(model, jnp.zeros((1, 4), jnp.int32), scale)
    bundle.save_bundle(folder, bundle.Bundle(model, weights, GRAMMAR.vocab, GRAMMAR))
    return folder


def write_lora_run(folder, **changes):
    """Writes folder/base, folder/tokens and a config; returns the config's path."""
    base = write_base(folder / "base")
    settings = {
        "start": dict(transformer=str(base), shared_ids=GRAMMAR.vocab.size),
        "model.dropout": 0.0,
        "lora": dict(rank=2, alpha=4.0),
        "run.optimizer.warmup_steps": 0,
    }
    return write_run(folder, 24, **(settings | changes))
