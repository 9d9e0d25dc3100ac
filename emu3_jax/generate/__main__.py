"""Generate images and clips from captions, and texts from images and clips.

python -m emu3_jax.generate --model=DIR --vision_tokenizer=DIR --task=TASK --output=DIR ...

  --task=text_to_image  --prompt="a red fox" --size=8x8 [--samples=4]
  --task=text_to_video  --prompt="a waving hand" --size=4x8x8 --fps=8
  --task=edit           --image=photo.png --prompt="make it red"
  --task=image_to_video --image=first.png [--prompt="a waving hand"] --size=4 --fps=8
  --task=extend_video   --video=clip.mp4 [--prompt="a waving hand"] --size=4 [--context=2]
  --task=predict_video  --video=clip.mp4 --size=4 [--context=2]
  --task=video_to_video --video=clip.mp4 [--prompt="a waving hand"] [--size=4]
  --task=inpaint        --image=photo.png --mask=mask.png [--prompt="a red fox"]
  --task=image_to_text  --image=photo.png [--prompt="What is this?"]
  --task=video_to_text  --video=clip.mp4 [--prompt="What happens?"] [--start=2 --end=4.5]
  --task=interleaved    [--image=photo.png] [--prompt="How to draw a fox"] --size=8x8 [--size=4x8]
  --task=chat           (a conversation, line by line; no --output)

DIR of --model is a run directory of `python -m emu3_jax.train`, a directory that
`python -m emu3_jax.convert export` wrote, released weights with emu3.tiktoken beside them, or the
name of shipped weights (nano, styles). The same holds for --vision_tokenizer (and photo). --prompt,
--image and --video may be repeated. So may --size or --ratio: one for all prompts, several for one
prompt, or one per prompt. They share batches. An edit of several images names them in one --image,
separated by commas. What is drawn after an image or a clip has its size unless --size says more;
of a clip T alone says how long it is, in tokens, and of extend_video and predict_video by how much
it becomes longer.

Every PNG holds its settings and its number in a text chunk named "emu3_jax". Clips have them in a
.json file beside them, texts in their line of captions.jsonl. The same options with --first set to
that number and --samples=1 give the same answer again, alone.
"""

import dataclasses
import functools
import pathlib

import jax
from absl import flags
from etils import epath

from emu3_jax import command_line, shipped
from emu3_jax.data.codec import vision_codec
from emu3_jax.generate import codec, modalities, presets
from emu3_jax.generate.completion import completion_flags
from emu3_jax.generate.decoding.decoders.registry import DECODERS
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.job import GENERATION_TASKS, Job, JobError, sizes_of
from emu3_jax.generate.job_runner import Runner, read_media, write_sheet
from emu3_jax.generate.open_ended import open_ended_flags, open_ended_job
from emu3_jax.interop.bundle import BUNDLE_FILE, Bundle, load_language, with_vision
from emu3_jax.interop.formats.safetensors_io import DTYPES
from emu3_jax.interop.language.language_config import read_further
from emu3_jax.sequence import VIDEO_FORMATS, Grammar
from emu3_jax.train import weights

QUANTIZED = ("weights", "cache")

MODEL = command_line.define_path("model", shipped.language_model, "The language model.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of a run directory; default: the newest.")
VISION = command_line.define_path("vision_tokenizer", shipped.vision_tokenizer, "Its codes.")
TASKS = (*GENERATION_TASKS, *open_ended_flags.TASKS)
TASK = flags.DEFINE_string("task", None, f"One of {', '.join(TASKS)}.")
OUTPUT = flags.DEFINE_string("output", None, "Directory for the results.")
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "Caption to draw, instruction of an edit, or question to answer."
)
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "Text file with one prompt per line.")
IMAGE = flags.DEFINE_multi_string(
    "image", [], "Image to read; of an edit several, separated by commas."
)
VIDEO = flags.DEFINE_multi_string("video", [], "Clip to read, or to go on from.")
SIZE = flags.DEFINE_multi_string(
    "size", [], "Tokens to draw: HxW, or TxHxW for a clip; default: as what is read."
)
RATIO = flags.DEFINE_multi_string("ratio", [], "Instead of --size: width to height, like 4:3.")
AREA = flags.DEFINE_integer(
    "area", 0, "With --ratio: pixels of the image; default: image_area of the model, or 518400."
)
FPS = flags.DEFINE_float(
    "fps", 0.0, "Frames per second of the clip to draw, or at which clips are read (0: all)."
)
START = flags.DEFINE_float("start", 0.0, "Clips are read from this second on.")
END = flags.DEFINE_float("end", None, "Clips are read until this second; default: to their end.")
MAX_FRAMES = flags.DEFINE_integer("max_frames", None, "Most frames of a clip that are read.")
CLIPS = flags.DEFINE_enum(
    "clips",
    vision_codec.CAUSAL,
    vision_codec.CLIPS,
    "Encode a clip as a whole, or every four frames alone as the official script does.",
)
VIDEO_FORMAT = flags.DEFINE_enum(
    "video_format", None, VIDEO_FORMATS, "For released weights: how a sequence holds clips."
)
SAMPLES = flags.DEFINE_integer("samples", 1, "Answers for each prompt or file.")
CANDIDATES = flags.DEFINE_integer(
    "candidates", 1, "Drawn for each answer; the one with the likeliest caption is kept."
)
FIRST = flags.DEFINE_integer("first", 0, "Number of the first answer; see above.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of all draws.")
PRESET = flags.DEFINE_string(
    "preset",
    None,
    f"Published sampling settings, which the flags below change: {', '.join(presets.PRESETS)}. "
    "Default: demo for drawing, understanding (greedy) for texts.",
)
GUIDANCE = flags.DEFINE_float("guidance", None, "Scale of classifier-free guidance; 1 is off.")
TOP_K = flags.DEFINE_integer("top_k", None, "Draw from the k best tokens; 0 is off.")
TOP_P = flags.DEFINE_float("top_p", None, "Draw from the smallest set of this mass; 1 is off.")
TEMPERATURE = flags.DEFINE_float("temperature", None, "Divides the scores; 0 takes the best.")
NEGATIVE = flags.DEFINE_string("negative_prompt", "", "The prompt of the unconditional branch.")
DECODER = flags.DEFINE_enum(
    "decoder", None, tuple(DECODERS), "How many tokens a forward pass draws; default: sequential."
)
WINDOW = flags.DEFINE_integer("window", None, "Tokens of jacobi's window, or codes of a zipar's.")
ATTEND_PADDING = flags.DEFINE_bool(
    "attend_negative_padding", False, "Batch guidance as the official scripts do; see Sampling."
)
WHOLE_VOCABULARY = flags.DEFINE_bool(
    "whole_vocabulary", False, "Draw texts from all ids, as officially; see Sampling."
)
SPECIAL_NAMES = flags.DEFINE_bool(
    "special_names", False, "Names of control tokens in prompts become these tokens, as officially."
)
OFFICIAL = flags.DEFINE_bool(
    "official_prompts", False, "Append the released quality words; use its negative prompt."
)
CHAT = flags.DEFINE_bool("chat", False, "Put the question in the released chat template.")
STREAM = flags.DEFINE_bool("stream", False, "Print one text answer while it is generated.")
MAX_NEW = flags.DEFINE_integer("max_new", 128, "Longest text in tokens (released: 1024).")
MIN_PIXELS = flags.DEFINE_integer("min_pixels", None, "Enlarge smaller images to this.")
MAX_PIXELS = flags.DEFINE_integer("max_pixels", None, "Reduce larger images to this.")
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    tuple(DTYPES),
    "Type of the language model's weights and activations; default: float32, or as trained.",
)
QUANTIZE = flags.DEFINE_list("quantize", [], "What is int8: weights, cache, or both.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Most answers in a batch.")
MAX_CONTEXT = flags.DEFINE_integer("max_context", None, "Most tokens in a sequence.")
command_line.define_mesh()
open_ended_flags.define()
completion_flags.define()


def sampling(draws: bool) -> Sampling:
    """The sampling settings of the flags."""
    name = PRESET.value or ("demo" if draws else "understanding")
    if name not in presets.PRESETS:
        raise JobError(f"preset must be one of {', '.join(presets.PRESETS)}, not {name!r}.")
    chosen = presets.PRESETS[name]
    given = {
        "temperature": TEMPERATURE.value,
        "top_k": TOP_K.value,
        "top_p": TOP_P.value,
        "guidance": GUIDANCE.value,
        "attend_negative_padding": ATTEND_PADDING.value,
        "whole_vocabulary": WHOLE_VOCABULARY.value,
        "decoder": DECODER.value,
        "window": WINDOW.value,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    fields = {key: getattr(chosen, key) for key in given} | changes
    return Sampling(**fields, seed=SEED.value)


def prompts() -> tuple[str, ...]:
    """Prompts of the flags, then of the file; with --official_prompts the suffix is appended."""
    found = list(PROMPT.value)
    if PROMPTS_FILE.value:
        try:
            text = pathlib.Path(PROMPTS_FILE.value).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise JobError(f"{PROMPTS_FILE.value} is not UTF-8 text ({error}).") from error
        found += [line for line in text.splitlines() if line.strip()]
    suffix = presets.POSITIVE_SUFFIX if OFFICIAL.value else ""
    return tuple(prompt + suffix for prompt in found)


def check_flags() -> None:
    """Raises JobError for flags that are missing or exclude each other."""
    for flag in (MODEL, VISION, TASK, *(() if TASK.value == "chat" else (OUTPUT,))):
        if not flag.value:
            raise JobError(f"--{flag.name} is needed; see --help.")
    if unknown := [name for name in QUANTIZE.value if name not in QUANTIZED]:
        raise JobError(f"--quantize takes {' and '.join(QUANTIZED)}, not {unknown[0]!r}.")
    if TASK.value not in TASKS:
        raise JobError(f"task must be one of {', '.join(TASKS)}, not {TASK.value!r}.")
    open_ended_flags.check(TASK.value)
    if TASK.value in open_ended_flags.TASKS:
        return
    reads, makes = GENERATION_TASKS[TASK.value]
    for flag in (IMAGE, VIDEO):
        if flag.value and reads != flag.name:
            raise JobError(_not_read(flag.name))
    if OFFICIAL.value and (reads or makes == "text"):
        raise JobError("--official_prompts are for drawing from captions.")
    if STREAM.value and (makes != "text" or len(IMAGE.value + VIDEO.value) * SAMPLES.value != 1):
        raise JobError("--stream shows one text: give one --image or --video and one sample.")
    if (VIDEO_FORMAT.value or CLIPS.value != vision_codec.CAUSAL) and (
        "video" not in (reads, makes)
    ):
        raise JobError(f"--video_format and --clips are for clips, not for {TASK.value}.")
    if WHOLE_VOCABULARY.value and makes != "text":
        raise JobError(f"--whole_vocabulary is for texts, not for {TASK.value}.")
    if OFFICIAL.value and NEGATIVE.value:
        raise JobError("Give either --official_prompts or --negative_prompt, not both.")


def _not_read(kind: str) -> str:
    """What to say of an image or a clip that the task does not read."""
    reads, makes = GENERATION_TASKS[TASK.value]
    other = [task for task, what in GENERATION_TASKS.items() if what == (kind, makes)]
    hint = f"; {other[0]} does" if other else ""
    return f"{TASK.value} takes --{reads or 'prompt'}, not --{kind}{hint}."


def job_of_flags(spatial_factor: int) -> Job:
    """The job that the flags describe."""
    chosen = sampling(GENERATION_TASKS[TASK.value][1] != "text")
    negative = NEGATIVE.value
    if OFFICIAL.value and chosen.guided:
        negative = presets.NEGATIVE_PROMPT
    return Job(
        task=TASK.value,
        prompts=prompts(),
        media=tuple(IMAGE.value + VIDEO.value),
        sizes=sizes(TASK.value, spatial_factor),
        fps=FPS.value,
        start=START.value,
        end=END.value,
        max_frames=MAX_FRAMES.value,
        clips=CLIPS.value,
        samples=SAMPLES.value,
        candidates=CANDIDATES.value,
        first=FIRST.value,
        sampling=chosen,
        negative_prompt=negative,
        chat=CHAT.value,
        max_new=MAX_NEW.value,
        **completion_flags.fields(),
    )


def sizes(task: str, spatial_factor: int) -> tuple[tuple[int, ...], ...]:
    """Sizes in tokens of what a task draws."""
    return sizes_of(
        task,
        SIZE.value,
        RATIO.value,
        AREA.value,
        default_area=read_further(MODEL.value).get("image_area", presets.GEN_AREA),
        spatial_factor=spatial_factor,
    )


def grammar(old: Grammar) -> Grammar:
    """The model's grammar with the changes of the flags."""
    video_format = VIDEO_FORMAT.value or old.video_format
    stated = (epath.Path(MODEL.value) / BUNDLE_FILE).exists()
    if stated and video_format != old.video_format:
        raise JobError(
            f"{MODEL.value} was trained with the video format {old.video_format}, "
            f"not {video_format}."
        )
    return Grammar(old.vocab, old.tokenizer, video_format, SPECIAL_NAMES.value)


def loaded(mesh: jax.sharding.Mesh) -> tuple[Bundle, str]:
    """The models, and what names the language model."""
    vision, vision_variables = weights.load_vision_tokenizer(VISION.value, mesh=mesh)
    rounded = "weights" in QUANTIZE.value
    bundle, label = weights.load_language_model(MODEL.value, STEP.value, mesh, DTYPE.value, rounded)
    bundle = with_vision(bundle, vision, vision_variables, VISION.value, label)
    bundle = dataclasses.replace(bundle, grammar=grammar(bundle.grammar))
    if MAX_CONTEXT.value:
        bundle = dataclasses.replace(bundle, max_context=MAX_CONTEXT.value)
    return bundle, label


def main() -> None:
    """Reads the flags and the files, loads the models, runs the job."""
    check_flags()
    mesh = command_line.mesh()
    config = weights.vision_config(VISION.value)
    limits = codec.pixel_limits(
        VISION.value,
        config.spatial_factor,
        MIN_PIXELS.value,
        MAX_PIXELS.value,
        load_language(MODEL.value).media,
    )
    if TASK.value in open_ended_flags.TASKS:
        asked = functools.partial(sizes, spatial_factor=config.spatial_factor)
        job = open_ended_flags.asked(TASK.value, sampling, prompts(), asked)
        shown = open_ended_job.read(job, limits, config)
        bundle, label = loaded(mesh)
        about = {"model": label, "vision_tokenizer": VISION.value}
        with jax.set_mesh(mesh):
            open_ended_job.run(job, bundle, limits, OUTPUT.value, shown, about, print_line)
        return
    job = job_of_flags(config.spatial_factor)
    shown = read_media(job, limits, config)
    bundle, label = loaded(mesh)
    runner = Runner(
        bundle,
        pathlib.Path(OUTPUT.value),
        limits,
        modalities.Options(
            batch_size=BATCH.value,
            quantized_cache="cache" in QUANTIZE.value,
            progress=print_line,
            stream=print_piece if STREAM.value else None,
        ),
        {"model": label, "vision_tokenizer": VISION.value, "quantize": QUANTIZE.value},
    )
    with jax.set_mesh(mesh):
        files = runner.run(job, print_line, shown)
    if job.makes == "image" and len(files) > 1:
        print_line(f"{write_sheet(job, shown, files)}  all of these")


def print_line(line: str) -> None:
    """Prints one line of progress."""
    print(line, flush=True)


def print_piece(position: int, piece: str) -> None:
    """Prints a piece of the answer on the same line as the pieces before it."""
    del position
    print(piece, end="", flush=True)


if __name__ == "__main__":
    command_line.run(main, __doc__)
