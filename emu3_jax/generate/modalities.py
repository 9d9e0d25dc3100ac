"""From one modality to another, as plain functions: captions to images and clips, and back.

Evaluators and the command call these. They share a `Bundle` (model, weights, grammar) and `Options`
(sampling and batch size). They run on the mesh that is set, and the bundle's weights must be on it.
With several processes, each makes the same calls and gets the same answers.
"""

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from emu3_jax.generate import best_of
from emu3_jax.generate.decoding.engine import generate
from emu3_jax.generate.decoding.requests import Request
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.interop.bundle import Bundle
from emu3_jax.sequence import Image, Segment, Text, Video
from emu3_jax.text import StreamDecoder

# What an image or a clip is drawn after: a caption, or any segments.
Prompt = str | Sequence[Segment]


@dataclasses.dataclass(frozen=True)
class Options:
    """How to sample, and how many at a time.

    Attributes:
      sampling: temperature, filters, guidance, seed.
      negative_prompt: text of the unconditional branch, used if `sampling.guidance` is not 1.
      max_new: the longest caption or answer in tokens.
      candidates: images or clips drawn for each one kept: the one after which the model finds the
        caption likeliest (`best_of`).
      first: number of the first answer; its draws depend on the seed, this number and `candidates`.
      batch_size: the most requests that run together.
      quantized_cache: see `generate`. Weights are quantized when they are loaded
        (`train.weights.load_language_model`).
      progress: called with a line before and after each batch.
      stream: for texts: called as stream(position of the answer in the list, next piece of it)
        while they are generated; the pieces of an answer together are that answer.
    """

    sampling: Sampling = Sampling()
    negative_prompt: str = ""
    max_new: int = 128
    candidates: int = 1
    first: int = 0
    batch_size: int = 16
    quantized_cache: bool = False
    progress: Callable[[str], None] | None = None
    stream: Callable[[int, str], None] | None = None

    def __post_init__(self):
        check_candidates(self.candidates, self.sampling)


def check_candidates(candidates: int, sampling: Sampling) -> None:
    """ValueError if this number of candidates cannot be drawn, or all would be equal."""
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, not {candidates}.")
    if candidates > 1 and sampling.greedy:
        raise ValueError("With temperature 0 all candidates are equal; set candidates to 1.")


def text_to_image(
    bundle: Bundle, captions: Sequence[str], h: int, w: int, options: Options = Options()
) -> np.ndarray:
    """Draws one image per caption: codes int32 [N, h, w]. Repeat a caption for more samples."""
    codes = draw_images(bundle, captions, [(h, w)] * len(captions), options)
    return np.stack(codes) if codes else np.zeros((0, h, w), np.int32)


def draw_images(
    bundle: Bundle,
    captions: Sequence[Prompt],
    sizes: Sequence[tuple[int, int]],
    options: Options = Options(),
    numbers: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """As `text_to_image`, with a size (h, w) per image: codes int32 [h, w] each.

    Instead of a caption there may be segments, such as images to be edited and an instruction.
    Their unconditional branch has the images and clips, and the negative prompt for all texts.
    `numbers` select the draws of each, whatever the list; None counts from `options.first`.
    """

    def prompt(before: Prompt, size: tuple[int, int]) -> np.ndarray:
        return bundle.grammar.image_prompt(before, *size)

    def layout(size: tuple[int, int]) -> np.ndarray:
        return bundle.grammar.visual_layout("image", 1, *size)

    return _visual(bundle, captions, sizes, prompt, layout, Image, options, numbers)


def text_to_video(
    bundle: Bundle,
    captions: Sequence[str],
    t: int,
    h: int,
    w: int,
    fps: float,
    seconds: float,
    options: Options = Options(),
) -> np.ndarray:
    """Draws one clip per caption: codes int32 [N, t, h, w].

    `fps` and `seconds` describe the decoded clip; the prompt states them as training documents do.
    """
    sizes = [(t, h, w)] * len(captions)
    codes = draw_clips(bundle, captions, sizes, fps, {t: seconds}, options)
    return np.stack(codes) if codes else np.zeros((0, t, h, w), np.int32)


def draw_clips(
    bundle: Bundle,
    captions: Sequence[Prompt],
    sizes: Sequence[tuple[int, int, int]],
    fps: float,
    seconds: Mapping[int, float],
    options: Options = Options(),
    numbers: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """As `text_to_video`, with a size (t, h, w) per clip: codes int32 [t, h, w] each.

    `seconds[t]` is the duration of a clip of t latent frames. Instead of a caption there may be
    segments, as in `draw_images`: the first image, or the clip to go on from. `numbers` as there.
    """

    def prompt(before: Prompt, size: tuple[int, int, int]) -> np.ndarray:
        return bundle.grammar.video_prompt(before, *size, fps, seconds[size[0]])

    def layout(size: tuple[int, int, int]) -> np.ndarray:
        return bundle.grammar.visual_layout("video", *size)

    def block(codes: np.ndarray) -> Video:
        return Video(codes, fps, seconds[len(codes)])

    return _visual(bundle, captions, sizes, prompt, layout, block, options, numbers)


def caption_images(
    bundle: Bundle,
    codes: Sequence[np.ndarray],
    options: Options = Options(),
    questions: Sequence[str] | None = None,
) -> list[str]:
    """Texts that the model generates after images; a caption has at least one token.

    In pretraining EOS follows an image without a prompt (`null_prompt`). A model that is unsure of
    the first word would therefore choose EOS.

    Args:
      bundle: the model.
      codes: int32 [h, w] each; sizes may differ.
      options: how to sample; guidance is not used.
      questions: text after each image, which the answer continues; None for captions.

    Returns:
      One text per image, without EOS.
    """
    return _texts(bundle, [Image(c) for c in codes], questions, options)


def caption_videos(
    bundle: Bundle,
    codes: Sequence[np.ndarray],
    fps: float,
    seconds: float,
    options: Options = Options(),
    questions: Sequence[str] | None = None,
) -> list[str]:
    """As `caption_images`, for clips of one rate and duration: codes int32 [t, h, w] each."""
    return _texts(bundle, [Video(c, fps, seconds) for c in codes], questions, options)


def _visual(
    bundle: Bundle, captions, sizes, prompt, layout, block, options: Options, numbers
) -> list[np.ndarray]:
    """Codes of each size, drawn after prompt(caption, size) under the constraints of layout(size).

    block(codes) makes the segment of a document from them.
    """
    _check_list("captions", captions)
    captions = [c if isinstance(c, str) else tuple(c) for c in captions]
    layout = functools.cache(layout)

    @functools.cache
    def negative(media, size) -> np.ndarray | None:
        """The prompt of the second branch, formatted as the first; None without guidance."""
        without = (*media, Text(options.negative_prompt))
        return prompt(without, size) if options.sampling.guided else None

    n = options.candidates
    if n > 1 and not all(isinstance(caption, str) for caption in captions):
        raise ValueError("Candidates are compared by captions; draw one after other segments.")
    numbers = _numbers(numbers, captions, options)
    drawings = [pair for pair in zip(captions, sizes, strict=True) for _ in range(n)]
    requests = [
        Request(
            prompt(c, size),
            negative(_media(c), size),
            layout(size),
            number=numbers[at // n] * n + at % n,
            label=_named(c, size),
        )
        for at, (c, size) in enumerate(drawings)
    ]
    answers = _generate(bundle, requests, options)
    codes = [
        bundle.vocab.codes(answer[layout(size) < 0]).reshape(size)
        for answer, (_, size) in zip(answers, drawings, strict=True)
    ]
    if n == 1 or not codes:
        return codes
    kept = best_of.best(
        bundle,
        [block(c) for c in codes],
        [caption for caption, _ in drawings],
        n,
        options.batch_size,
        options.progress,
    )
    return [codes[i] for i in kept]


def _media(prompt: Prompt) -> tuple[Segment, ...]:
    """The segments of a prompt that guidance keeps in both branches."""
    return () if isinstance(prompt, str) else tuple(s for s in prompt if not isinstance(s, Text))


def _named(prompt: Prompt, size: tuple[int, ...]) -> str:
    """What messages call an image or a clip to draw."""
    if not isinstance(prompt, str):
        prompt = " ".join(segment.text for segment in prompt if isinstance(segment, Text))
    short = textwrap.shorten(prompt, 60, placeholder="…")
    return f"The prompt {short!r} at {'x'.join(map(str, size))}"


def _texts(bundle: Bundle, blocks, questions, options: Options) -> list[str]:
    """What the model generates after each block and its question, if there is one."""
    if questions is None:
        questions = [None] * len(blocks)
    _check_list("questions", questions)
    if len(questions) != len(blocks):
        raise ValueError(f"There are {len(blocks)} images or clips and {len(questions)} questions.")
    pairs = zip(blocks, questions, strict=True)
    prompts = [question_prompt(bundle, b, q) for b, q in pairs]
    labels = [f"{type(block).__name__} {i}" for i, block in enumerate(blocks)]
    return continue_texts(bundle, prompts, options, questions[:1] != [None], labels)


def _check_list(name: str, texts: Sequence[str | None]) -> None:
    """ValueError for one string, which would count as a list of its letters."""
    if isinstance(texts, str):
        raise ValueError(f"{name} must be a list of texts, not one text; pass [{texts!r}].")


def question_prompt(bundle: Bundle, block: Image | Video, question: str | None) -> np.ndarray:
    """Ids of the block and of the question after it, if there is one (the Stage1 template)."""
    segments = (block,) if question is None else (block, Text(question))
    return bundle.grammar.understanding_prompt(segments)


def continue_texts(
    bundle: Bundle,
    prompts: Sequence[np.ndarray],
    options: Options,
    may_be_empty: bool,
    labels: Sequence[str],
    numbers: Sequence[int] | None = None,
) -> list[str]:
    """The text that the model generates after each prompt int32 [P], without EOS.

    An answer has at most `options.max_new` tokens, fewer if the model's context ends before.
    `labels` are what messages call the prompts. `numbers` select their draws (`Request.number`);
    None counts from `options.first`.
    """

    def longest(prompt: np.ndarray) -> int:
        if bundle.max_context is None:
            return options.max_new
        # The last new token is not read. A prompt longer than the context is refused by the engine.
        return min(options.max_new, max(1, bundle.max_context + 1 - len(prompt)))

    numbers = _numbers(numbers, prompts, options)
    requests = [
        Request(p, max_new=longest(p), may_be_empty=may_be_empty, label=label, number=number)
        for p, label, number in zip(prompts, labels, numbers, strict=True)
    ]
    tokenizer = bundle.grammar.tokenizer
    decoders = [StreamDecoder(tokenizer) for _ in prompts]

    def show(position: int, ids: np.ndarray) -> None:
        piece = decoders[position].feed(ids[bundle.vocab.is_text(ids)].tolist())
        if piece:
            options.stream(position, piece)

    answers = _generate(bundle, requests, options, show if options.stream else None)
    for position, decoder in enumerate(decoders if options.stream else ()):
        if rest := decoder.finish():
            options.stream(position, rest)
    decode = tokenizer.decode
    return [decode(answer[bundle.vocab.is_text(answer)].tolist()) for answer in answers]


def _numbers(numbers: Sequence[int] | None, prompts: Sequence, options: Options) -> Sequence[int]:
    """The number of each request; they count from `options.first` if none are given."""
    return range(options.first, options.first + len(prompts)) if numbers is None else numbers


def _generate(
    bundle: Bundle, requests: list[Request], options: Options, stream=None
) -> list[np.ndarray]:
    return generate(
        bundle.model,
        bundle.variables["params"],
        requests,
        options.sampling,
        bundle.vocab,
        batch_size=options.batch_size,
        max_context=bundle.max_context,
        quantized_cache=options.quantized_cache,
        progress=options.progress,
        stream=stream,
    )
