"""Runs a generation job: reads its files, generates, writes the answers.

The settings of a job are written beside every answer (into each PNG, each line of captions.jsonl),
so that any answer can be generated again.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.files import write_atomically
from emu3_jax.generate import codec, modalities
from emu3_jax.generate.job import Job, spelled
from emu3_jax.interop.bundle import Bundle
from emu3_jax.models.vision.tokenizer import VisionTokenizerConfig
from emu3_jax.sequence import Image, Turn, Video

# Key of the PNG text chunk that holds the settings as JSON.
METADATA_KEY = "emu3_jax"


class Shown(NamedTuple):
    """An image or a clip that a question is about.

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
      job: nothing is read if it draws.
      limits: images and clips are resized to these, clips frame by frame.
      config: of the vision tokenizer.

    Raises:
      MediaError: names the file that cannot be used.
    """
    fit = functools.partial(media.smart_resize, limits=limits)
    shown = []
    for file in job.media:
        if job.is_video:
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
    return shown


def unlearnt(job: Job, learnt: Sequence[str] | None) -> str:
    """A sentence if the model was never trained on what the job asks for, or "".

    `learnt` is `Language.learnt`. Nothing is said if it is not known, nor if the model was trained
    on documents of any form (the task "document"), which may have been of this one.
    """
    asked = "chat" if job.chat else job.task
    if learnt is None or {asked, "document"} & set(learnt):
        return ""
    what = "chats, whose template --chat uses" if job.chat else f"{asked}, as is asked of it"
    return f"the model was never trained on {what}; it was trained on {', '.join(learnt)}"


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
        if not job.draws:
            return self._texts(job, shown, options, report)
        return (
            self._clips(job, options, report)
            if job.is_video
            else self._images(job, options, report)
        )

    def _settings(self, job: Job, number: int, **rest) -> dict:
        """Everything needed to generate answer `number` again, as one flat JSON object."""
        sampling = dataclasses.asdict(job.sampling)
        model = {
            "special_names": self.bundle.grammar.special_names,
            "dtype": self.bundle.model.config.dtype,
        }
        if job.is_video:
            video_format = self.bundle.grammar.video_format
            model |= {"fps": job.fps, "clips": job.clips, "video_format": video_format}
        number += job.first
        return {"task": job.task, **rest, **sampling, "first": number, **model, **self.about}

    def _images(self, job: Job, options: modalities.Options, report) -> list[pathlib.Path]:
        captions, sizes = zip(*job.drawings, strict=True)
        codes = modalities.draw_images(self.bundle, captions, sizes, options)
        begin, files = self._free_number("image", job.first), []
        for i, image in enumerate(codec.decode(self.bundle, codes)):
            settings = self._settings(
                job,
                i,
                prompt=captions[i],
                candidates=job.candidates,
                negative_prompt=job.negative_prompt,
                size=spelled(sizes[i]),
                height=image.shape[0],
                width=image.shape[1],
            )
            file = self.output / f"image_{begin + i:05d}.png"
            media.write_png(file, image, {METADATA_KEY: json.dumps(settings, ensure_ascii=False)})
            report(f"{file}  {captions[i]}")
            files.append(file)
        return files

    def _clips(self, job: Job, options: modalities.Options, report) -> list[pathlib.Path]:
        captions, sizes = zip(*job.drawings, strict=True)
        factor = self.bundle.vision.config.temporal_downsample_factor
        seconds = {size[0]: size[0] * factor / job.fps for size in sizes}
        codes = modalities.draw_clips(self.bundle, captions, sizes, job.fps, seconds, options)
        begin, files = self._free_number("video", job.first), []
        for i, frames in enumerate(codec.decode(self.bundle, codes, job.clips)):
            settings = self._settings(
                job,
                i,
                prompt=captions[i],
                candidates=job.candidates,
                negative_prompt=job.negative_prompt,
                size=spelled(sizes[i]),
                seconds=seconds[sizes[i][0]],
            )
            stem = self.output / f"video_{begin + i:05d}"
            media.write_webp(stem.with_suffix(".webp"), frames, job.fps)
            media.write_mp4(stem.with_suffix(".mp4"), frames, job.fps)
            text = json.dumps(settings, ensure_ascii=False, indent=1) + "\n"
            write_atomically(stem.with_suffix(".json"), text.encode())
            report(f"{stem}.webp  {captions[i]}")
            files += [stem.with_suffix(s) for s in (".webp", ".mp4", ".json")]
        return files

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
            question = questions[position] if questions else None
            source = job.media[position]
            settings = self._settings(
                job,
                i,
                source=source,
                question=question,
                chat=job.chat,
                size=spelled(blocks[position].codes.shape),
                max_new=job.max_new,
                min_pixels=self.limits.min_pixels,
                max_pixels=self.limits.max_pixels,
            )
            if job.is_video:
                settings |= {"start": job.start, "end": job.end, "max_frames": job.max_frames}
            lines.append(json.dumps({"text": answer, **settings}, ensure_ascii=False))
            report(f"{source}  {answer}")
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
        rows = 1 if job.is_video else codec.BATCH_SIZE
        codes = vision_codec.encode(tokenizer, [one.pixels for one in shown], rows, job.clips)
        if not job.is_video:
            return list(map(Image, codes))
        factor = self.bundle.vision.config.temporal_downsample_factor
        return [
            Video(code, one.fps, len(code) * factor / one.fps)
            for code, one in zip(codes, shown, strict=True)
        ]
