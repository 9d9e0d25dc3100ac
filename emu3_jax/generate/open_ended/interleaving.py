"""Texts and images in turns, as the model decides: when an image begins, its size, what follows.

The grammar leaves three choices. In a text each token is a text token, EOS, or BOI, which begins an
image. Behind BOI comes one of the allowed sizes, token by token: each is drawn among those with
which an allowed size goes on. Behind the size come the codes in their rows, frame and end; then
text goes on. Each choice is drawn from the model's law on what the grammar allows there.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from emu3_jax.generate.decoding import constraints
from emu3_jax.generate.decoding.requests import Request
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.open_ended.continuing import Continuing
from emu3_jax.interop.bundle import Bundle
from emu3_jax.sequence import Image, Segment, Text

# Draws depend on the seed, the number of a request and the offset in its answer; a document is made
# of many requests, each with a number of its own.
REQUESTS = 2**16


@dataclasses.dataclass(frozen=True)
class InterleavedOptions:
    """How a document is written.

    Attributes:
      texts: how texts and sizes are drawn; without guidance.
      images: how codes are drawn. Guidance strengthens the texts: its second branch has the images
        so far, and the negative prompt for all texts.
      negative_prompt: text of that branch.
      max_images: the most images.
      max_new: the most tokens of all new texts together.
      first: number of the document, from 0 to 32767; its draws depend on the seeds and on it.
      quantized_cache: as in `generate`.
      progress: called with a line when a text or an image is finished.
    """

    texts: Sampling = Sampling()
    images: Sampling = Sampling()
    negative_prompt: str = ""
    max_images: int = 4
    max_new: int = 512
    first: int = 0
    quantized_cache: bool = False
    progress: Callable[[str], None] | None = None

    def __post_init__(self):
        if self.texts.guided:
            raise ValueError("Guidance is for images; the texts of a document have guidance 1.")
        if self.texts.whole_vocabulary:
            raise ValueError(
                "whole_vocabulary takes the grammar off, which says where an image may begin; "
                "leave it out."
            )
        if self.max_images < 1:
            raise ValueError(f"max_images must be at least 1, not {self.max_images}.")
        if self.max_new < 1:
            raise ValueError(f"max_new must be at least 1 token, not {self.max_new}.")
        if not 0 <= self.first < REQUESTS // 2:
            raise ValueError(f"first must be from 0 to {REQUESTS // 2 - 1}, not {self.first}.")


class Written(NamedTuple):
    """What a model wrote.

    Attributes:
      segments: texts with their ids, and images, in order; not the prompt.
      is_finished: whether the model ended it (EOS), not the context or `max_new`.
    """

    segments: list[Segment]
    is_finished: bool


def interleave(
    bundle: Bundle,
    segments: Sequence[Segment],
    sizes: Sequence[tuple[int, int]],
    options: InterleavedOptions = InterleavedOptions(),
) -> list[Segment]:
    """The texts and images with which the model goes on after the segments; see `write`."""
    return write(bundle, segments, sizes, options).segments


def write(
    bundle: Bundle,
    segments: Sequence[Segment],
    sizes: Sequence[tuple[int, int]],
    options: InterleavedOptions = InterleavedOptions(),
) -> Written:
    """Goes on after the segments with texts and images until EOS, or as far as there is room.

    Args:
      bundle: the model.
      segments: what is there already: texts, images, clips, in any order; none for a free document.
      sizes: (h, w) in codes that an image may have. Where none fits the rest of the context, no
        image begins.
      options: how tokens are drawn, and the limits.

    Raises:
      ValueError: no size is given, or none fits the context after the segments.
    """
    return _Writer(bundle, segments, sizes, options).write()


def warning(learnt: Sequence[str] | None) -> str:
    """A sentence if the model (`Bundle.learnt`) never saw texts and images in turns, or ""."""
    if learnt is None or "document" in learnt:
        return ""
    return (
        "the model was never trained on documents of texts and images in turns; it was trained on "
        f"{', '.join(learnt)}"
    )


class _Writer:
    """One document while it is written."""

    def __init__(
        self,
        bundle: Bundle,
        segments: Sequence[Segment],
        sizes: Sequence[tuple[int, int]],
        options: InterleavedOptions,
    ):
        self._bundle, self._options = bundle, options
        self._grammar, self._vocab = bundle.grammar, bundle.vocab
        self._before = list(segments)
        self._new: list[Segment] = []
        self._requests = 0
        grammar = self._grammar
        # Of each size the tokens behind BOI up to IMG, and the constraints behind it up to EOI.
        self._heads = {size: grammar.image_prompt((), *size)[2:].tolist() for size in sizes}
        layouts = {size: grammar.visual_layout("image", 1, *size) for size in self._heads}
        self._layouts = {size: layout[:-1] for size, layout in layouts.items()}
        self._check()
        text = [constraints.TEXT_OR_IMAGE, constraints.CHOICE]
        text_mask = np.resize(np.array(text, np.int32), max(options.max_new, len(text)))
        # A text takes one step a token, whatever the decoder.
        texts = dataclasses.replace(options.texts, decoder="sequential", window=None)
        stored = options.quantized_cache
        self._texts = Continuing(bundle, texts, [text_mask], len(self._heads), stored)
        self._images = Continuing(bundle, options.images, list(self._layouts.values()), 0, stored)

    def _check(self) -> None:
        if not self._heads:
            raise ValueError("There is no size for images; give at least one (h, w) in codes.")
        before = len(self._ids())
        if not self._fitting(before + 1):
            named = ", ".join(f"{h}x{w}" for h, w in self._heads)
            raise ValueError(
                f"No image fits the context of {self._bundle.max_context} tokens behind a prompt "
                f"of {before}: its size may be {named}; allow a smaller one, or shorten the prompt."
            )

    def write(self) -> Written:
        """The texts and images up to EOS or the limits."""
        while True:
            end = self._text()
            if end != self._vocab.boi:
                return Written(self._new, end == self._vocab.eos)
            self._image(self._size())

    def _text(self) -> int | None:
        """Adds the next text, unless it is empty; returns EOS, BOI, or None at a limit."""
        mask = self._text_mask()
        if not len(mask):
            return None
        ids = self._next(self._texts, self._ids(), mask)
        end = None
        if not self._vocab.is_text(ids[-1]):
            ids, end = ids[:-1], int(ids[-1])
        if len(ids):
            text = self._grammar.tokenizer.decode(ids.tolist())
            self._add(Text(text, ids=ids), f"text of {len(ids)} tokens")
        return end

    def _text_mask(self) -> np.ndarray:
        """The constraints of the next text, up to the limits."""
        before = len(self._ids())
        used = sum(len(segment.ids) for segment in self._new if isinstance(segment, Text))
        length = self._options.max_new - used
        if self._bundle.max_context is not None:
            length = min(length, self._bundle.max_context + 1 - before)
        mask = np.full(max(length, 0), constraints.TEXT, np.int32)
        images = sum(isinstance(segment, Image) for segment in self._new)
        if images < self._options.max_images:
            begins = before + 1 + np.arange(len(mask))
            mask[begins <= max(map(self._last_begin, self._heads))] = constraints.TEXT_OR_IMAGE
        return mask

    def _size(self) -> tuple[int, int]:
        """Draws a size, one token after the other, among those that fit."""
        begin = np.append(self._ids(), np.int32(self._vocab.boi))
        heads = {size: self._heads[size] for size in self._fitting(len(begin))}
        at = 0
        while len(heads) > 1:
            choices = sorted({head[at] for head in heads.values()})
            token = choices[0]
            if len(choices) > 1:
                same = next(iter(heads.values()))[:at]
                prompt = np.concatenate([begin, np.array(same, np.int32)])
                mask = np.array([constraints.CHOICE], np.int32)
                token = int(self._next(self._texts, prompt, mask, choices=tuple(choices))[0])
            heads = {size: head for size, head in heads.items() if head[at] == token}
            at += 1
        return next(iter(heads))

    def _image(self, size: tuple[int, int]) -> None:
        """Draws an image and adds it."""
        layout = self._layouts[size]
        prompt = self._grammar.image_prompt([*self._before, *self._new], *size)
        negative = self._negative(size) if self._options.images.guided else None
        answer = self._next(self._images, prompt, layout, negative=negative)
        codes = self._vocab.codes(answer[layout == constraints.VISUAL]).reshape(size)
        self._add(Image(codes), f"image of {size[0]}x{size[1]} codes")

    def _negative(self, size: tuple[int, int]) -> np.ndarray:
        """The prompt of the unconditional branch."""
        everything = [*self._before, *self._new]
        media = [segment for segment in everything if not isinstance(segment, Text)]
        text = Text(self._options.negative_prompt)
        return self._grammar.image_prompt([*media, text], *size)

    def _fitting(self, begin: int) -> list[tuple[int, int]]:
        """The sizes that fit the context behind so many tokens, the last of which is BOI."""
        return [size for size in self._heads if begin <= self._last_begin(size)]

    def _last_begin(self, size: tuple[int, int]) -> float:
        """How many tokens, BOI included, may stand before the size of an image."""
        context = self._bundle.max_context
        if context is None:
            return np.inf
        # The last token, EOI, is not read unless text follows.
        prompt = context + 1 - len(self._layouts[size])
        if self._options.images.guided and len(self._negative(size)) > prompt:
            return -1
        return prompt - len(self._heads[size])

    def _ids(self) -> np.ndarray:
        return self._grammar.prompt([*self._before, *self._new])

    def _next(
        self, continuing: Continuing, prompt: np.ndarray, mask: np.ndarray, **more
    ) -> np.ndarray:
        """The new tokens of one request."""
        number = self._options.first * REQUESTS + self._requests
        self._requests += 1
        return continuing.answer(Request(prompt, forced=mask, number=number, **more))

    def _add(self, segment: Segment, what: str) -> None:
        self._new.append(segment)
        if self._options.progress is not None:
            tokens = len(self._ids())
            self._options.progress(f"{what}; the document has {tokens} tokens")
