"""Models of this project in VLMEvalKit, written for its commit e8e78f0 (August 2026).

Its list of models is a dict of constructors. In a checkout of it, beside this project:

    import functools, runpy
    from vlmeval.config import supported_VLM
    from emu3_jax.evaluate.harnesses.vlmevalkit_model import Emu3Jax

    supported_VLM["mine"] = functools.partial(
        Emu3Jax, model_path="runs/chat", vision_tokenizer="runs/vision_tokenizer"
    )
    runpy.run_path("run.py", run_name="__main__")

started as `python that_file.py --data POPE --model mine`. VLMEvalKit asks one question at a time.
"""

import pathlib
from collections.abc import Mapping, Sequence

from vlmeval.vlm.base import BaseModel

from emu3_jax.evaluate.harnesses.answering import Answerer, Part
from emu3_jax.generate import presets
from emu3_jax.generate.modalities import Options


class Emu3Jax(BaseModel):
    """A language model and its vision tokenizer, which answers greedily.

    Args:
      model_path: the language model: a run directory, a directory of weights, or a shipped name.
      vision_tokenizer: that of the language model, likewise.
      max_new_tokens: the longest answer; the default is that of VLMEvalKit's own class for Emu3.
      min_pixels, max_pixels, dtype, verbatim: see `Answerer.load`. With `verbatim` a question of
        one image is fed as VLMEvalKit's own class feeds it.
    """

    INSTALL_REQ = False
    INTERLEAVE = True

    def __init__(
        self,
        model_path: str,
        vision_tokenizer: str,
        max_new_tokens: int = presets.UNDERSTANDING_MAX_NEW,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        dtype: str | None = None,
        verbatim: bool = False,
    ):
        super().__init__()
        self._options = Options(presets.UNDERSTANDING, max_new=max_new_tokens)
        self._answerer = Answerer.load(
            model_path,
            vision_tokenizer,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            dtype=dtype,
            batch_size=1,
            verbatim=verbatim,
        )

    def generate_inner(
        self, message: Sequence[Mapping[str, str]], dataset: str | None = None
    ) -> str:
        """The answer to a message: texts and image files in reading order."""
        return self._answerer.answers([parts(message)], self._options)[0]


def parts(message: Sequence[Mapping[str, str]]) -> list[Part]:
    """A message's images and texts in reading order; neighbouring texts are joined by a line feed.

    ValueError for a clip.
    """
    asked: list[Part] = []
    for item in message:
        kind, value = item["type"], item["value"]
        if kind not in ("image", "text"):
            raise ValueError(f"expected images and texts, found the {kind} {value}")
        if kind == "image":
            asked.append(pathlib.Path(value))
        elif asked and isinstance(asked[-1], str):
            asked[-1] += f"\n{value}"
        else:
            asked.append(value)
    return asked
