"""The quickstart's training run: the nano recipe with a smaller model, for minutes on two cores.

Purpose: every part of a pretraining run (mixture of five tasks, packing, mesh, checkpoints,
evaluation while training) within minutes. The model is a third of the nano model and sees each item
about once; it learns the grammar, plausible captions and rough shapes. The shipped nano model
(configs/transformer_nano.py) is larger and was trained longer.

The argument is the quickstart's directory.

Command (after the corpus is tokenized, which launch/quickstart.sh does):
  python -m emu3_jax.train --config=configs/quickstart.py:runs/quickstart \
    --workdir=runs/quickstart/model
"""

from ml_collections import ConfigDict

from configs import transformer_nano


def get_config(arg: str = "") -> ConfigDict:
    directory = arg or "runs/quickstart"
    config = transformer_nano.get_config(f"{directory}/tokens")
    config.model.update(
        dict(hidden_size=192, intermediate_size=512, num_layers=4, num_heads=3, num_kv_heads=1)
    )
    # One epoch does not overfit, and drawing the masks takes a fifth of the time.
    config.model.dropout = 0.0
    config.run.steps = 440
    config.run.optimizer.warmup_steps = 50
    # Two virtual CPU devices: parameters and rows are both split in two, as on a pod.
    config.run.mesh = ConfigDict(dict(data=1, fsdp=2, context=1, tensor=1))
    config.run.checkpoint.every = 100
    config.run.log.every = 20
    config.evaluation = (dict(config.evaluation[0], every=110, limit=48),)
    return config
