"""Named configs made small: the same choices (layers, remat, loss, mixture), sizes for a test."""

import jax
import numpy as np
from paths import ROOT

from emu3_jax.config import load_config
from emu3_jax.train.task import Task

ROWS, LENGTH, VOCAB = 8, 64, 250

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
}


def named_configs(task: str = "pretrain") -> list[str]:
    """configs/*.py of one task, as paths from the root of the project."""
    files = sorted((ROOT / "configs").glob("*.py"))
    texts = {str(file.relative_to(ROOT)): load_config(str(file)) for file in files}
    return [name for name, config in texts.items() if config.get("task") == task]


def twin(file: str, **model):
    """The config with small sizes; in float32, so that sums differ by their last bits only."""
    config = load_config(str(ROOT / file))
    with config.unlocked():
        config.model.update({**SIZES, "dtype": "float32", **model})
        config.data.update(batch_size=ROWS, sequence_length=LENGTH)
        config.loss.chunk_tokens = 24
        config.run.accumulation = 1
    return config


def batch(task: Task, mesh) -> dict:
    """Two documents and some padding in every row, on the mesh."""
    rng = np.random.default_rng(0)
    segments = np.repeat([1, 2, 0], [24, 34, 6]) * np.ones((ROWS, 1), np.int32)
    positions = np.concatenate([np.arange(24), np.arange(34), np.arange(6)])
    values = {
        "segment_ids": segments,
        "positions": np.broadcast_to(positions, segments.shape),
        "weights": (segments > 0) * rng.choice([0.5, 1.0], segments.shape),
        "classes": rng.integers(1, 5, segments.shape),
        "sources": rng.integers(0, len(task.config.data.mixture), segments.shape),
        "inputs": rng.integers(0, VOCAB, segments.shape),
        "targets": rng.integers(0, VOCAB, segments.shape),
    }
    return {
        name: jax.device_put(values[name].astype(array.dtype), array.sharding)
        for name, array in task.abstract_batch(mesh).items()
    }
