"""What the command does for the tasks chat and interleaved."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from emu3_jax.data import media
from emu3_jax.generate import codec, modalities
from emu3_jax.generate.completion.partly_given import spelled
from emu3_jax.generate.job import JobError
from emu3_jax.generate.open_ended import attached_images, chat_lines, interleaving
from emu3_jax.generate.open_ended.interleaving import InterleavedOptions
from emu3_jax.generate.open_ended.written_folder import free_folder, write_folder
from emu3_jax.interop.bundle import Bundle
from emu3_jax.models.vision.tokenizer import VisionTokenizerConfig
from emu3_jax.sequence import Image, Text


@dataclasses.dataclass(frozen=True)
class InterleavedJob:
    """Documents to write.

    Attributes:
      prompts: one for each document, or none for documents from the beginning.
      images: files that stand before each prompt.
      sizes: (h, w) in tokens that an image may have; none: those of the files.
      samples: documents for each prompt.
      options: how they are written; `first` is the number of the first document.
    """

    prompts: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    sizes: tuple[tuple[int, ...], ...] = ()
    samples: int = 1
    options: InterleavedOptions = InterleavedOptions()

    def __post_init__(self):
        if self.samples < 1:
            raise JobError(f"samples must be at least 1, not {self.samples}.")
        if self.samples > 1 and self.options.texts.greedy and self.options.images.greedy:
            raise JobError("With temperature 0 all samples are equal; set samples to 1.")
        if not (self.sizes or self.images):
            raise JobError(
                "interleaved needs the sizes that images may have: give --size=HxW, in tokens, or "
                "--ratio, one or several, or an --image, whose size they then have."
            )
        for size in self.sizes:
            if len(size) != 2 or min(size) < 1:
                raise JobError(f"size must be HxW, in tokens, not {spelled(size)!r}.")


# What the command asks for: a conversation under the options of its answers, or documents.
Asked = modalities.Options | InterleavedJob


def read(
    job: Asked,
    limits: media.PixelLimits,
    config: VisionTokenizerConfig,
) -> list[np.ndarray]:
    """The images of a job; a conversation reads its own as they come.

    Raises:
      MediaError: names a file that cannot be used.
    """
    files = job.images if isinstance(job, InterleavedJob) else ()
    return [attached_images.read_pixels(file, limits, config) for file in files]


def run(
    job: Asked,
    bundle: Bundle,
    limits: media.PixelLimits,
    output: str | None,
    shown: Sequence[np.ndarray],
    about: dict,
    report: Callable[[str], None],
) -> None:
    """Writes documents, or converses with the standard input.

    Args:
      job: what to do.
      bundle: with a vision tokenizer.
      limits: images of a conversation are resized to these.
      output: where the folders of documents are made.
      shown: the result of `read`.
      about: origin of model and tokenizer, written into each document.
      report: called with a line about each text, image and document, and with warnings.
    """
    if isinstance(job, InterleavedJob):
        write_documents(job, bundle, pathlib.Path(output), shown, about, report)
    else:
        chat_lines.converse(bundle, job, limits)


def write_documents(
    job: InterleavedJob,
    bundle: Bundle,
    output: pathlib.Path,
    shown: Sequence[np.ndarray],
    about: dict,
    report: Callable[[str], None],
) -> list[pathlib.Path]:
    """Writes one folder for each document; returns them.

    Args:
      job: what to write.
      bundle: with a vision tokenizer.
      output: where the folders are made; nothing that is there is replaced.
      shown: the images of the job, from `read`.
      about: origin of model and tokenizer, written into each document.
      report: called with a line about each text, image and document, and with warnings.
    """
    if text := interleaving.warning(bundle.learnt):
        report(f"Warning: {text}.")
    before = [attached_images.encoded(bundle, pixels) for pixels in shown]
    sizes = job.sizes or tuple(dict.fromkeys(image.codes.shape for image in before))
    folders = []
    for number, prompt in enumerate(p for p in job.prompts or ("",) for _ in range(job.samples)):
        first = job.options.first + number
        options = dataclasses.replace(job.options, first=first, progress=report)
        segments = [*before, *([Text(prompt)] if prompt else [])]
        written = interleaving.write(bundle, segments, sizes, options)
        images = [segment.codes for segment in written.segments if isinstance(segment, Image)]
        settings = {
            "task": "interleaved",
            "prompt": prompt,
            "images": job.images,
            "sizes": [spelled(size) for size in sizes],
            "texts": dataclasses.asdict(options.texts),
            "drawing": dataclasses.asdict(options.images),
            "negative_prompt": options.negative_prompt,
            "max_images": options.max_images,
            "max_new": options.max_new,
            "first": first,
            **about,
        }
        folder = free_folder(output)
        write_folder(folder, written, codec.decode(bundle, images), settings)
        report(f"{folder}  {prompt}{'' if written.is_finished else ' (ended by a limit)'}")
        folders.append(folder)
    return folders
