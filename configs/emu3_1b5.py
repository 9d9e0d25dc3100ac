r"""Emu3 at 1.5 B: the twin of stage 1 for ablations, at a sixth of the FLOPs per token.

Purpose: the size at which the Nature paper compares designs. The data, the loss and all else are
those of stage 1, so that an ablation here is evidence for the 8B. The argument is the folder of
token datasets.

UNKNOWN, never published: everything about that model except its 1.5 B. Chosen here: the proportions
of the 8B (F = 3.5 D, heads of 128, one key head per four), 14 layers of 2,048: 0.76 B in layers and
as much again in the two matrices of the vocabulary, 1.52 B in total; peak 3e-4 as usual at this
size; 256 rows, 1.3 M tokens; 40,000 steps, 52 B tokens.

Commands:
  python -m emu3_jax.aot --config=configs/emu3_1b5.py --topology=v5e:4x4
  python -m emu3_jax.train --config=configs/emu3_1b5.py:gs://BUCKET/tokens_stage1 --workdir=gs://BUCKET/emu3_1b5

Expected: docs/how_to/aot.md has the compiler's figures. Never run by us.
"""

from ml_collections import ConfigDict

from configs import emu3_8b_stage1


def get_config(arg: str = "") -> ConfigDict:
    config = emu3_8b_stage1.get_config(arg)
    config.model.update(
        dict(hidden_size=2048, intermediate_size=7168, num_layers=14, num_heads=16, num_kv_heads=4)
    )
    config.data.batch_size = 256
    config.run.steps = 40_000
    config.run.optimizer.learning_rate = 3e-4
    return config
