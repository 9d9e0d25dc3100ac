"""From a question to what the model reads, and from there to its answers.

Prompts follow the released chat form (`sequence.chat`): "{system} USER: {images}{text}.
ASSISTANT:", with the template's own period, so one at the end of the text is taken away.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from emu3_jax import sequence
from emu3_jax.evaluate.benchmarks.benchmark import Question
from emu3_jax.generate import modalities, scoring
from emu3_jax.interop.bundle import Bundle
from emu3_jax.progress import Progress
from emu3_jax.sequence import Document, Image, Segment, Text, Turn
from emu3_jax.sequence.chat import prompt_segments, without_period

# Where an image belongs in a text; numbers begin with 1, as MMMU has them.
MARK = re.compile(r"<image (\d+)>")


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """A question as the model reads it.

    Attributes:
      segments: the prompt up to the answer.
      shown: the same as text, an image as <image 32x48> with its size in codes.
      ids: int32 [P], its tokens.
    """

    segments: tuple[Segment, ...]
    shown: str
    ids: np.ndarray


def ask(bundle: Bundle, text: str, codes: Sequence[np.ndarray]) -> Asked:
    """Makes the prompt of one question.

    Args:
      bundle: the model.
      text: what a template made; "<image 2>" stands where the second image belongs, and images
        without a mark come before the text.
      codes: of each image, int32 [h, w].

    Raises:
      ValueError: a mark of an image that there is not.
    """
    blocks = [Image(one) for one in codes]
    pieces = MARK.split(without_period(text))  # text, number, text, number, …, text
    parts: list[str | Image] = []
    used = set()
    for at, piece in enumerate(pieces):
        if at % 2 == 0:
            parts.append(piece)
            continue
        if not 1 <= int(piece) <= len(blocks):
            raise ValueError(f"the text names <image {piece}>, and there are {len(blocks)} images")
        used.add(int(piece) - 1)
        parts.append(blocks[int(piece) - 1])
    before = [block for at, block in enumerate(blocks) if at not in used]
    segments = tuple(prompt_segments([Turn((*before, *parts))]))
    return Asked(segments, "".join(map(_shown, segments)), bundle.grammar.prompt(segments))


def answered(bundle: Bundle, asked: Asked, text: str) -> sequence.Sequence:
    """The document of a prompt and its answer, which alone is scored."""
    return bundle.grammar.build(Document((*asked.segments, Text(text))))


def check_length(bundle: Bundle, asked: Asked, answers: Iterable[str] = ()) -> None:
    """ValueError if the model cannot read a prompt, or one of these answers behind it."""
    lengths = [len(answered(bundle, asked, text)) - 1 for text in answers]
    longest = max([len(asked.ids), *lengths])
    if bundle.max_context is not None and longest > bundle.max_context:
        what = "the prompt and an option have" if lengths else "the prompt has"
        raise ValueError(f"{what} {longest} tokens, more than the context of {bundle.max_context}")


def answer(
    bundle: Bundle,
    asked: Sequence[Asked],
    options: modalities.Options,
    labels: Sequence[str],
    numbers: Sequence[int],
) -> list[str]:
    """The text that the model generates after each prompt; `numbers` select the draws."""
    prompts = [one.ids for one in asked]
    return modalities.continue_texts(bundle, prompts, options, True, labels, numbers)


def option_likelihoods(
    bundle: Bundle,
    asked: Sequence[Asked],
    questions: Sequence[Question],
    batch_size: int,
    progress: Progress,
) -> list[dict[str, float]]:
    """Log-likelihood per token of each option's text, with EOS, as the answer to each prompt.

    Prompts with their options must fit into the model's context (`check_length`).
    """
    documents = {
        (index, letter): [answered(bundle, prompt, text)]
        for index, (prompt, question) in enumerate(zip(asked, questions, strict=True))
        for letter, text in question.options.items()
    }
    fitted = scoring.fit(documents, bundle.max_context)
    counter = progress.counter("tokens of options", fitted.targets)
    tally = scoring.score(bundle, fitted, batch_size, counter)
    means = -tally.nll.sum(axis=1) / tally.count.sum(axis=1)
    likelihoods: list[dict[str, float]] = [{} for _ in asked]
    for (index, letter), mean in zip(tally.tasks, means, strict=True):
        likelihoods[index][letter] = float(mean)
    return likelihoods


def likeliest(likelihoods: Mapping[str, float]) -> str:
    """The letter of the largest likelihood; the first of equal ones."""
    return max(likelihoods, key=lambda letter: likelihoods[letter])


def _shown(segment: Segment) -> str:
    if isinstance(segment, Text):
        return segment.text
    return f"<image {'x'.join(map(str, segment.codes.shape))}>"
