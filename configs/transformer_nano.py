r"""The nano transformer: every modality of the embedded emoji corpus in one model, from scratch.

Purpose: the model that the quickstart, the demos and the README images use, and the base that
the ablations import. The mixture is the paper's at small scale: text, text→image, image→text,
text→video, video→text, with half weight on vision tokens (paper section 2.4) and dropout 0.1.

Vision tokens start from their codebook entries, and each item has eight versions. Without either,
such a model memorises the 2,000 images long before it draws anything new.

The argument is the folder of token datasets (runs/tokens_nano).

Commands:
  python -m emu3_jax.tokenize --config=configs/tokenize_nano.py --config.copies.train=8
  JAX_NUM_CPU_DEVICES=2 python -m emu3_jax.train --config=configs/transformer_nano.py --workdir=runs/transformer_nano

Observed: 76 minutes on two busy cores (5,600 to 7,500 tokens/s). Nats per image code after 4,000,
8,000, 12,000, 16,000, 20,000 steps: 4.47, 3.97, 3.63, 3.24, 3.09 in training; 4.28, 4.05, 3.87,
3.79, 3.77 on validation (64 items), where the captions' nats rise steadily from 2.84 to 3.20 while
more persons are named correctly. The emoji evaluators' figures: docs/reference/measurements.md.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    tokens = arg or "runs/tokens_nano"
    config = ConfigDict()
    config.task = "pretrain"
    config.text_tokenizer = "assets/text_nano.model"
    config.model = ConfigDict(
        dict(
            hidden_size=256,
            intermediate_size=704,
            num_layers=4,
            # Few wide heads: on a CPU a head's scores cost more than its matmuls.
            num_heads=4,
            num_kv_heads=2,
            head_dim=64,
            dropout=0.1,
        )
    )
    # Similar codes start with similar vectors: 2,000 images are too few to learn that.
    config.start = ConfigDict(dict(codebook="assets/vision_tokenizer_nano"))
    config.loss = ConfigDict(dict(chunk_tokens=176, z_loss=0.0))
    config.data = ConfigDict(
        dict(
            mixture=_mixture(tokens),
            batch_size=4,
            # The longest document, a captioned clip, has 328 tokens; longer rows would only add
            # masked attention between documents.
            sequence_length=352,
            loss_weights=dict(text=1.0, image=0.5, video=0.5, structure=1.0),
            seed=0,
            workers=0,
        )
    )
    config.run = ConfigDict(
        dict(
            steps=20000,
            seed=0,
            ema_decay=0.0,
            mesh=dict(data=-1, fsdp=1, context=1, tensor=1),
            optimizer=dict(
                learning_rate=1.5e-3,
                warmup_steps=100,
                schedule="cosine",
                b1=0.9,
                b2=0.95,
                weight_decay=0.1,
                clip_norm=1.0,
            ),
            checkpoint=dict(every=1000, keep=2),
            log=dict(every=20),
        )
    )
    config.evaluation = (dict(evaluator="likelihood", every=4000, limit=64, tokens=tokens),)
    return config


def _mixture(tokens: str) -> tuple[dict, ...]:
    train = f"{tokens}/train"
    return (
        dict(dataset=train, task="text_to_image", weight=4.0, null_prompt=0.1),
        dict(dataset=train, task="image_to_text", weight=3.0),
        dict(dataset=train, task="text_to_video", weight=0.3, null_prompt=0.1),
        dict(dataset=train, task="video_to_text", weight=0.3),
        dict(dataset=train, task="text", weight=1.0),
    )
