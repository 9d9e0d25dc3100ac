r"""Group-relative policy optimisation (GRPO): images that score better than others of their prompt.

Purpose: where preference pairs (dpo.py) are drawn once, here the model draws for each update: groups of
images for some prompts, judged by scorers, and those above the mean of their group become likelier. The
argument is the folder of token datasets: the captions of the images in train/ are the prompts (or
--config.data.prompts=FILE, a text with one per line or rows), and validation/ shows the drift. `nano`,
or `nano:FOLDER`, is the twin of the shipped nano model, which judges by its own reading of what it
draws.

Published for such models (T2I-R1 on Janus-Pro 7B): 8 images a prompt, rate 1e-6, KL weight 0.01,
temperature 1, guidance 5 while drawing, 1,600 updates, rewards HPS and others. SimpleAR: 4 images, a CLIP
reward, 1e-6. Emu3.5: 8 images, batch 640; rewards not published. UniGRPO draws without guidance.

Guidance is off while drawing. The update is the gradient of the expected reward only for images
that the model itself draws: temperature 1, all codes, no guidance; guided images are those of
another distribution, and drawing them costs twice the rows. Its price: a reward that rises without
guidance need not rise with it (reported of Bagel, flow_grpo#65). Where the model is used with guidance,
watch an evaluator that draws with it, or draw with it here too, as T2I-R1 does:
--config.rollouts.sampling.guidance=3. The update then raises the likelihood, under the conditional
model, of the better of the guided images.
Empty prompts: 0.1 of the groups are learnt without their caption, so that guidance keeps its other half.
Rewards: HPSv2.1 and the likelihood of the caption, read by the reference. Of several scorers each is
divided by its deviation within the group, so their scales do not matter.
One update per batch: the ratio of GRPO is 1, and there is nothing to clip.

The nano twin: 8 prompts x 8 images of 8 x 8 codes an update. Its rate is higher, since its weights are few.

Memory: the reference is a second copy in bfloat16, in no checkpoint. Drawing needs 1 GiB of cache per image
of 8,199 tokens, spread over the slice, and gathers weights that are sharded over fsdp for every
token: on a slice for this task put devices on run.mesh.tensor (at most 8, the key-value heads).

What goes wrong: groups/equal near 1 means that the judge cannot tell images of a group apart, or that the
policy has collapsed (loss/nll, nats per code, falls towards 0: raise policy.beta or lower the
rate); rewards rise while images get worse: the judge is exploited (PickScore and OCR rewards are
known for it), so keep an evaluator that the reward does not contain.

Commands:
  python -m emu3_jax.aot --config=configs/post_training/grpo.py --topology=v5p:2x2x4 --plan
  python -m emu3_jax.train --config=configs/post_training/grpo.py:gs://BUCKET/tokens --workdir=gs://BUCKET/grpo --config.start.transformer=gs://BUCKET/qft
  python -m emu3_jax.train --config=configs/post_training/grpo.py:nano --workdir=runs/grpo_nano

Expected: docs/how_to/post_training.md. The 8B was never run by us.
"""

from ml_collections import ConfigDict

from configs import emu3_8b_stage1, transformer_nano
from configs.post_training import dpo, sft_drawing


def get_config(arg: str = "") -> ConfigDict:
    if sft_drawing.is_nano(arg):
        return _nano(arg.partition(":")[2] or "runs/tokens_nano")
    return _released(arg or "runs/tokens")


def _released(tokens: str) -> ConfigDict:
    config = _common(emu3_8b_stage1.get_config(tokens), tokens)
    # 90 x 90 codes in rows are 8,199 tokens with their marks; the rest is the caption.
    config.data.update(height=90, width=90, batch_size=64, sequence_length=8704)
    config.rollouts = ConfigDict(
        dict(
            scorers=(
                dict(scorer="likelihood"),
                dict(scorer="hps", clip="weights/HPS_v2.1_compressed.pt"),
            ),
            vision_tokenizer="Emu3-VisionTokenizer",
            batch_size=64,
        )
    )
    config.start = ConfigDict(dict(transformer="runs/sft_drawing"))
    config.run.update(steps=1600, accumulation=4)
    config.run.optimizer.update(learning_rate=1e-6, warmup_steps=50, schedule="constant")
    # Drawing 8,199 tokens one by one takes long.
    config.run.watch = ConfigDict(dict(hang_seconds=7200.0))
    return config


def _nano(tokens: str) -> ConfigDict:
    config = _common(transformer_nano.get_config(tokens), tokens)
    # 8 x 8 codes in rows are some 80 tokens with their marks; the rest is the caption.
    config.data.update(height=8, width=8, batch_size=64, sequence_length=160)
    config.rollouts = ConfigDict(
        dict(
            scorers=(dict(scorer="likelihood", batch_size=64),),
            vision_tokenizer="",
            batch_size=64,
        )
    )
    config.start = ConfigDict(dict(transformer="nano"))
    config.run.update(steps=400)
    config.run.optimizer.update(learning_rate=2e-5, warmup_steps=20, schedule="constant")
    return config


def _common(base: ConfigDict, tokens: str) -> ConfigDict:
    data = dict(prompts=f"{tokens}/train", candidates=8, null_prompt=0.1, seed=0)
    config = dpo.held_to_reference(base, task="grpo", policy=dict(beta=0.01), data=data)
    config.run.log.every = 1  # updates are slow
    return config
