r"""Captions to images with low-rank adapters (LoRA): Emu3-8B on eight small chips.

Purpose: a model that draws, taught a style or a domain without training its 8.5 billion weights.
Rank 64 on all linear layers of the stack are 168 million numbers, 2% of them. The section `lora`
works in any config of a language model: --config.lora.rank=64.

Numbers: rank 64, alpha 128, rate 1e-4, in the range that works for others (ranks of 64 to 128,
alpha twice the rank, 1e-4 to 2e-4); no experiment of ours chose them. Adapters are float32 on a base
in bfloat16, or with --config.lora.base=int8 on one in int8, which fits a GPU of 24 GB by the plan. The
loss is on the whole image block and EOS, as elsewhere here; 0.1 empty captions. The rows of one
image of 720 x 720 pixels have 8,200 tokens: 10,240 hold it with its caption.

Data: captioned images in the folder that is the argument, train/ and validation/. It starts from
any run directory or released weights: --config.start.transformer=PATH.

What goes wrong: a loss that stays where it was (reported for Emu3 without its settings): take all
linear layers, a rate ten times that of full tuning, float32 adapters, and
--config.lora.rows=(151854,184622), the vectors of the visual ids, where the new images differ much
from those of pretraining. No weight decay: it would pull towards the base.

Commands:
  python -m emu3_jax.aot --config=configs/post_training/lora_drawing.py --topology=v5e:2x4 --plan
  python -m emu3_jax.train --config=configs/post_training/lora_drawing.py:gs://BUCKET/tokens --workdir=gs://BUCKET/lora --config.start.transformer=Emu3-Gen
  python -m emu3_jax.convert export --model=gs://BUCKET/lora --output=exports/lora --layout=peft

Expected: docs/how_to/post_training.md has the compiler's memory. Never run by us.
"""

from ml_collections import ConfigDict

from configs import emu3_8b_stage1


def get_config(arg: str = "") -> ConfigDict:
    tokens = arg or "runs/tokens_drawing"
    config = emu3_8b_stage1.get_config(tokens)
    config.start = ConfigDict(dict(transformer="Emu3-Gen", shared_ids=config.model.vocab_size))
    config.lora = ConfigDict(dict(rank=64, alpha=128.0))
    config.model.param_dtype = "bfloat16"  # of the frozen weights; adapters are float32
    config.model.dropout = 0.0
    train = f"{tokens}/train"
    config.data.mixture = (
        dict(dataset=train, task="text_to_image", null_prompt=0.1, train_condition=False),
    )
    # Sixteen rows of one large image each, a device's share of them one at a time.
    config.data.update(dict(batch_size=16, sequence_length=10_240))
    config.run.steps = 2000
    config.run.accumulation = 2
    config.run.optimizer.update(learning_rate=1e-4, warmup_steps=30, weight_decay=0.0)
    config.run.checkpoint.every = 200
    config.evaluation = tuple(dict(entry, every=200) for entry in config.evaluation)
    return config
