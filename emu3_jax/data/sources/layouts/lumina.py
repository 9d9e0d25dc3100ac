"""Lumina-mGPT's rows: LLaVA's layout, with `<|image|>` in questions and in answers.

A row is {"id", "image": a path or a list of paths, "conversations"}; the k-th placeholder of the
row stands for the k-th image, and texts are verbatim (Alpha-VLLM/Lumina-mGPT-2.0, TRAIN.md). A row
for drawing asks "Generate an image of 768x768 according to the following prompt:\\n…" and has the
answer `<|image|>`. Images in answers are trained on.
"""

from pathlib import Path

from emu3_jax.data.sources.layouts import talk
from emu3_jax.data.sources.layouts.row_source import media_of

PLACEHOLDER = "<|image|>"


def read(row: dict, folder: Path) -> dict:
    """The reader of a `RowSource`."""
    said = talk.checked(row.pop("conversations", None))
    messages = talk.numbered([(talk.ROLES[m["from"]], m["value"]) for m in said], PLACEHOLDER)
    media = media_of(row, "image", folder) if "image" in row else []
    return {"turns": talk.to_turns(messages, "image", media)}
