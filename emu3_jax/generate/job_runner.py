"""Runs a generation job: reads its files, generates, writes the answers.

The settings of a job are written beside every answer (into each PNG, each line of captions.jsonl),
so that any answer can be generated again.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.figures.contact_sheet import contact_sheet, tiled
from emu3_jax.files import write_atomically
from emu3_jax.generate import codec, modalities
from emu3_jax.generate.completion import given_files
from emu3_jax.generate.completion.partly_given import spelled
from emu3_jax.generate.job import Job
from emu3_jax.interop.bundle import Bundle
from emu3_jax.models.vision.tokenizer import VisionTokenizerConfig
from emu3_jax.sequence import Image, Text, Turn, Video

# Key of the PNG text chunk that holds the settings as JSON.
METADATA_KEY = "emu3_jax"
SHEET_COLUMNS = 8  # of the image that shows all images of a job, one sample each


class Shown(NamedTuple):
    """An image or a clip that is asked about, or that something is drawn after.

    Attributes:
      file: where it is from.
      pixels: uint8 [H, W, 3] or [T, H, W, 3], in the size that the vision tokenizer takes.
      fps: frames per second of a clip, 0 of an image.
    """

    file: str
    pixels: np.ndarray
    fps: float


def read_media(job: Job, limits: media.PixelLimits, config: VisionTokenizerConfig) -> list[Shown]:
    """The files of a job; needs no weights, so that a bad file is named before any are loaded.

    Args:
      job: of a task that reads nothing there are none.
      limits: images and clips are resized to these, clips frame by frame.
      config: of the vision tokenizer.

    Raises:
      MediaError: names the file that cannot be used, and clips of different rates where one rate
        is that of all that is drawn.
    """
    fit = functools.partial(media.smart_resize, limits=limits)
    shown = []
    for file in itertools.chain.from_iterable(job.sources):
        if job.reads == "video":
            part = (job.start, job.end)
            pixels, fps, _ = media.read_video(
                file, job.fps or None, job.max_frames, fit=fit, part=part
            )
        else:
            pixels, fps = media.read_image(file, fit=fit), 0.0
        try:
            shown.append(Shown(file, vision_codec.whole_tokens(config, pixels), fps))
        except ValueError as error:
            raise media.MediaError(f"{file}: {error}") from error
    if job.draws:
        _check_rates(shown)
    if job.completes:
        given_files.check(job, [one.pixels for one in shown], config)
    return shown


def _check_rates(shown: Sequence[Shown]) -> None:
    """MediaError unless all have one frame rate, to three decimals, as sequences state it."""
    for one in shown:
        if round(one.fps, 3) != round(shown[0].fps, 3):
            raise media.MediaError(
                f"{shown[0].file} has {shown[0].fps:g} frames per second, but {one.file} has "
                f"{one.fps:g}; set fps, at which both are read."
            )


def unlearnt(job: Job, learnt: Sequence[str] | None) -> str:
    """A sentence if the model was never trained on what the job asks for, or "".

    `learnt` is `Language.learnt`. Nothing is said if it is not known, nor if the model was trained
    on documents of any form (the task "document"), which may have been of this one.
    """
    asked = "chat" if job.chat else "document" if job.draws and job.reads else job.task
    if job.completes:
        asked = f"text_to_{job.makes}"
    if learnt is None or {asked, "document"} & set(learnt):
        return ""
    if job.chat:
        what = "chats, whose template --chat uses"
    elif asked == "document":
        what = f"documents with images or clips before what is drawn, as {job.task} needs"
    else:
        what = f"{asked}, as {'is asked of it' if asked == job.task else f'{job.task} needs'}"
    return f"the model was never trained on {what}; it was trained on {', '.join(learnt)}"


def drawn_after(job: Job, prompt: str, before: Sequence[Image | Video]) -> modalities.Prompt:
    """What the model reads before it draws, in the order of documents in training.

    An instruction follows the images to be edited (`data.sources.layouts.edit`). A caption comes
    before the first image of a clip, or the clip to go on from (`data.sources.continuation`).
    """
    if not before:
        return prompt
    text = (Text(prompt),) if prompt else ()
    return (*before, *text) if job.task == "edit" else (*text, *before)


def completed(job: Job, size: tuple[int, ...], before: Sequence[Image | Video]) -> tuple[int, ...]:
    """A size of `Job.sizes` with what it leaves out, which is as in the last of `before`."""
    missing = (3 if job.makes == "video" else 2) - len(size)
    return size + before[-1].codes.shape[-missing:] if missing else size


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs jobs with one model into one directory.

    Attributes:
      bundle: with a vision tokenizer.
      output: directory, made if missing; nothing in it is replaced: numbers of files go on after
        those that are there, and texts are appended to captions.jsonl.
      limits: images are resized to these before they are encoded.
      options: batch size, progress and stream; sampling and the rest come from the job.
      about: origin of model and tokenizer, written beside every answer.
    """

    bundle: Bundle
    output: pathlib.Path
    limits: media.PixelLimits
    options: modalities.Options
    about: dict

    def run(
        self,
        job: Job,
        report: Callable[[str], None] = print,
        shown: Sequence[Shown] | None = None,
    ) -> list[pathlib.Path]:
        """Runs a job; returns the files written.

        Args:
          job: what to generate.
          report: called with a line about each answer, and with warnings.
          shown: the result of `read_media`; None: it is read now.
        """
        if shown is None:
            shown = read_media(job, self.limits, self.bundle.vision.config)
        if warning := unlearnt(job, self.bundle.learnt):
            report(f"Warning: {warning}.")
        options = dataclasses.replace(
            self.options,
            sampling=job.sampling,
            negative_prompt=job.negative_prompt,
            max_new=job.max_new,
            candidates=job.candidates,
            first=job.first,
        )
        self.output.mkdir(parents=True, exist_ok=True)
        make = self._drawings if job.draws else self._texts
        return make(job, shown, options, report)

    def _settings(self, job: Job, number: int, source: int | None, **rest) -> dict:
        """Everything needed to generate answer `number` again, as one flat JSON object.

        `source` is the place in `job.media` of what it was made from, None if there is nothing.
        """
        sampling = dataclasses.asdict(job.sampling)
        model = {
            "special_names": self.bundle.grammar.special_names,
            "dtype": self.bundle.model.config.dtype,
        }
        if job.has_clips:
            video_format = self.bundle.grammar.video_format
            model |= {"fps": job.fps, "clips": job.clips, "video_format": video_format}
        if source is not None:
            rest["source"] = job.media[source]
            if job.task == "inpaint":
                rest["mask"] = job.masks[source % len(job.masks)]
            if job.goes_on:
                rest |= {"context": job.context, "stride": job.stride}
            if job.task == "image_to_video":
                rest["first_frame"] = job.first_frame
            rest |= {"min_pixels": self.limits.min_pixels, "max_pixels": self.limits.max_pixels}
        if job.reads == "video":
            rest |= {"start": job.start, "end": job.end, "max_frames": job.max_frames}
        number += job.first
        return {"task": job.task, **rest, **sampling, "first": number, **model, **self.about}

    def _drawings(
        self, job: Job, shown: Sequence[Shown], options: modalities.Options, report
    ) -> list[pathlib.Path]:
        fps = shown[0].fps if job.reads == "video" else job.fps
        codes, sizes = self._codes(job, self._blocks(job, shown), fps, options)
        begin, files = self._free_number(job.makes, job.first), []
        for i, pixels in enumerate(codec.decode(self.bundle, codes, job.clips)):
            prompt, _, source = job.drawings[i]
            settings = self._settings(
                job,
                i,
                source,
                prompt=prompt,
                candidates=job.candidates,
                negative_prompt=job.negative_prompt,
                size=spelled(sizes[i]),
            )
            stem = self.output / f"{job.makes}_{begin + i:05d}"
            if job.makes == "image":
                written = _write_image(stem, pixels, settings)
            else:
                settings["seconds"] = len(pixels) / fps
                written = _write_clip(stem, pixels, fps, settings)
            report(f"{written[0]}  {prompt}")
            files += written
        return files

    def _codes(
        self, job: Job, blocks: Sequence[Image | Video], fps: float, options: modalities.Options
    ) -> tuple[list[np.ndarray], list[tuple[int, ...]]]:
        """The codes of all drawings, and the size that asks for each of them."""
        if job.completes:
            codes = given_files.draw(job, self.bundle, blocks, options)
            return codes, [job.sizes[0] if job.goes_on else one.shape for one in codes]
        rest = iter(blocks)
        sources = [tuple(itertools.islice(rest, len(files))) for files in job.sources]
        prompts, sizes = [], []
        for one in job.drawings:
            before = () if one.source is None else sources[one.source]
            prompts.append(drawn_after(job, one.prompt, before))
            sizes.append(completed(job, one.size, before))
        if job.makes == "image":
            return modalities.draw_images(self.bundle, prompts, sizes, options), sizes
        factor = self.bundle.vision.config.temporal_downsample_factor
        seconds = {size[0]: size[0] * factor / fps for size in sizes}
        return modalities.draw_clips(self.bundle, prompts, sizes, fps, seconds, options), sizes

    def _texts(
        self, job: Job, shown: Sequence[Shown], options: modalities.Options, report
    ) -> list[pathlib.Path]:
        blocks = self._blocks(job, shown)
        labels = [one.file for one in shown for _ in range(job.samples)]
        questions = job.prompts * len(blocks) if len(job.prompts) == 1 else job.prompts
        prompts = []
        for i, block in enumerate(blocks):
            question = questions[i] if questions else None
            if job.chat:
                prompt = self.bundle.grammar.chat_prompt([Turn(question, media=(block,))])
            else:
                prompt = modalities.question_prompt(self.bundle, block, question)
            prompts += [prompt] * job.samples
        may_be_empty = job.chat or bool(questions)
        answers = modalities.continue_texts(self.bundle, prompts, options, may_be_empty, labels)
        lines = []
        for i, answer in enumerate(answers):
            position = i // job.samples
            settings = self._settings(
                job,
                i,
                position,
                question=questions[position] if questions else None,
                chat=job.chat,
                size=spelled(blocks[position].codes.shape),
                max_new=job.max_new,
            )
            lines.append(json.dumps({"text": answer, **settings}, ensure_ascii=False))
            report(f"{job.media[position]}  {answer}")
        file = self.output / "captions.jsonl"
        earlier = file.read_bytes() if file.exists() else b""
        write_atomically(file, earlier + ("\n".join(lines) + "\n").encode())
        return [file]

    def _free_number(self, kind: str, first: int) -> int:
        """`first`, or the number after the last file of a kind."""
        names = [re.match(rf"{kind}_(\d+)\.", file.name) for file in self.output.iterdir()]
        return max([first, *(int(name[1]) + 1 for name in names if name)])

    def _blocks(self, job: Job, shown: Sequence[Shown]) -> list[Image] | list[Video]:
        """The codes of images or clips; of clips, one at a time is in memory."""
        tokenizer = (self.bundle.vision, self.bundle.vision_variables)
        clips = job.reads == "video"
        rows = 1 if clips else codec.BATCH_SIZE
        codes = vision_codec.encode(tokenizer, [one.pixels for one in shown], rows, job.clips)
        if not clips:
            return list(map(Image, codes))
        factor = self.bundle.vision.config.temporal_downsample_factor
        return [
            Video(code, one.fps, len(code) * factor / one.fps)
            for code, one in zip(codes, shown, strict=True)
        ]


def write_sheet(job: Job, shown: Sequence[Shown], files: Sequence[pathlib.Path]) -> pathlib.Path:
    """Writes one image of all `files` of a job that draws images, with what was read for each.

    With several samples a row is what was read, if anything, and its samples; otherwise the images
    read are above those drawn. Of several images of an edit the last is shown.
    """
    drawn = [media.read_image(file) for file in files]
    ends = list(itertools.accumulate(map(len, job.sources)))
    read = [shown[ends[one.source] - 1].pixels for one in job.drawings if one.source is not None]
    if job.samples > 1:
        starts = range(0, len(drawn), job.samples)
        rows = [[*read[i : i + 1], *drawn[i : i + job.samples]] for i in starts]
    else:
        rows = tiled(SHEET_COLUMNS, *filter(len, (read, drawn)))
    first, last = (file.stem.removeprefix("image_") for file in (files[0], files[-1]))
    sheet = files[0].with_name(f"images_{first}-{last}.png")
    media.write_png(sheet, contact_sheet(rows))
    return sheet


def _write_image(stem: pathlib.Path, pixels: np.ndarray, settings: dict) -> list[pathlib.Path]:
    """uint8 [H, W, 3] as PNG with its settings in it; returns the file."""
    settings = settings | {"height": pixels.shape[0], "width": pixels.shape[1]}
    file = stem.with_suffix(".png")
    media.write_png(file, pixels, {METADATA_KEY: json.dumps(settings, ensure_ascii=False)})
    return [file]


def _write_clip(
    stem: pathlib.Path, frames: np.ndarray, fps: float, settings: dict
) -> list[pathlib.Path]:
    """uint8 [T, H, W, 3] as WebP and MP4 with their settings beside them; returns the files."""
    files = [stem.with_suffix(ending) for ending in (".webp", ".mp4", ".json")]
    media.write_webp(files[0], frames, fps)
    media.write_mp4(files[1], frames, fps)
    text = json.dumps(settings, ensure_ascii=False, indent=1) + "\n"
    write_atomically(files[2], text.encode())
    return files
