r"""Preference tuning (DPO): of two images for one caption, the chosen becomes likelier.

Purpose: the last stage of Emu3's recipe, after supervised tuning: pairs of its own images, best and
worst of several by some voters, stored as the tokens that were drawn. The argument is the folder of
token datasets: preferences/ with records of kind preference, and held-out validation/, whose
likelihood shows the drift. `nano`, or `nano:FOLDER`, is the twin of the shipped nano model.

From the paper: DPO plus next-token loss, pairs from 8 to 10 candidates. UNKNOWN, never published,
chosen here: beta, the weight of the next-token loss, rate, batch, steps, and whether the
unconditional model was kept.

beta: 0.005 per image of 8,199 tokens (90 x 90 codes with the ends of rows and the marks), which is
41 on means over tokens. The 0.1 of the text world is wrong here in both units. On
sums, |d| = |log-ratio of chosen - of rejected| is tens to hundreds of nats: a usual 0.014 nats per
token is 115 per image, so 0.1 x 115 saturates the sigmoid at once. On means 0.1 x 0.014 leaves the
loss at ln 2, with hardly a gradient: the one public attempt for Emu3 did that. The nano image has 75
counted tokens, as many as a text answer: there 0.1 is right.
next-token loss: weight 1, as RPO. Per token its gradient is 1/8199 against beta/2 at the start: 5 %
of the preference's, enough to hold the chosen images up.
Empty captions: 0.1 of the pairs, so that guidance keeps its unconditional half.
Rate: 1e-6, TRL's for full tuning; a run at 1e-5 moves away from the reference within some steps
(watch kl). Dropout is off in both passes.
Memory: the reference is a second copy in bfloat16, sharded as the policy, in no checkpoint. With
--config.start.log_probabilities=TOKENS/preferences/reference.npz its figures are computed once
before training instead, two or four numbers a pair.

What goes wrong: reward/accuracies near 1 within the first steps means beta or rate too high, or pairs
that differ by something cheap (size, border); both rewards falling with a growing margin means that
the model forgets both images: raise preference.nll_weight; a loss at 0.693 means beta on the wrong
scale, or a policy that is not trained. A row that is too short ends before training in a
sentence that says the length needed.

Commands:
  python -m emu3_jax.aot --config=configs/post_training/dpo.py --topology=v5p:2x2x4 --plan
  python -m emu3_jax.train --config=configs/post_training/dpo.py:gs://BUCKET/tokens --workdir=gs://BUCKET/dpo --config.start.transformer=gs://BUCKET/qft
  python -m emu3_jax.train --config=configs/post_training/dpo.py:nano --workdir=runs/dpo_nano

Expected: docs/how_to/post_training.md. The 8B was never run by us.
"""

from ml_collections import ConfigDict

from configs import emu3_8b_stage1, transformer_nano
from configs.post_training import sft_drawing


def get_config(arg: str = "") -> ConfigDict:
    if sft_drawing.is_nano(arg):
        return _nano(arg.partition(":")[2] or "runs/tokens_nano")
    return _released(arg or "runs/tokens_dpo")


def _released(tokens: str) -> ConfigDict:
    base = emu3_8b_stage1.get_config(tokens)
    config = _common(base, tokens)
    # 90 x 90 codes in rows are 8,199 tokens with their marks; the rest is the caption.
    config.data.update(batch_size=64, sequence_length=8704)
    config.preference = ConfigDict(dict(form="sigmoid", beta=0.005, nll_weight=1.0))
    config.start = ConfigDict(dict(transformer="runs/sft_drawing", log_probabilities=""))
    config.run.update(steps=1000, accumulation=4)
    config.run.optimizer.update(learning_rate=1e-6, warmup_steps=50, schedule="linear")
    return config


def _nano(tokens: str) -> ConfigDict:
    config = _common(transformer_nano.get_config(tokens), tokens)
    # 8 x 8 codes in rows are some 80 tokens with their marks; the rest is the caption.
    config.data.update(batch_size=8, sequence_length=160)
    config.preference = ConfigDict(dict(form="sigmoid", beta=0.1, nll_weight=1.0))
    config.start = ConfigDict(dict(transformer="nano", log_probabilities=""))
    config.run.update(steps=400)
    config.run.optimizer.update(learning_rate=2e-5, warmup_steps=20, schedule="linear")
    return config


def _common(base: ConfigDict, tokens: str) -> ConfigDict:
    data = dict(
        mixture=(dict(dataset=f"{tokens}/preferences", null_prompt=0.1),), counted="answer", seed=0
    )
    return held_to_reference(base, task="dpo", text_tokenizer=base.text_tokenizer, data=data)


def held_to_reference(base: ConfigDict, **sections) -> ConfigDict:
    """The model, run and evaluation of a pretraining config, for a policy with a reference."""
    loss = dict(chunk_tokens=base.loss.chunk_tokens)
    config = ConfigDict(dict(model=base.model, loss=loss, run=base.run, **sections))
    config.model.dropout = 0.0
    config.run.optimizer.weight_decay = 0.0  # the reference is what holds the weights
    config.run.checkpoint.every = 100
    config.evaluation = tuple(dict(entry, every=100) for entry in base.evaluation)
    return config
