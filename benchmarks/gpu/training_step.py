"""The training step of a config on one card: tokens/s and the share of its peak (MFU)."""

import math
import time

import jax
import numpy as np

from benchmarks.gpu import card as cards
from benchmarks.training import random_batch
from emu3_jax.models.language.attention_kernels import choice
from emu3_jax.train import step as training
from emu3_jax.train.program import TrainProgram
from emu3_jax.train.tasks import registry


def measure(config, device: jax.Device, card: dict, repeats: int = 5) -> dict:
    """Times the step that `python -m emu3_jax.train --config=…` runs, on random tokens.

    MFU counts the products of the model by `Task.flops_per_unit`: nothing that is computed again.

    Args:
      config: of the task `pretrain`; the batch must fit the card.
      device: the card.
      card: the result of `card.measure`.
      repeats: steps that are timed.
    """
    task = registry.make(registry.resolve(config.to_dict()), read_data=False)
    program, run = TrainProgram(task), task.config.run
    mesh = program.mesh([device])
    began = time.perf_counter()
    step = program.lower([device]).compile()
    compile_s = time.perf_counter() - began
    c, length = task.config.model, task.config.data.sequence_length
    with jax.set_mesh(mesh):
        optimizer, _ = task.optimizer(run.optimizer, run.steps)
        state = training.init_state(task, optimizer, jax.random.key(0), mesh, False)
        batch = random_batch(task.config, documents=4)
        batch = jax.device_put(batch, task.batch_shardings(mesh))
        attention = choice.choose(c.attention, length, c.probability_dropout, c.dtype)
    count, losses = sum(x.size for x in jax.tree.leaves(state.params)), []

    def one():
        nonlocal state
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
        return metrics

    seconds = cards.median_seconds(one, repeats)
    losses = [float(total / weight) for total, weight in losses]
    if not all(map(math.isfinite, losses)):
        raise ValueError(f"the losses of the steps are not finite: {np.round(losses, 3)}")
    rate = task.units_per_batch() / seconds
    sizes = step.memory_analysis()
    return {
        "parameters": count,
        "rows": task.config.data.batch_size,
        "length": length,
        "remat": c.remat,
        "attention": attention,
        "seconds": seconds,
        "tokens_per_s": rate,
        "mfu": rate * task.flops_per_unit() / card["peak"],
        "losses": losses,
        "gib": (sizes.argument_size_in_bytes + sizes.temp_size_in_bytes) / 2**30,
        "compile_s": compile_s,
    }
