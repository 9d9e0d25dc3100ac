"""From one modality to another, as plain functions: captions to images and clips, and back.

Evaluators and the command call these. They share a `Bundle` (model, weights, grammar) and `Options`
(sampling and batch size). They run on the mesh that is set, and the bundle's weights must be on it.
With several processes, each makes the same calls and gets the same answers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from emu3_jax.generate import best_of
from emu3_jax.generate.completion import partly_given
from emu3_jax.generate.decoding.engine import generate
from emu3_jax.generate.decoding.requests import CancelledError, Request
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.serving import Serving
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
      quantized_cache: see `generate`; for weights, `train.weights.load_language_model`.
      progress: called with a line before and after each batch, and now and then in between.
      stream: for texts: called as stream(position of the answer in the list, next piece of it)
        while they are generated; the pieces of an answer together are that answer.
      on_row: for images and clips: called as on_row(position of the answer in the list, complete
        rows of codes, rows to draw, codes so far or -1) while they are drawn. Rows of candidates
        are counted together; the codes are those of one.
      cancel: asked every few tokens; True ends the call with `CancelledError`, which carries the
        codes or texts that are finished (of candidates none, since they are not compared yet).
      served_by: the thread that owns the model, if several ask it at once.
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
    on_row: Callable[[int, int, int, np.ndarray], None] | None = None
    cancel: Callable[[], bool] | None = None
    served_by: Serving | None = None

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
    given: Sequence[np.ndarray | None] | None = None,
) -> list[np.ndarray]:
    """As `text_to_image`, with a size (h, w) per image: codes int32 [h, w] each.

    Instead of a caption there may be segments, such as images to be edited and an instruction.
    Their unconditional branch has the images and clips, and the negative prompt for all texts.
    `numbers` select the draws of each, whatever the list; None counts from `options.first`.
    `given` are codes of each that are known, -1 where one is to be drawn; see `partly_given`.
    """

    def prompt(before: Prompt, at: int) -> np.ndarray:
        return bundle.grammar.image_prompt(before, *sizes[at])

    def block(codes: np.ndarray, at: int) -> Image:
        del at
        return Image(codes)

    def layout(size: tuple[int, int]) -> np.ndarray:
        return bundle.grammar.visual_layout("image", 1, *size)

    return _visual(bundle, captions, sizes, prompt, layout, block, options, numbers, given)


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

    The prompt states `fps` and `seconds` of the decoded clip, as training documents do.
    """
    sizes = [(t, h, w)] * len(captions)
    codes = draw_clips(bundle, captions, sizes, fps, {t: seconds}, options)
    return np.stack(codes) if codes else np.zeros((0, t, h, w), np.int32)


def draw_clips(
    bundle: Bundle,
    captions: Sequence[Prompt],
    sizes: Sequence[tuple[int, int, int]],
    fps: float | Sequence[float],
    seconds: Mapping[int, float] | Sequence[float],
    options: Options = Options(),
    numbers: Sequence[int] | None = None,
    given: Sequence[np.ndarray | None] | None = None,
) -> list[np.ndarray]:
    """As `text_to_video`, with a size (t, h, w) per clip: codes int32 [t, h, w] each.

    `fps` is one for all, or one each; `seconds` are the durations by latent frames, or one each.
    Segments instead of a caption, `numbers` and `given` as in `draw_images`.
    """
    rates = [fps] * len(sizes) if isinstance(fps, int | float) else fps
    if isinstance(seconds, Mapping):
        seconds = [seconds[size[0]] for size in sizes]

    def prompt(before: Prompt, at: int) -> np.ndarray:
        return bundle.grammar.video_prompt(before, *sizes[at], rates[at], seconds[at])

    def layout(size: tuple[int, int, int]) -> np.ndarray:
        return bundle.grammar.visual_layout("video", *size)

    def block(codes: np.ndarray, at: int) -> Video:
        return Video(codes, rates[at], seconds[at])

    return _visual(bundle, captions, sizes, prompt, layout, block, options, numbers, given)


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
    bundle: Bundle, captions, sizes, prompt, layout, block, options: Options, numbers, given
) -> list[np.ndarray]:
    """Codes of each size, drawn after prompt(caption, position) and constrained by layout(size).

    block(codes, position) makes the segment of a document from them.
    """
    check_list("captions", captions)
    captions = [c if isinstance(c, str) else tuple(c) for c in captions]
    layout = functools.cache(layout)

    def negative(media, at: int) -> np.ndarray | None:
        """The prompt of the second branch, formatted as the first; None without guidance."""
        without = (*media, Text(options.negative_prompt))
        return prompt(without, at) if options.sampling.guided else None

    n = options.candidates
    if n > 1 and not all(isinstance(caption, str) for caption in captions):
        raise ValueError("Candidates are compared by captions; draw one after other segments.")
    numbers = _numbers(numbers, captions, options)
    given = [None] * len(captions) if given is None else given
    requests, blocks = [], []
    for at, (c, size, codes) in enumerate(zip(captions, sizes, given, strict=True)):
        label = partly_given.named(c, size)
        drawn = partly_given.block(bundle.vocab, layout(size), size, codes, label)
        begins = [
            None if ids is None else np.concatenate([ids, drawn.begin])
            for ids in (prompt(c, at), negative(_media(c), at))
        ]
        blocks += [drawn] * n
        requests += [
            Request(*begins, drawn.mask, number=numbers[at] * n + i, label=label) for i in range(n)
        ]
    rows = options.on_row and partly_given.RowProgress(blocks, n, options.on_row, bundle.vocab)
    try:
        answers = _generate(bundle, requests, options, rows)
    except CancelledError as stopped:
        finished = stopped.answers.items() if n == 1 else ()
        done = {at: blocks[at].completed(answer, bundle.vocab) for at, answer in finished}
        raise CancelledError(done, len(captions)) from None
    codes = [
        drawn.completed(answer, bundle.vocab) for answer, drawn in zip(answers, blocks, strict=True)
    ]
    if n == 1 or not codes:
        return codes
    kept = best_of.best(
        bundle,
        [block(c, at // n) for at, c in enumerate(codes)],
        [caption for caption in captions for _ in range(n)],
        n,
        options.batch_size,
        options.progress,
    )
    return [codes[i] for i in kept]


def _media(prompt: Prompt) -> tuple[Segment, ...]:
    """The segments of a prompt that guidance keeps in both branches."""
    return () if isinstance(prompt, str) else tuple(s for s in prompt if not isinstance(s, Text))


def _texts(bundle: Bundle, blocks, questions, options: Options) -> list[str]:
    """What the model generates after each block and its question, if there is one."""
    questions = [None] * len(blocks) if questions is None else questions
    check_list("questions", questions)
    if len(questions) != len(blocks):
        raise ValueError(f"There are {len(blocks)} images or clips and {len(questions)} questions.")
    pairs = zip(blocks, questions, strict=True)
    prompts = [question_prompt(bundle, b, q) for b, q in pairs]
    labels = [f"{type(block).__name__} {i}" for i, block in enumerate(blocks)]
    return continue_texts(bundle, prompts, options, questions[:1] != [None], labels)


def check_list(name: str, texts: Sequence[str | None]) -> None:
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

    def text(answer: np.ndarray) -> str:
        return tokenizer.decode(answer[bundle.vocab.is_text(answer)].tolist())

    try:
        answers = _generate(bundle, requests, options, show if options.stream else None)
    except CancelledError as stopped:
        done = {at: text(answer) for at, answer in stopped.answers.items()}
        raise CancelledError(done, len(requests)) from None
    for position, decoder in enumerate(decoders if options.stream else ()):
        if rest := decoder.finish():
            options.stream(position, rest)
    return [text(answer) for answer in answers]


def _numbers(numbers: Sequence[int] | None, prompts: Sequence, options: Options) -> Sequence[int]:
    """The number of each request; they count from `options.first` if none are given."""
    return range(options.first, options.first + len(prompts)) if numbers is None else numbers


def _generate(
    bundle: Bundle, requests: list[Request], options: Options, stream=None
) -> list[np.ndarray]:
    if options.served_by is not None:
        return options.served_by.generate(requests, options.sampling, stream, options.cancel)
    return generate(
        *(bundle.model, bundle.variables["params"], requests, options.sampling, bundle.vocab),
        batch_size=options.batch_size,
        max_context=bundle.max_context,
        quantized_cache=options.quantized_cache,
        progress=options.progress,
        stream=stream,
        cancel=options.cancel,
    )
