r"""Emu3-8B, pretraining stage 2: with video, rows of 131,072 tokens.

Purpose: the second stage of the paper (section 2.4), from the weights of the first. The argument is
the folder of token datasets: those of stage 1, and videos of about 512 x 512 pixels per frame
(videos/, and held-out ones in validation/).

From the paper: rows of 131,072 tokens, the same peak of 5e-5 falling to zero on a cosine, weight
0.5 on vision tokens, dropout 0.1, tensor, context and data parallelism together.
UNKNOWN, never published, chosen here: batch (64 rows, 8.4 M tokens), steps (20,000, 168 B tokens),
mixture (half of it video in both directions, the rest as in stage 1), and all that stage 1 lists.
Deviation: no dropout on attention probabilities, as in stage 1.

Commands:
  python -m emu3_jax.aot --config=configs/emu3_8b_stage2.py --topology=v5p:4x4x4 --config.data.batch_size=4
  python -m emu3_jax.train --config=configs/emu3_8b_stage2.py:gs://BUCKET/tokens_stage2 --workdir=gs://BUCKET/emu3_8b_stage2 --config.start.transformer=gs://BUCKET/emu3_8b_stage1

Expected: docs/how_to/aot.md has the compiler's figures for several pods. Never run by us.
"""

from ml_collections import ConfigDict

from configs import emu3_8b_stage1


def get_config(arg: str = "") -> ConfigDict:
    tokens = arg or "runs/tokens_stage2"
    config = emu3_8b_stage1.get_config(tokens)
    # The vectors of all tokens are copied.
    config.start = ConfigDict(
        dict(transformer="runs/emu3_8b_stage1", shared_ids=config.model.vocab_size)
    )
    config.data.mixture += (
        dict(dataset=f"{tokens}/videos", task="text_to_video", weight=5.0, null_prompt=0.1),
        dict(dataset=f"{tokens}/videos", task="video_to_text", weight=5.0),
    )
    config.data.sequence_length = 131_072
    config.data.batch_size = 64
    # Rows are split in 16: 8,192 tokens per device, as many as a few rows of stage 1.
    config.run.mesh = ConfigDict(dict(data=1, fsdp=-1, context=16, tensor=1))
    config.run.steps = 20_000
    config.run.optimizer.warmup_steps = 500
    config.run.checkpoint.every = 200
    # Held-out videos are as long as training videos: one row per share of the mesh.
    config.evaluation = tuple(dict(e, limit=200, batch_size=1) for e in config.evaluation)
    return config
