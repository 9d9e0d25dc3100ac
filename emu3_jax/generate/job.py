"""The work of one `generate` command, all of it checked before it starts.

A `Job` holds everything that decides the result. Its `settings` are written beside every answer
(into each PNG, each line of captions.jsonl), so that any answer can be generated again.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.files import write_atomically
from emu3_jax.generate import codec, modalities, presets
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.interop.bundle import Bundle
from emu3_jax.sequence import Image, Turn, Video, image_size

GENERATION_TASKS = ("text_to_image", "image_to_text", "text_to_video", "video_to_text")
# Key of the PNG text chunk that holds the settings as JSON.
METADATA_KEY = "emu3_jax"


class JobError(ValueError):
    """Options that do not go together; the message names them and what to do."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to generate.

    Attributes:
      task: one of GENERATION_TASKS.
      prompts: captions to draw, or questions: none, one for all media, or one per file.
      media: files to read, for the tasks that end in text.
      sizes: tokens (h, w) of images or (t, h, w) of clips, for the tasks that draw: one for all
        prompts, several for one prompt, or one per prompt.
      fps: frames per second of a clip: the prompt states it when drawing; when reading, files are
        sampled at it (0: all frames).
      clips: how longer clips are encoded, one of `vision_codec.CLIPS`.
      samples: answers per prompt or file.
      candidates: images or clips drawn for each answer; see `modalities.Options`.
      first: number of the first answer; answer n depends on the seed and on first + n alone.
      sampling: how tokens are drawn.
      negative_prompt: text of the unconditional branch.
      chat: questions are put into the released chat template.
      max_new: longest text answer in tokens.
    """

    task: str
    prompts: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    sizes: tuple[tuple[int, ...], ...] = ()
    fps: float = 0.0
    clips: str = vision_codec.CAUSAL
    samples: int = 1
    candidates: int = 1
    first: int = 0
    sampling: Sampling = Sampling()
    negative_prompt: str = ""
    chat: bool = False
    max_new: int = presets.UNDERSTANDING_MAX_NEW

    def __post_init__(self):
        if self.task not in GENERATION_TASKS:
            raise JobError(f"task must be one of {', '.join(GENERATION_TASKS)}, not {self.task!r}.")
        if self.samples < 1:
            raise JobError(f"samples must be at least 1, not {self.samples}.")
        if self.samples > 1 and self.sampling.greedy:
            raise JobError("With temperature 0 all samples are equal; set samples to 1.")
        modalities.check_candidates(self.candidates, self.sampling)
        if self.first < 0:
            raise JobError(f"first must be at least 0, not {self.first}.")
        if self.clips not in vision_codec.CLIPS:
            raise JobError(f"clips must be {' or '.join(vision_codec.CLIPS)}, not {self.clips!r}.")
        if self.draws:
            self._check_drawing()
        else:
            self._check_reading()

    @property
    def draws(self) -> bool:
        """True for the tasks that end in images or clips."""
        return self.task.startswith("text_to")

    @property
    def is_video(self) -> bool:
        """True for the tasks about clips."""
        return "video" in self.task

    @property
    def drawings(self) -> list[tuple[str, tuple[int, ...]]]:
        """Caption and size of every answer to draw, in order."""
        count = max(len(self.prompts), len(self.sizes))
        prompts, sizes = (
            column * count if len(column) == 1 else column for column in (self.prompts, self.sizes)
        )
        pairs = zip(prompts, sizes, strict=True)
        return [pair for pair in pairs for _ in range(self.samples)]

    def _check_drawing(self):
        if not self.prompts:
            raise JobError(f"{self.task} needs a prompt.")
        if self.media:
            raise JobError(f"{self.task} reads no files, but {self.media[0]} is given.")
        if self.chat:
            raise JobError(f"The chat template is for questions, not for {self.task}.")
        dims, form = (3, "TxHxW") if self.is_video else (2, "HxW")
        if not self.sizes or any(len(size) != dims for size in self.sizes):
            raise JobError(f"{self.task} needs a size in tokens, {form}.")
        if len(self.prompts) != len(self.sizes) and 1 not in (len(self.prompts), len(self.sizes)):
            raise JobError(
                f"There are {len(self.sizes)} sizes for {len(self.prompts)} prompts; give one for "
                "all, or one each."
            )
        for size in self.sizes:
            if min(size) < 1:
                raise JobError(f"The size {size} has a side below 1 token.")
        if self.is_video and self.fps <= 0:
            raise JobError("text_to_video needs the frames per second, which the prompt states.")
        if self.candidates > 1 and not all(self.prompts):
            raise JobError("Candidates are judged by their prompt, but one prompt is empty.")
        if self.negative_prompt and not self.sampling.guided:
            raise JobError("A negative prompt does nothing at guidance 1; set guidance above 1.")

    def _check_reading(self):
        kind = "video" if self.is_video else "image"
        if not self.media:
            raise JobError(f"{self.task} needs at least one {kind} file.")
        if len(self.prompts) not in (0, 1, len(self.media)):
            raise JobError(
                f"There are {len(self.prompts)} questions for {len(self.media)} files; give none, "
                "one for all, or one each."
            )
        if self.chat and not self.prompts:
            raise JobError("The chat template needs a question as the prompt.")
        if self.sizes:
            raise JobError(f"{self.task} takes the size from the file; leave the size out.")
        if self.candidates > 1:
            raise JobError(f"Candidates are for drawing, not for {self.task}.")
        if self.sampling.guided:
            raise JobError(f"Guidance is for drawing; {self.task} runs at guidance 1.")
        if self.negative_prompt:
            raise JobError(f"A negative prompt is for drawing, not for {self.task}.")


def parse_size(text: str, task: str) -> tuple[int, ...]:
    """Tokens of "8x8" (h, w) or "2x8x8" (t, h, w)."""
    form = "TxHxW, like 2x8x8" if task == "text_to_video" else "HxW, like 8x8"
    if not re.fullmatch(r"\d+x\d+(x\d+)?", text):
        raise JobError(f"size must be {form}, in tokens, not {text!r}.")
    return tuple(int(part) for part in text.split("x"))


def spelled(size: Sequence[int]) -> str:
    """The inverse of `parse_size`."""
    return "x".join(map(str, size))


def sizes_of(
    task: str,
    sizes: Sequence[str],
    ratios: Sequence[str],
    area: int,
    *,
    default_area: int = presets.GEN_AREA,
    spatial_factor: int = 8,
) -> tuple[tuple[int, ...], ...]:
    """Sizes in tokens from the command's options; `sizes` excludes the other two.

    `default_area`: pixels of the images when the ratios have no area.
    """
    if not task.startswith("text_to") and (sizes or ratios or area):
        raise JobError(f"{task} takes the size from the file; leave size, ratio and area out.")
    if sizes:
        if ratios or area:
            raise JobError("Give either size, or ratio and area, not both.")
        return tuple(parse_size(size, task) for size in sizes)
    if not (ratios or area):
        return ()
    if task == "text_to_video":
        raise JobError("text_to_video takes its size as TxHxW; ratio and area are for images.")
    return tuple(
        image_size(ratio, area or default_area, spatial_factor) for ratio in ratios or ("1:1",)
    )


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs jobs with one model into one directory.

    Attributes:
      bundle: with a vision tokenizer.
      output: directory, made if missing; nothing in it is replaced: numbers of files go on after
        those that are there, and texts are appended to captions.jsonl.
      limits: images are resized to these before they are read.
      options: batch size, progress and stream; sampling and the rest come from the job.
      about: origin of model and tokenizer, written beside every answer.
    """

    bundle: Bundle
    output: pathlib.Path
    limits: media.PixelLimits
    options: modalities.Options
    about: dict

    def run(self, job: Job, report: Callable[[str], None] = print) -> list[pathlib.Path]:
        """Runs a job; returns the files written."""
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
            return self._texts(job, options, report)
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

    def _texts(self, job: Job, options: modalities.Options, report) -> list[pathlib.Path]:
        blocks = self._read(job)
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
        answers = modalities.continue_texts(self.bundle, prompts, options, may_be_empty)
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

    def _read(self, job: Job) -> list[Image | Video]:
        """The job's files as visual blocks; MediaError names the file that cannot be used."""
        if not job.is_video:
            images = [media.read_image(file) for file in job.media]
            return [Image(codes) for codes in self._encode(job, images)]
        blocks = []
        factor = self.bundle.vision.config.temporal_downsample_factor
        clips = [media.read_video(file, fps=job.fps or None) for file in job.media]
        codes = self._encode(job, [frames for frames, _, _ in clips])
        for block, (_, fps, _) in zip(codes, clips, strict=True):
            blocks.append(Video(block, fps, len(block) * factor / fps))
        return blocks

    def _encode(self, job: Job, arrays: list[np.ndarray]) -> list[np.ndarray]:
        codes = []
        for file, array in zip(job.media, arrays, strict=True):
            try:
                codes += codec.encode(self.bundle, [array], self.limits, job.clips)
            except media.MediaError as error:
                raise media.MediaError(f"{file}: {error}") from error
        return codes
