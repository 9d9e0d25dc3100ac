"""Real tasks that are stopped and resumed end in the state of the unbroken run, bit for bit."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
from tiny_tasks import pretrain_task, tiny_pretrain_task, vision_task
from tiny_vision_tokenizer import MODEL, WEIGHTS
from token_records import text, write_dataset
from toy_task import assert_same_trees, leaves, run_config

from emu3_jax.data import media
from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup
from emu3_jax.data.tokens.records import Record
from emu3_jax.sequence import Image
from emu3_jax.sharding import MeshConfig
from emu3_jax.train.loop import Callback, train
from emu3_jax.train.run.metrics import read_metrics
from emu3_jax.train.tasks.vision.codebook_maintenance import USAGE, CodebookConfig
from emu3_jax.train.tasks.vision.vision_objective import VisionLossConfig

STEPS = 5


class StopAfter(Callback):
    """SIGTERM in step `step`, so that the loop sees it when the next one is done."""

    every = 1

    def __init__(self, step):
        self.step = step

    def __call__(self, step, state, writer):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}


def _losses(workdir):
    """Everything logged but speed and memory."""
    rows = read_metrics(workdir)
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


def _unbroken_is_resumed(make_task, run, folder):
    """Trains once in one go and once in two → the final state."""
    whole = train(make_task(), run, folder / "whole")
    assert train(make_task(), run, folder / "parts", callbacks=[StopAfter(2)]) is None
    resumed = train(make_task(), run, folder / "parts")
    assert int(resumed.step) == STEPS
    assert_same_trees(resumed, whole)
    assert _losses(folder / "parts") == _losses(folder / "whole")
    return whole


def _write_tokens(tmp_path):
    codes = np.random.default_rng(0).integers(0, 100, (12, 2, 3))
    records = [Record(f"i{i}", "s", "image", (text(f"no {i}"), Image(codes[i]))) for i in range(12)]
    records += [Record(f"t{i}", "s", "text", (text(f"text {i}"),)) for i in range(12)]
    return str(write_dataset(tmp_path / "tokens", records))


def test_pretraining_with_dropout_and_micro_batches(tmp_path):
    dataset = _write_tokens(tmp_path)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    run = run_config(steps=STEPS, every=10, accumulation=2, ema_decay=0.9, mesh=mesh)
    _unbroken_is_resumed(lambda: tiny_pretrain_task(dropout=0.3, dataset=dataset), run, tmp_path)


def test_going_on_with_longer_rows(tmp_path):
    """Only if asked for; where the data goes on is a matter of the pipeline's tests."""
    dataset = _write_tokens(tmp_path)
    run = run_config(steps=2, every=10)
    train(tiny_pretrain_task(dataset=dataset), run, tmp_path / "run")
    longer = tiny_pretrain_task(dataset=dataset)
    old = longer.config
    data = dataclasses.replace(old.data, sequence_length=2 * old.data.sequence_length)
    longer = pretrain_task(old.model, data, old.loss)
    run = run_config(steps=3, every=10)
    with pytest.raises(ValueError, match="sequence_length"):
        train(longer, run, tmp_path / "run")
    state = train(longer, run, tmp_path / "run", allow_changes=True)
    assert int(state.step) == 3


def _write_clips(folder):
    """Five clips of noise."""
    rng, lines = np.random.default_rng(0), []
    for i in range(5):
        media.write_webp(folder / f"{i}.webp", rng.integers(0, 256, (3, 8, 8, 3), np.uint8), fps=8)
        lines.append({"id": f"v{i}", "video": f"{i}.webp", "text": ""})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_vision_tokenizer_with_averages_usage_and_statistics(tmp_path):
    _write_clips(tmp_path)
    loss = VisionLossConfig(**WEIGHTS, clips=0.5)
    codebook = CodebookConfig(revive_every=2, revive_below=0.5)
    # Clips alone use every part of the model; tracing stills as well takes as long again.
    data = PixelConfig(root=str(tmp_path), groups=(PixelGroup("clips", "clips", 8, 8, 2),))
    run = run_config(steps=STEPS, every=10, ema_decay=0.9)
    state = _unbroken_is_resumed(
        lambda: vision_task(MODEL, data, loss, STEPS, codebook), run, tmp_path
    )
    # None of what must come back is trivially the same.
    assert any(np.ptp(leaf) > 0 for leaf in leaves(state.model_state["batch_stats"]).values())
    assert np.ptp(np.asarray(state.model_state[USAGE]["clips"])) > 0
    kernels = leaves(state.params), leaves(state.ema)
    assert any((kernels[0][name] != kernels[1][name]).any() for name in kernels[0])
