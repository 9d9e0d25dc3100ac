"""Runs inside VLMEvalKit's environment: python vlmevalkit_driver.py FOLDER.

Its own loop asks the adapter the questions of FOLDER/MadeUp.tsv. Written to FOLDER/said.json, for
each question: the message that the harness made, the adapter's answer, and the text and the size of
the image that VLMEvalKit's own class for Emu3 hands to the released processor for that message.
"""

import json
import os
import pathlib
import sys

FOLDER = pathlib.Path(sys.argv[1])
os.environ["LMUData"] = str(FOLDER)

from vlmeval.dataset import build_dataset
from vlmeval.inference import infer_data_job
from vlmeval.smp import load
from vlmeval.vlm.base import BaseModel
from vlmeval.vlm.emu import Emu3_chat

from emu3_jax.evaluate.harnesses.vlmevalkit_model import Emu3Jax


class FedError(Exception):
    """Ends the peer's call when its processor would be called."""


def fed(message):
    """What VLMEvalKit's own class feeds: its text, and (width, height) of its image."""

    def processor(*, text, image, mode, **_):
        assert mode == "U" and len(text) == len(image) == 1
        raise FedError(text[0], image[0].size)

    peer = Emu3_chat.__new__(Emu3_chat)
    peer.processor = processor
    try:
        peer.generate(message)
    except FedError as found:
        return found.args
    raise AssertionError("the peer called no processor")


model = Emu3Jax("nano", "nano", max_new_tokens=12)
assert isinstance(model, BaseModel)
dataset = build_dataset("MadeUp")
messages = [dataset.build_prompt(row) for row in dataset.data.to_dict("records")]
infer_data_job(model, str(FOLDER), "mine", dataset)
(file,) = FOLDER.glob("mine_MadeUp.*")
said = []
for message, answer in zip(messages, load(str(file))["prediction"], strict=True):
    text, size = fed(message)
    said.append({"message": message, "answer": answer, "text": text, "size": size})
(FOLDER / "said.json").write_text(json.dumps(said))
