r"""A transformer of the nano size on your own token dataset, with any kinds of records.

Purpose: the second step on your own data, after configs/tokenize_folder.py. The argument is the
folder of token datasets. The mixture has every task that the records allow, in the proportions of
the nano recipe; rows are as long as the longest document.

  python -m emu3_jax.train --config=configs/transformer_folder.py:runs/tokens --workdir=runs/mine \
    --config.text_tokenizer=data/text.model --config.run.steps=20000

Expected: some 3,000 tokens/s on two cores. A corpus that is seen more than a few times is
memorised: when the validation losses rise, stop or use more data.
"""

import json
import pathlib

from ml_collections import ConfigDict

from configs import transformer_nano

# Kind of record -> its tasks and their weights.
TASKS_OF_KIND = {
    "image": (("text_to_image", 4.0), ("image_to_text", 3.0)),
    "video": (("text_to_video", 0.5), ("video_to_text", 0.5)),
    "text": (("text", 1.0),),
    "document": (("document", 1.0),),
    "chat": (("chat", 1.0),),
}
PROMPTED = ("text_to_image", "text_to_video")


def get_config(arg: str = "") -> ConfigDict:
    tokens = pathlib.Path(arg or "runs/tokens")
    config = transformer_nano.get_config(str(tokens))
    stated = tokens / "train" / "dataset.json"
    if not stated.exists():  # nothing is tokenized yet: training raises the error
        return config
    counts = json.loads(stated.read_text(encoding="utf-8"))["counts"]
    config.data.mixture = tuple(
        dict(dataset=f"{tokens}/train", task=task, weight=weight)
        | ({"null_prompt": 0.1} if task in PROMPTED else {})
        for kind in counts
        for task, weight in TASKS_OF_KIND[kind]
    )
    shown = [counts[kind]["longest"] for kind in counts if kind != "text"]
    config.data.sequence_length = -(-max(shown, default=256) // 32) * 32
    config.loss.chunk_tokens = 32
    if not (tokens / "validation").exists():
        config.evaluation = ()
    return config
