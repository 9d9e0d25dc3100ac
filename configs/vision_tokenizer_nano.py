r"""The nano vision tokenizer: the Emu3 architecture at 64 px, f8, for the embedded emoji corpus.

Purpose: the tokenizer that the quickstart, the demos and the tests use. It has all parts of
Emu3's (spatial norm, attention at the lowest level, causal layers in time, BatchNorm there); most
channels are at the low resolutions, where a CPU convolves about four times faster.

Two frames per code in time, not four as in Emu3: with four, clips stay a decibel below the aim;
docs/reference/measurements.md explains why. Two devices: XLA runs two half batches side by side on two cores
faster than one whole batch on both.

Command:
  python -m emu3_jax.data.fluent_emoji --output=runs/emoji
  JAX_NUM_CPU_DEVICES=2 python -m emu3_jax.train --config=configs/vision_tokenizer_nano.py --workdir=runs/vision_tokenizer_nano

Expected: 50 to 70 frames/s on two AVX-512 cores, 40 to 60 minutes. Observed (validation, averaged
weights): stills 24.17, 25.18, 25.54, 25.58 dB and clips 23.20, 24.02, 24.32, 24.38 dB after 1,000,
2,000, 3,000, 4,000 steps; all codes in use.
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
            temporal_downsample_factor=2,
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
            groups=(
                dict(name="stills", kind="stills", size=64, count=8),
                dict(name="clips", kind="clips", size=64, count=4, frames=8),
            ),
            reverse=True,
        )
    )
    config.run = ConfigDict(
        dict(
            steps=4000,
            seed=0,
            ema_decay=0.998,
            mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
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
    config.evaluation = (dict(evaluator="reconstruction", every=1000, data="runs/emoji"),)
    return config
