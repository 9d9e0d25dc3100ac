"""The smallest run that trains adapters: a base model on disk, token data and a config."""

import math
from unittest import mock

import jax
import jax.numpy as jnp
from tiny_models import random_weights
from tiny_pretraining import write_run
from token_records import GRAMMAR

from emu3_jax import config as config_lib
from emu3_jax.interop import bundle
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.train import __main__ as train_command
from emu3_jax.train.run.metrics import read_metrics
from emu3_jax.train.tasks.language.pretrain import PretrainTask

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


def config_of(folder, **changes):
    """The config that `write_lora_run` wrote, with overrides."""
    config = config_lib.load_config(str(folder / "config.py"))
    config_lib.apply_overrides(config, {key: str(value) for key, value in changes.items()})
    return config


def run_config(config, workdir, allow_changes=False):
    """Trains as the command does, on as many devices as the config's mesh has; returns workdir."""
    devices = jax.devices()[: math.prod(config.run.mesh.values())]
    with mock.patch.object(jax, "devices", lambda *_: devices):
        train_command.train_config(config, str(workdir), allow_changes=allow_changes)
    return workdir


def train_lora(folder, name, allow_changes=False, **changes):
    """Trains `config_of` into folder/name; returns it."""
    return run_config(config_of(folder, **changes), folder / name, allow_changes)


def losses_of(run):
    """{step: loss} of a run directory."""
    return {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}


class HalfTask(PretrainTask):
    """A task of a user, which knows nothing of adapters: half the loss."""

    def loss(self, *arguments):
        loss = super().loss(*arguments)
        return loss._replace(total=loss.total / 2)
