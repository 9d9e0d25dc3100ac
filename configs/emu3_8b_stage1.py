r"""Emu3-8B, pretraining stage 1: text and images from scratch, rows of 5,120 tokens.

Purpose: the first stage of the paper (section 2.4) on a TPU pod. The argument is the folder of
token datasets, made with the released vocabulary, images of about 512 x 512 pixels: images/, text/,
and validation/ with held-out documents of all kinds, whose likelihood is measured every 1,000
steps.

From the paper: the model (table 3), rows of 5,120 tokens, weight 0.5 on vision tokens, dropout 0.1,
peak 5e-5 falling to zero on a cosine, images never cut.
UNKNOWN, never published, chosen here: batch (1,024 rows, 5.2 M tokens), steps (200,000, 1.05 T
tokens), warm-up, AdamW's betas and epsilon, weight decay, clipping (those of the official
fine-tuning script, smaller clipping; Emu3.5 states the same betas and decay), mixture (equal parts
of both directions, a fifth of text, as Emu3.5's 0.20), empty captions.
Deviation: no dropout on attention probabilities, which flash attention does not support; the three
other sites keep 0.1.

Commands:
  python -m emu3_jax.aot --config=configs/emu3_8b_stage1.py --topology=v5p:4x4x4
  python -m emu3_jax.train --config=configs/emu3_8b_stage1.py:gs://BUCKET/tokens_stage1 --workdir=gs://BUCKET/emu3_8b_stage1

Expected: docs/how_to/aot.md has the compiler's figures for several pods. Never run by us.
"""

from ml_collections import ConfigDict

from emu3_jax import vocab


def get_config(arg: str = "") -> ConfigDict:
    tokens = arg or "runs/tokens_stage1"
    config = ConfigDict()
    config.task = "pretrain"
    # The released ranks, docs/how_to/released_weights.md.
    config.text_tokenizer = "assets/emu3.tiktoken"
    config.model = ConfigDict(
        dict(
            vocab_size=vocab.released().size,
            hidden_size=4096,
            intermediate_size=14336,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            dropout=0.1,
            attention_dropout=0.0,
            dtype="bfloat16",
            param_dtype="float32",
            remat="full",
        )
    )
    config.loss = ConfigDict(dict(chunk_tokens=512, z_loss=0.0))
    config.data = ConfigDict(
        dict(
            mixture=(
                dict(dataset=f"{tokens}/images", task="text_to_image", weight=4.0, null_prompt=0.1),
                dict(dataset=f"{tokens}/images", task="image_to_text", weight=4.0),
                dict(dataset=f"{tokens}/text", task="text", weight=2.0),
            ),
            batch_size=1024,
            sequence_length=5120,
            loss_weights=dict(text=1.0, image=0.5, video=0.5, structure=1.0),
            seed=0,
            workers=8,
        )
    )
    config.run = ConfigDict(
        dict(
            steps=200_000,
            seed=0,
            accumulation=1,
            mesh=dict(data=1, fsdp=-1, context=1, tensor=1),
            optimizer=dict(
                learning_rate=5e-5,
                warmup_steps=2000,
                schedule="cosine",
                final_fraction=0.0,
                b1=0.9,
                b2=0.95,
                eps=1e-8,
                weight_decay=0.1,
                clip_norm=1.0,
                second_moment="float32",
            ),
            checkpoint=dict(every=1000, keep=3),
            log=dict(every=20),
        )
    )
    config.evaluation = (
        dict(evaluator="likelihood", every=1000, tokens=tokens, limit=1000, batch_size=32),
    )
    return config
