"""The work of one `generate` command, all of it checked before it starts.

A `Job` holds everything that decides the result; `job_runner` runs it.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from emu3_jax.data.codec import vision_codec
from emu3_jax.generate import modalities, presets
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.sequence import Turn, image_size

# Task → what it reads beside prompts ("" for nothing), and what it makes.
GENERATION_TASKS = {
    "text_to_image": ("", "image"),
    "image_to_text": ("image", "text"),
    "text_to_video": ("", "video"),
    "video_to_text": ("video", "text"),
    "edit": ("image", "image"),
    "image_to_video": ("image", "video"),
    "video_to_video": ("video", "video"),
    "extend_video": ("video", "video"),
    "predict_video": ("video", "video"),
    "inpaint": ("image", "image"),
}
# Where the image of image_to_video is.
INSIDE, BEFORE = FIRST_FRAMES = ("inside", "before")


class JobError(ValueError):
    """Options that do not go together; the message names them and what to do."""


class Drawing(NamedTuple):
    """One image or clip to draw.

    Attributes:
      prompt: a caption, an instruction, or "".
      size: as in `Job.sizes`; () if none is given.
      source: the place in `Job.media` of what it is drawn after; None if there is nothing.
    """

    prompt: str
    size: tuple[int, ...]
    source: int | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """What to generate.

    Attributes:
      task: one of GENERATION_TASKS.
      prompts: captions to draw, instructions, or questions: none, one for all media, or one each.
      media: files to read: what a text is about, or what is drawn after it. For edits an entry may
        be several files, separated by commas.
      sizes: tokens (h, w) of images or (t, h, w) of clips, for the tasks that draw: one for all
        prompts, several for one prompt, or one per prompt. Where files are read, height and width
        may be left out, which are then those of the last file of the entry, and after a clip
        the length too.
      fps: frames per second of a clip: the prompt states it when drawing; when reading, files are
        sampled at it (0: all frames).
      start, end: the part of each clip that is read, in seconds; end None: to its end.
      max_frames: the most frames of that part that are read, the first; None: all.
      clips: how longer clips are encoded, one of `vision_codec.CLIPS`.
      first_frame: of image_to_video: whether the image is the first latent frame of the clip, or a
        block of its own before it, as models tuned on such documents expect.
      context: of extend_video and predict_video: latent frames that are given; None: all.
      stride: of these: latent frames drawn at once; None: as many as are given.
      masks: of inpaint: an image file for all, or one each, white where it is to be drawn.
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
    start: float = 0.0
    end: float | None = None
    max_frames: int | None = None
    clips: str = vision_codec.CAUSAL
    first_frame: str = INSIDE
    context: int | None = None
    stride: int | None = None
    masks: tuple[str, ...] = ()
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
        for text in (*self.prompts, self.negative_prompt):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise JobError(f"The prompt {text!r} is not valid UTF-8.")
        if self.reads and not self.media:
            raise JobError(f"{self.task} needs at least one {self.reads} file.")
        for entry, files in zip(self.media, self.sources, strict=True):
            if not all(files):
                raise JobError(f"The name of a file is missing in {entry!r}.")
        self._check_part()
        self._check_given()
        if self.draws:
            self._check_drawing()
        else:
            self._check_reading()

    @property
    def reads(self) -> str:
        """The kind of the files that the task reads: "image", "video", or "" for none."""
        return GENERATION_TASKS[self.task][0]

    @property
    def makes(self) -> str:
        """What the task makes: "text", "image" or "video"."""
        return GENERATION_TASKS[self.task][1]

    @property
    def draws(self) -> bool:
        """True for the tasks that end in images or clips."""
        return self.makes != "text"

    @property
    def has_clips(self) -> bool:
        """True for the tasks that read clips or make them."""
        return "video" in (self.reads, self.makes)

    @property
    def goes_on(self) -> bool:
        """True for the tasks that draw what follows a clip, as part of it."""
        return self.task in ("extend_video", "predict_video")

    @property
    def completes(self) -> bool:
        """True if what is read is part of what is drawn, not before it."""
        inside = self.task == "image_to_video" and self.first_frame == INSIDE
        return self.goes_on or self.task == "inpaint" or inside

    @property
    def sources(self) -> list[list[str]]:
        """The files of each entry of `media`."""
        return [entry.split(",") if self.task == "edit" else [entry] for entry in self.media]

    @property
    def drawings(self) -> list[Drawing]:
        """Every answer to draw, in order."""
        columns = (self.prompts or ("",), self.sizes or ((),), range(len(self.media)) or (None,))
        count = max(map(len, columns))
        rows = zip(*(tuple(c) * (count if len(c) == 1 else 1) for c in columns), strict=True)
        return [Drawing(*row) for row in rows for _ in range(self.samples)]

    def _check_part(self):
        if (self.start, self.end, self.max_frames) == (0.0, None, None):
            return
        if self.reads != "video":
            raise JobError(f"start, end and max_frames are for reading clips, not for {self.task}.")
        if not 0 <= self.start < float("inf"):
            raise JobError(f"start must be at least 0 seconds, not {self.start:g}.")
        if self.end is not None and not self.start < self.end:
            raise JobError(f"end must be after start, but is {self.end:g} and {self.start:g} s.")
        if self.max_frames is not None and self.max_frames < 1:
            raise JobError(f"max_frames must be at least 1, not {self.max_frames}.")

    def _check_given(self):
        if self.first_frame not in FIRST_FRAMES:
            expected = " or ".join(FIRST_FRAMES)
            raise JobError(f"first_frame must be {expected}, not {self.first_frame!r}.")
        if self.first_frame != INSIDE and self.task != "image_to_video":
            raise JobError(f"first_frame is for image_to_video, not for {self.task}.")
        for name in ("context", "stride"):
            value = getattr(self, name)
            if value is not None and not self.goes_on:
                raise JobError(
                    f"{name} is for extend_video and predict_video, not for {self.task}."
                )
            if value is not None and value < 1:
                raise JobError(f"{name} must be at least 1 latent frame, not {value}.")
        if self.goes_on and len(self.sizes) > 1:
            raise JobError(f"{self.task} takes one size, the latent frames to draw.")
        if self.task == "predict_video" and any(self.prompts):
            raise JobError("predict_video takes no prompt; extend_video does.")
        if self.masks and self.task != "inpaint":
            raise JobError(f"A mask is for inpaint, not for {self.task}.")
        if self.task == "inpaint" and len(self.masks) not in (1, len(self.media)):
            raise JobError(
                f"inpaint needs a mask for all images, or one each; there are {len(self.masks)} "
                f"masks for {len(self.media)} images."
            )
        if self.task == "inpaint" and self.sizes:
            raise JobError("inpaint takes the size from the image; leave the size out.")

    def _check_drawing(self):
        if not self.prompts and not self.reads:
            raise JobError(f"{self.task} needs a prompt.")
        if self.task == "edit" and not (self.prompts and all(map(str.strip, self.prompts))):
            raise JobError("edit needs a prompt: the instruction.")
        if self.media and not self.reads:
            raise JobError(f"{self.task} reads no files, but {self.media[0]} is given.")
        if self.chat:
            raise JobError(f"The chat template is for questions, not for {self.task}.")
        self._check_sizes()
        if self.makes == "video" and self.reads != "video" and self.fps <= 0:
            raise JobError(f"{self.task} needs the frames per second, which the prompt states.")
        if self.candidates > 1 and self.reads:
            raise JobError(f"Candidates are judged by a caption, but {self.task} has none.")
        if self.candidates > 1 and not all(self.prompts):
            raise JobError("Candidates are judged by their prompt, but one prompt is empty.")
        if self.negative_prompt and not self.sampling.guided:
            raise JobError("A negative prompt does nothing at guidance 1; set guidance above 1.")

    def _check_sizes(self):
        form = size_form(self.task)
        numbers = {1 + part.count("x") for part in form.split(" or ")}
        needed = not self.reads or self.goes_on or (self.reads, self.makes) == ("image", "video")
        if (needed and not self.sizes) or any(len(size) not in numbers for size in self.sizes):
            raise JobError(f"{self.task} needs a size in tokens, {form}.")
        for size in self.sizes:
            if min(size) < 1:
                raise JobError(f"The size {size} has a side below 1 token.")
        counts = {"prompts": self.prompts, "sizes": self.sizes, "files": self.media}
        counts = {name: len(column) for name, column in counts.items()}
        longest = max(counts, key=counts.get)
        for name, count in counts.items():
            if count not in (0, 1, counts[longest]):
                raise JobError(
                    f"There are {counts[longest]} {longest} for {count} {name}; give one for all, "
                    "or one each."
                )

    def _check_reading(self):
        if len(self.prompts) not in (0, 1, len(self.media)):
            raise JobError(
                f"There are {len(self.prompts)} questions for {len(self.media)} files; give none, "
                "one for all, or one each."
            )
        if self.chat and not self.prompts:
            raise JobError("The chat template needs a question as the prompt.")
        if self.chat:
            for question in self.prompts:
                Turn(question)  # raises if it cannot be asked
        if self.sizes:
            raise JobError(f"{self.task} takes the size from the file; leave the size out.")
        if self.candidates > 1:
            raise JobError(f"Candidates are for drawing, not for {self.task}.")
        if self.sampling.guided:
            raise JobError(f"Guidance is for drawing; {self.task} runs at guidance 1.")
        if self.negative_prompt:
            raise JobError(f"A negative prompt is for drawing, not for {self.task}.")


def size_form(task: str) -> str:
    """How the size of what a task draws is written, in tokens."""
    reads, makes = GENERATION_TASKS[task]
    if makes == "image":
        return "HxW"
    if task in ("extend_video", "predict_video"):
        return "T"
    return "T or TxHxW" if reads else "TxHxW"


def parse_size(text: str, task: str) -> tuple[int, ...]:
    """Tokens of "8x8" (h, w), "2x8x8" (t, h, w) or "2" (t)."""
    if not re.fullmatch(r"\d+(x\d+){0,2}", text):
        raise JobError(f"size must be {size_form(task)}, in tokens, not {text!r}.")
    return tuple(int(part) for part in text.split("x"))


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
    makes = GENERATION_TASKS[task][1]
    if makes == "text" and (sizes or ratios or area):
        raise JobError(f"{task} takes the size from the file; leave size, ratio and area out.")
    if sizes:
        if ratios or area:
            raise JobError("Give either size, or ratio and area, not both.")
        return tuple(parse_size(size, task) for size in sizes)
    if not (ratios or area):
        return ()
    if makes == "video":
        raise JobError(
            f"{task} takes its size as {size_form(task)}; ratio and area are for images."
        )
    return tuple(
        image_size(ratio, area or default_area, spatial_factor) for ratio in ratios or ("1:1",)
    )
