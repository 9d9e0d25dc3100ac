r"""The nano vision tokenizer: the Emu3 architecture at 64 px, f8, for the embedded emoji corpus.

Purpose: the tokenizer that the quickstart, the demos and the tests use. Every part is the real
one (spatial norm, attention at the lowest level, causal layers in time, BatchNorm there); the
width sits at the low resolutions, where a CPU convolves about four times faster.

Two devices: XLA runs two half batches side by side on two cores about 1.25 times as fast as one
whole batch on both.

Commands. The shipped weights come from 1,823 steps with equal weight on stills and clips, stopped
by SIGTERM, and a second phase with twice the weight on clips:
  python -m emu3_jax.data.fluent_emoji --output=runs/emoji
  export JAX_NUM_CPU_DEVICES=2
  TRAIN="python -m emu3_jax.train --config=configs/vision_tokenizer_nano.py \
    --workdir=runs/vision_tokenizer_nano --allow_changes"
  $TRAIN
  $TRAIN --config.run.steps=2600 --config.loss.clips=2.0

@OBSERVED@
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = ConfigDict()
    config.task = "vision_tokenizer"
    config.model = ConfigDict(
        dict(
            codebook_size=2048,
            embed_dim=32,
            z_channels=32,
            ch=16,
            ch_mult=(1, 1, 4, 8),
            num_res_blocks=1,
            attn_resolutions=(3,),
            norm_groups=8,
        )
    )
    config.loss = ConfigDict(dict(l2=1.0, l1=0.1, clips=1.0))
    config.data = ConfigDict(
        dict(
            root="runs/emoji",
            image_size=64,
            frames=8,
            stills_per_batch=8,
            clips_per_batch=4,
            reverse=True,
        )
    )
    config.run = ConfigDict(
        dict(
            steps=2100,
            seed=0,
            ema_decay=0.998,
            mesh=dict(data=1, fsdp=-1, context=1, tensor=1),
            optimizer=dict(
                learning_rate=2e-3,
                warmup_steps=100,
                schedule="cosine",
                b1=0.9,
                b2=0.99,
                weight_decay=0.0,
                clip_norm=1.0,
            ),
            checkpoint=dict(every=250, keep=2),
            log=dict(every=20),
        )
    )
    config.evaluation = ConfigDict(
        dict(every=1050, evaluators=("reconstruction",), data="runs/emoji")
    )
    return config
