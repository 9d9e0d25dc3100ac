"""Models of this project in lmms-eval, written for its version 0.7.3.

In an environment with both packages lmms-eval finds the model by its entry point:

    python -m lmms_eval --model emu3_jax --tasks pope --batch_size 16 \
      --model_args pretrained=runs/chat,vision_tokenizer=runs/vision_tokenizer

It runs as one process, which spreads the model over all devices that JAX has.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm

from emu3_jax.evaluate.harnesses.answering import Answerer, Part
from emu3_jax.generate import presets
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.modalities import Options

NAME = "emu3_jax"
MANIFEST = ModelManifest(NAME, simple_class_path=f"{__name__}.Emu3Jax")
# How the harness marks the place of an image within a text.
MARK = "<image>"


class Generation(NamedTuple):
    """How a task wants its answers.

    Attributes:
      options: sampling and the longest answer.
      until: texts that end an answer, and are not part of it.
    """

    options: Options
    until: tuple[str, ...]


@register_model(NAME)
class Emu3Jax(lmms):
    """A language model and its vision tokenizer.

    Args:
      pretrained: the language model: a run directory, a directory of weights, or a shipped name.
      vision_tokenizer: that of the language model, likewise.
      batch_size: the most requests that run together.
      device, max_batch_size: handed over by the harness; not used, as JAX chooses the devices.
      min_pixels, max_pixels, dtype, verbatim: see `Answerer.load`.
    """

    def __init__(
        self,
        pretrained: str,
        vision_tokenizer: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        dtype: str | None = None,
        verbatim: bool = False,
    ):
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "emu3_jax runs in one process, which uses all devices; start lmms-eval without "
                "accelerate launch and torchrun"
            )
        self._answerer = Answerer.load(
            pretrained,
            vision_tokenizer,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            dtype=dtype,
            batch_size=int(batch_size),
            verbatim=verbatim,
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request; those with the same settings run together."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        answers = [""] * len(requests)
        for members in groups.values():
            chosen = [requests[index] for index in members]
            options, until = generation(chosen[0].args[1])
            asked = (self._question(request) for request in tqdm(chosen, desc=NAME))
            found = self._answerer.answers(asked, options)
            for index, answer in zip(members, found, strict=True):
                answers[index] = cut(answer, until)
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """The summed log-probability of each continuation, and whether it is the greedy one.

        A task of type `multiple_choice` hands over its options as text, and takes the one with the
        smallest number, as it expects losses (`process_results` in lmms_eval/api/task.py). Texts
        therefore get the negative log-probability. A task of type `loglikelihood` hands over a
        function, and gets the log-probability itself.

        Each pair is wrapped: `evaluate` makes a text of anything else that is not one, and then
        fails (`unwrap_generation_output` in lmms_eval/api/instance.py). Its cache of responses
        refuses such a pair: run these tasks without --use_cache.
        """
        asked = (
            (self._question(request), self._continuation(request))
            for request in tqdm(requests, desc=NAME)
        )
        found = self._answerer.likelihoods(asked)
        signs = [-1.0 if isinstance(request.args[1], str) else 1.0 for request in requests]
        pairs = zip(signs, found, strict=True)
        return [GenerationResult((sign * one.log_probability, one.greedy)) for sign, one in pairs]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not there: the released chat form has one turn."""
        raise NotImplementedError(
            "emu3_jax answers one question at a time; tasks of the type generate_until_multi_round "
            "are not supported"
        )

    def _question(self, request: Instance) -> list[Part]:
        context, _, to_visual, *place = request.args
        return parts(context, to_visual(self._document(*place)) or [], str(place))

    def _continuation(self, request: Instance) -> str:
        _, target, _, *place = request.args
        return target if isinstance(target, str) else target(self._document(*place))

    def _document(self, doc_id: int, task: str, split: str) -> Mapping[str, Any]:
        return self.task_dict[task][split][doc_id]


def parts(context: str, visuals: Sequence[Any], where: str) -> list[Part]:
    """A question's images and texts in reading order.

    Images are where the text has a mark for each. With another number of marks they are before the
    text, which stays as it is. ValueError for a clip or a sound.
    """
    for visual in visuals:
        if not isinstance(visual, Image.Image):
            raise ValueError(
                f"{where}: expected images, found {type(visual).__name__}; clips and sounds are "
                "not supported"
            )
    texts = context.split(MARK)
    if len(texts) != len(visuals) + 1:
        texts = [*[""] * len(visuals), context]
    asked: list[Part] = [texts[0]]
    for visual, text in zip(visuals, texts[1:], strict=True):
        asked += [visual, text]
    return [part for part in asked if not isinstance(part, str) or part]


def generation(settings: Mapping[str, Any]) -> Generation:
    """The settings of a task; what it leaves out is that of the released code for understanding.

    As with the harness's own models a temperature of 0, or none, is greedy. ValueError for beams.
    """
    if (beams := settings.get("num_beams") or 1) != 1:
        raise ValueError(f"num_beams is {beams}, expected 1: there is no beam search")
    greedy = settings.get("do_sample") is False
    sampling = Sampling(
        temperature=0.0 if greedy else float(settings.get("temperature") or 0.0),
        top_p=float(settings.get("top_p") or 1.0),
        top_k=int(settings.get("top_k") or 0),
    )
    longest = settings.get("max_new_tokens") or presets.UNDERSTANDING_MAX_NEW
    until = settings.get("until") or ()
    return Generation(
        Options(sampling, max_new=longest), (until,) if isinstance(until, str) else tuple(until)
    )


def cut(answer: str, until: Sequence[str]) -> str:
    """The answer up to the first of the texts that end it."""
    found = [answer.index(end) for end in until if end and end in answer]
    return answer[: min(found, default=None)]
