"""Answers to questions about images, and likelihoods of given answers: what adapters share.

A question is a sequence of parts in reading order, texts and images, and is asked in the released
chat form. That form puts a period of its own behind the question, so one that the question ends
with is taken away.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image as PillowImage

from emu3_jax import sharding, shipped
from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.data.media.images import to_rgb
from emu3_jax.generate import codec, modalities, scoring
from emu3_jax.interop.bundle import Bundle, with_vision
from emu3_jax.models.language import int8
from emu3_jax.models.language.layers import precision
from emu3_jax.sequence import Image, Turn, chat
from emu3_jax.train import weights

# A text, or an image: uint8 [H, W, 3], Pillow's, or a file.
Part = str | np.ndarray | PillowImage.Image | os.PathLike
# Questions whose images are held at once, in batches.
HELD = 8


class Likelihood(NamedTuple):
    """How likely an answer is after its question.

    Attributes:
      log_probability: natural logarithm, summed over the tokens of the answer, without EOS.
      greedy: whether the tokens are those that the model would choose at temperature 0, among text
        tokens and EOS.
    """

    log_probability: float
    greedy: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Answerer:
    """A model that is asked about images.

    Attributes:
      bundle: with its vision tokenizer.
      mesh: where its weights lie.
      limits: images are resized to these.
      batch_size: the most questions that run together.
      verbatim: keeps a period at the end of a question, so that two follow each other.
    """

    bundle: Bundle
    mesh: jax.sharding.Mesh
    limits: media.PixelLimits
    batch_size: int = 16
    verbatim: bool = False

    @classmethod
    def load(
        cls,
        model: str,
        vision_tokenizer: str,
        *,
        mesh: jax.sharding.Mesh | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
        verbatim: bool = False,
    ) -> Self:
        """Loads a model.

        Args:
          model, vision_tokenizer: run directories, directories of weights, or shipped names.
          mesh: where to load them; None: all devices.
          min_pixels, max_pixels: limits of an image's area; None: as the model was trained, else as
            the tokenizer's preprocessor_config.json states, else the released ones.
          dtype: as for `weights.load_language_model`.
          batch_size, verbatim: see the class.
        """
        mesh = mesh or sharding.make_mesh()
        vision, variables = weights.load_vision_tokenizer(vision_tokenizer, mesh=mesh)
        bundle, label = weights.load_language_model(model, mesh=mesh, dtype=dtype)
        bundle = with_vision(bundle, vision, variables, vision_tokenizer, label)
        limits = codec.pixel_limits(
            shipped.vision_tokenizer(vision_tokenizer),
            vision.config.spatial_factor,
            min_pixels,
            max_pixels,
            bundle.media,
        )
        return cls(bundle, mesh, limits, batch_size, verbatim)

    def answers(
        self, questions: Iterable[Sequence[Part]], options: modalities.Options
    ) -> list[str]:
        """The answer to each question.

        Args:
          questions: read a part at a time, so that few images are held.
          options: sampling, and the longest answer; the batch size is that of the class.
        """
        answers: list[str] = []
        for held in self._held(questions):
            options = dataclasses.replace(options, batch_size=self.batch_size, first=len(answers))
            labels = [f"Question {len(answers) + i}" for i in range(len(held))]
            with jax.set_mesh(self.mesh):
                prompts = self.prompts(held)
                answers += modalities.continue_texts(self.bundle, prompts, options, True, labels)
        return answers

    def likelihoods(self, questions: Iterable[tuple[Sequence[Part], str]]) -> list[Likelihood]:
        """How likely each given answer is after its question.

        Args:
          questions: (parts, answer); the answer's first token follows the colon of "ASSISTANT:".

        Raises:
          ValueError: an empty answer, or one that does not fit into the model's context.
        """
        found: list[Likelihood] = []
        for held in self._held(questions):
            with jax.set_mesh(self.mesh):
                prompts = self.prompts([parts for parts, _ in held])
                rows = [
                    _Row(prompt, np.array(self.bundle.grammar.text_ids(answer), np.int32))
                    for prompt, (_, answer) in zip(prompts, held, strict=True)
                ]
                self._check(rows, len(found))
                found += self._scored(rows)
        return found

    def prompts(self, questions: Sequence[Sequence[Part]]) -> list[np.ndarray]:
        """The ids of each question up to its answer, int32 [P]; equal images are encoded once."""
        pixels = [[self._pixels(part) for part in parts] for parts in questions]
        images = {
            _key(part): part for parts in pixels for part in parts if isinstance(part, np.ndarray)
        }
        image_of = dict(zip(images, map(Image, self._codes(images.values())), strict=True))
        turns = [
            tuple(p if isinstance(p, str) else image_of[_key(p)] for p in parts) for parts in pixels
        ]
        ending = (lambda parts: parts) if self.verbatim else without_period
        return [self.bundle.grammar.chat_prompt([Turn(ending(parts))]) for parts in turns]

    def _codes(self, images: Iterable[np.ndarray]) -> list[np.ndarray]:
        sized = [codec.fitted(image, self.limits) for image in images]
        tokenizer = (self.bundle.vision, self.bundle.vision_variables)
        return vision_codec.encode(tokenizer, sized, self.batch_size, one_size=False)

    def _pixels(self, part: Part) -> str | np.ndarray:
        if isinstance(part, str):
            return part
        if isinstance(part, PillowImage.Image):
            part = to_rgb(part)
        elif not isinstance(part, np.ndarray):
            part = media.read_image(part)
        return part

    def _held(self, questions: Iterable[Any]) -> Iterator[list[Any]]:
        questions = iter(questions)
        while held := list(itertools.islice(questions, HELD * self.batch_size)):
            yield held

    def _check(self, rows: Sequence["_Row"], first: int) -> None:
        limit = self.bundle.max_context
        for number, row in enumerate(rows, first):
            if not len(row.answer):
                raise ValueError(
                    f"Question {number}: the answer is empty, so it has no likelihood."
                )
            if limit is not None and len(row.inputs) > limit:
                raise ValueError(
                    f"Question {number} and its answer have {len(row.inputs)} tokens; the model "
                    f"reads at most {limit}."
                )

    def _scored(self, rows: Sequence["_Row"]) -> list[Likelihood]:
        """Likelihoods of rows, in batches of one shape; longer rows share batches."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].inputs))
        size = scoring.rows_of_batch(self.mesh, min(self.batch_size, len(rows)))
        score = _scorer(self.bundle.model, self.bundle.vocab.text_size, self.bundle.vocab.eos)
        found: dict[int, Likelihood] = {}
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            inputs_BS, at_BL, answers_BL = _batch([rows[i] for i in chosen], size)
            inputs_BS = sharding.spread(inputs_BS, "batch", "sequence")
            results = score(self.bundle.variables, inputs_BS, at_BL, answers_BL)
            log_p_BL, greedy_BL = map(np.asarray, results)
            for i, log_p_L, greedy_L in zip(chosen, log_p_BL, greedy_BL, strict=False):
                n = len(rows[i].answer)
                total = log_p_L[:n].astype(np.float64).sum()
                found[i] = Likelihood(float(total), bool(greedy_L[:n].all()))
        return [found[i] for i in range(len(rows))]


class _Row(NamedTuple):
    """A prompt and an answer, int32 ids."""

    prompt: np.ndarray
    answer: np.ndarray

    @property
    def inputs(self) -> np.ndarray:
        """What the model reads: the last token is predicted only."""
        return np.concatenate((self.prompt, self.answer[:-1]))


def without_period(parts: tuple) -> tuple:
    """The parts without blanks and one period at the end of the last, if that is a text."""
    if not parts or not isinstance(parts[-1], str):
        return parts
    return (*parts[:-1], chat.without_period(parts[-1]))


def _key(pixels: np.ndarray) -> tuple:
    return pixels.shape, pixels.tobytes()


def _batch(rows: Sequence[_Row], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs [B, S], and positions and ids of the answers' tokens [B, L]; zeros at the end."""
    multiple = scoring.ROW_MULTIPLE
    longest = -(-max(len(row.inputs) for row in rows) // multiple) * multiple
    inputs_BS = np.zeros((size, longest), np.int32)
    # A power of two, so that few shapes are compiled.
    length = 1 << (max(len(row.answer) for row in rows) - 1).bit_length()
    at_BL, answers_BL = np.zeros((2, size, length), np.int32)
    for b, row in enumerate(rows):
        n = len(row.answer)
        inputs_BS[b, : len(row.inputs)] = row.inputs
        at_BL[b, :n] = len(row.prompt) - 1 + np.arange(n)
        answers_BL[b, :n] = row.answer
    return inputs_BS, at_BL, answers_BL


@functools.lru_cache(maxsize=2)
def _scorer(model: nn.Module, text_size: int, eos: int):
    """Jitted (variables, inputs, positions, answers) → log p float32 [B, L], greedy bool [B, L].

    Padding is behind the tokens, which do not see it.
    """

    def scores(variables, inputs_BS, at_BL, answers_BL):
        with int8.reading():
            hidden_BSD = model.apply(variables, inputs_BS, method="hidden")
        kernel_DV = nn.meta.unbox(variables)["params"]["lm_head"]["kernel"]
        kernel_DV = kernel_DV[:, : model.config.vocab_size].astype(hidden_BSD.dtype)
        ids_V = jnp.arange(kernel_DV.shape[1])
        drawable_V = (ids_V < text_size) | (ids_V == eos)

        def of_row(row):
            hidden_LD, answers_L = row
            logits_LV = jnp.dot(
                hidden_LD,
                kernel_DV,
                precision=precision(hidden_LD.dtype),
                preferred_element_type=jnp.float32,
            )
            log_p_LV = jax.nn.log_softmax(logits_LV)
            best_L = jnp.argmax(jnp.where(drawable_V, logits_LV, -jnp.inf), axis=-1)
            log_p_L1 = jnp.take_along_axis(log_p_LV, answers_L[:, None], axis=-1)
            return log_p_L1[:, 0], best_L == answers_L

        # A row at a time: the logits of all would be large.
        hidden_BLD = jnp.take_along_axis(hidden_BSD, at_BL[:, :, None], axis=1)
        log_p_BL, greedy_BL = jax.lax.map(of_row, (hidden_BLD, answers_BL))
        return sharding.gathered(log_p_BL), sharding.gathered(greedy_BL)

    return jax.jit(scores)
