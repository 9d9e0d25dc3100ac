"""The smallest pretraining run, as the files that the training command reads."""

import pathlib

from token_records import image_record, write_dataset

CONFIG = """
from ml_collections import ConfigDict
def get_config(arg=""):
    config = ConfigDict(dict(
        task="pretrain", text_tokenizer="bytes", loss=dict(chunk_tokens=16),
        model=dict(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2,
                   num_kv_heads=2, head_dim=8, vocab_multiple=64),
        data=dict(mixture=(dict(dataset={tokens!r}, task="text_to_image"),),
                  batch_size=8, sequence_length=64, pack_window=4),
        run=dict(steps=6, accumulation=1, mesh=dict(data=1, fsdp=1), ema_decay=0.9,
                 optimizer=dict(schedule="constant", learning_rate=0.01),
                 checkpoint=dict(every=2), log=dict(every=1, tensorboard=False)),
        evaluation=(dict(evaluator="likelihood", every={every}, tokens={tokens!r}),),
    ))
    config.update_from_flattened_dict({changes!r})
    return config
"""


def write_run(
    folder: pathlib.Path, records: int, evaluate_every: int = 3, **changes
) -> pathlib.Path:
    """Writes a token dataset of `records` images and a config; returns the config's path.

    `changes` are keys of the config, with dots in them, and what they become.
    """
    tokens = write_dataset(folder / "tokens", [image_record(i) for i in range(records)])
    config = folder / "config.py"
    content = CONFIG.format(tokens=str(tokens), every=evaluate_every, changes=changes)
    config.write_text(content)
    return config
