r"""Captions to images, as the official fine-tuning script trains: scripts/t2i_sft.sh of Emu3.

Purpose: a model that draws, taught a style or a domain by captioned images, and figures that can be
compared with the official code: tests/train/tasks/test_golden_post_training_sft.py holds ids, loss,
gradients and steps against it. configs/post_training/sft_drawing_eos.py is our own variant, better
for a model that shall do more than draw.

From the script: the loss is on visual tokens alone (no text, no marks, no EOS), 0.05 empty
captions, dropout 0.1, rows of 10,240 tokens, images of about 720 x 720 pixels, 1e-5 falling to 1e-6
on a cosine after 30 steps, the first of them at a rate of zero, AdamW 0.9/0.95/1e-6, weight decay
0.1 on all but the norms (so on the embeddings and the output too), four micro-batches whose means
are averaged.
Clipping: the script passes a norm of 5, but its DeepSpeed configs have no gradient_clipping, and
transformers 4.44 leaves DeepSpeed at its default of none: the official runs most likely never
clipped. --config.run.optimizer.clip_norm=0 is that.
UNKNOWN, chosen here: 64 rows (two on each of eight GPUs, four times) and 2,000 steps; the script
runs four epochs of the user's data, so state --config.run.steps.
Deviations: rows are packed; the official ones hold one image and padding, which at 720 x 720
differs little, since one image nearly fills a row. Micro-batches are of 16 rows; the official mean
is that of the two rows of a GPU. The 8B has no dropout on attention probabilities, as in
configs/emu3_8b_stage1.py.

Data: records of captioned images, in the folder of token datasets that is the argument; for
held-out likelihood validation/ beside train/. `nano`, or `nano:FOLDER`, is the twin of the shipped
nano model. It starts from any run directory or released weights: --config.start.transformer=PATH.

What goes wrong: a first loss far above that of the base model is another vision tokenizer or
another vocabulary, not the rate; marks have no loss here, so that after long tuning the model ends
its images by the grammar alone; 1e-5 is too high for Emu3-Chat (a loss near 1 in interleaved data
that does not fall).

Commands:
  python -m emu3_jax.tokenize --config=configs/tokenize_folder.py:data --config.output=tokens --config.area=518400 --config.min_pixels=262144 --config.max_pixels=1048576 --config.vision_tokenizer=Emu3-VisionTokenizer --config.text_tokenizer=assets/emu3.tiktoken --config.vocabulary=released
  python -m emu3_jax.train --config=configs/post_training/sft_drawing.py:gs://BUCKET/tokens --workdir=gs://BUCKET/sft_drawing --config.start.transformer=Emu3-Gen
  python -m emu3_jax.train --config=configs/post_training/sft_drawing.py:nano --workdir=runs/sft_drawing

Expected: docs/how_to/post_training.md. The 8B was never run by us.
"""

from ml_collections import ConfigDict

from configs import emu3_8b_stage1, transformer_nano

NANO = "nano"


def get_config(arg: str = "") -> ConfigDict:
    config, tokens = begin(arg, "tokens_drawing")
    train = f"{tokens}/train"
    config.data.mixture = (
        dict(dataset=train, task="text_to_image", null_prompt=0.05, train_condition=False),
    )
    config.data.loss_weights = ConfigDict(dict(text=0.0, image=1.0, video=0.0, structure=0.0))
    config.data.batch_size = max(8, config.data.batch_size)  # the twin: two rows a micro-batch
    config.run.accumulation = 4
    config.run.accumulated_mean = "micro_batches"
    config.run.optimizer.update(
        warmup_steps=30,
        warmup_from="zero",
        schedule="cosine",
        final_fraction=0.1,
        b1=0.9,
        b2=0.95,
        eps=1e-6,
        weight_decay=0.1,
        decayed="all_but_norms",
        clip_norm=5.0,
    )
    return config


def is_nano(arg: str) -> bool:
    """Whether the argument of a config names the twin of the shipped nano model."""
    return arg.partition(":")[0] == NANO


def begin(
    arg: str,
    folder: str,
    start: str = "Emu3-Gen",
    twin: str = "tokens_nano",
    twin_length: int = 352,
    **rows: int,
) -> tuple[ConfigDict, str]:
    """What all supervised tuning has in common: the model, its start and the size of a run.

    Args:
      arg: of the config: "" or a folder of token datasets for the 8B; "nano" or "nano:FOLDER" for
        the twin of the shipped nano model.
      folder: of the 8B's datasets in runs/, if `arg` names none.
      start: what the 8B starts from; the nano model starts from the shipped one.
      twin: of the nano model's datasets.
      twin_length: tokens of its rows.
      rows: of the 8B: batch_size (64), sequence_length (10,240) and context (1), the number of
        devices that share a row.

    Returns:
      (config without mixture, folder of the token datasets).
    """
    rest = arg.partition(":")[2]
    if is_nano(arg):
        tokens = rest or f"runs/{twin}"
        config = transformer_nano.get_config(tokens)
        config.data.sequence_length = twin_length
        config.run.optimizer.update(learning_rate=2e-4, warmup_steps=30)
        start = "assets/transformer_nano"
    else:
        tokens = arg or f"runs/{folder}"
        config = emu3_8b_stage1.get_config(tokens)
        config.run.mesh.context = rows.pop("context", 1)
        config.data.update(dict(batch_size=64, sequence_length=10_240) | rows)
        config.run.optimizer.update(learning_rate=1e-5, warmup_steps=30)
        config.run.checkpoint.every = 500
    config.start = ConfigDict(dict(transformer=start, shared_ids=-1))
    config.run.steps = 2000
    config.evaluation = tuple(dict(entry, every=500) for entry in config.evaluation)
    return config, tokens
