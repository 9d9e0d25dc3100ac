"""The stages of the quickstart: each is one public command, with its inputs and outputs.

The stages are data; nothing runs here. `emu3_jax.pipeline` runs them and contains nothing about
models.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Sequence

from emu3_jax import shipped
from emu3_jax.data.evenly import evenly_chosen
from emu3_jax.data.fluent_emoji import HELD_OUT, read_split
from emu3_jax.pipeline.emoji_plan import DRAWING, EmojiPlan
from emu3_jax.pipeline.stage import Stage, assets, resolved

# Latent frames, height and width of the corpus under the nano tokenizer: 64 px stills and clips of
# eight frames, 8 x 8 pixels and 2 frames to a code.
STILL_SIZE = "8x8"
CLIP_SIZE = "4x8x8"
CLIP_FRAMES = 8
# Each image shown is the best of eight candidates: the one after which the model itself finds the
# caption most likely. docs/reference/measurements.md has the gain.
CHOOSING = ("--candidates=8", "--batch_size=64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(EmojiPlan):
    """Inputs and outputs of the quickstart.

    Attributes:
      config: training config; its argument is the directory.
      steps: training steps; 0 uses the config's.
      train_options: further options of the training command.
      text_tokenizer: shipped with the project.
      tokenize_config, tokenize_options: how the corpus is tokenized.
      shipped: directory of the shipped model; without it, its stages are left out.
      images, clips, captions: number of samples of each model.
      devices: virtual CPU devices of the training mesh.
    """

    directory: pathlib.Path = pathlib.Path("runs/quickstart")
    config: pathlib.Path = pathlib.Path("configs/quickstart.py")
    steps: int = 0
    train_options: tuple[str, ...] = ()
    text_tokenizer: pathlib.Path = pathlib.Path("assets/text_nano.model")
    tokenize_config: pathlib.Path = pathlib.Path("configs/tokenize_nano.py")
    tokenize_options: tuple[str, ...] = ()
    shipped: pathlib.Path = pathlib.Path("assets/transformer_nano")
    images: int = 16
    clips: int = 4
    captions: int = 12
    devices: int = 2

    def check(self) -> None:
        """Raises ValueError for a missing input."""
        shipped.config_file(self.config)
        shipped.config_file(self.tokenize_config)
        for path in assets(self.corpus_zip, self.text_tokenizer):
            if not path.is_file():
                raise ValueError(f"{path} does not exist; it is part of the project")
        if not (assets(self.vision_tokenizer)[0] / "config.json").is_file():
            raise ValueError(
                f"{self.vision_tokenizer} holds no vision tokenizer; it is part of the project"
            )

    @property
    def model(self) -> pathlib.Path:
        """The run directory of training."""
        return self.directory / "model"

    @property
    def items(self) -> pathlib.Path:
        """The held-out rows for sampling, chosen by `choose_items`."""
        return self.directory / "items.json"

    def samples(self, of: str, kind: str) -> pathlib.Path:
        """Samples of "shipped" or "trained": "images", "clips" or "captions"."""
        return self.directory / "samples" / of / kind

    def models(self) -> dict[str, pathlib.Path]:
        """The models that are evaluated and sampled, the shipped one first."""
        models = {"trained": self.model}
        if self.has_shipped():
            models = {"shipped": self.shipped} | models
        return models

    def has_shipped(self) -> bool:
        """Whether the shipped model is there."""
        return (assets(self.shipped)[0] / "config.json").is_file()


def preparation(plan: Plan) -> list[Stage]:
    """Corpus and shards, the inputs of the other stages."""
    tokenizing = plan.tokenizing(
        str(plan.tokenize_config),
        f"--config.text_tokenizer={plan.text_tokenizer}",
        *plan.tokenize_options,
        inputs=assets(plan.text_tokenizer),
    )
    return [plan.unpacking(), tokenizing]


def training(plan: Plan, interrupt_at: int) -> list[Stage]:
    """The training in two parts: interrupted once, then resumed by the same command."""
    config = f"{plan.config}:{plan.directory}"
    command = (
        "-m", "emu3_jax.train", f"--config={config}",
        f"--config.start.codebook={plan.vision_tokenizer}",
        f"--workdir={plan.model}", *plan.train_options,
    )  # fmt: skip
    if plan.steps:
        command += (f"--config.run.steps={plan.steps}",)
    first = Stage(
        "train_1",
        f"Pretrain from scratch; interrupted by SIGTERM after step {interrupt_at}",
        command,
        after=("tokens",),
        inputs=assets(plan.text_tokenizer),
        settings=resolved(config),
        outputs=(plan.model,),
        resumable=True,
        interrupt_at=interrupt_at,
        devices=plan.devices,
    )
    second = Stage(
        "train_2",
        "Pretrain, resumed from the checkpoint by the same command",
        command,
        after=("train_1",),
        resumable=True,
        devices=plan.devices,
    )
    return [first, second]


def evaluation(plan: Plan) -> list[Stage]:
    """The vision tokenizer once, then each language model."""
    stages = [
        Stage(
            "evaluate_vision_tokenizer",
            "Evaluate the vision tokenizer: reconstruction",
            ("-m", "emu3_jax.evaluate", "--evaluators=reconstruction",
             f"--vision_tokenizer={plan.vision_tokenizer}", f"--data={plan.corpus}",
             "--batch_size=16", f"--output={plan.evaluation('vision_tokenizer')}"),
            after=("corpus",),
            inputs=assets(plan.vision_tokenizer),
            outputs=(plan.evaluation("vision_tokenizer"),),
        )
    ]  # fmt: skip
    for name, path in plan.models().items():
        stages.append(plan.measuring(name, path, **_reads(plan, name, path)))
    return stages


def sampling(plan: Plan, items: dict) -> list[Stage]:
    """Images, clips and captions of each model, for the held-out `items` of `choose_items`."""
    images = tuple(f"--prompt={item['text']}" for item in items["images"])
    clips = tuple(f"--prompt={item['text']}" for item in items["clips"])
    shown = tuple(f"--image={plan.corpus / item['image']}" for item in items["captions"])
    fps = CLIP_FRAMES / items["clips"][0]["seconds"] if clips else 0.0
    kinds = {
        "images": ("text_to_image", (f"--size={STILL_SIZE}", *DRAWING, *CHOOSING, *images)),
        "clips": ("text_to_video",
                  (f"--size={CLIP_SIZE}", f"--fps={fps:g}", *DRAWING, *clips)),
        "captions": ("image_to_text", ("--min_pixels=4096", "--max_pixels=4096",
                                       "--max_new=64", *shown)),
    }  # fmt: skip
    stages = []
    for name, path in plan.models().items():
        for kind, (task, options) in kinds.items():
            if not items[kind]:
                continue
            output = plan.samples(name, kind)
            stages.append(
                Stage(
                    f"sample_{name}_{kind}",
                    f"Sample {kind} from the {name} model",
                    ("-m", "emu3_jax.generate", f"--model={path}",
                     f"--vision_tokenizer={plan.vision_tokenizer}", f"--task={task}",
                     f"--output={output}", *options),
                    outputs=(output,),
                    **_reads(plan, name, path),
                )
            )  # fmt: skip
    return stages


def _reads(plan: Plan, name: str, path: pathlib.Path) -> dict:
    """The dependencies of a stage that uses a language model."""
    if name == "trained":
        return {"after": ("tokens", "train_2"), "inputs": assets(plan.vision_tokenizer)}
    return {"after": ("tokens",), "inputs": assets(plan.vision_tokenizer, path)}


def reporting(plan: Plan, stages: Sequence[Stage]) -> Stage:
    """The last stage; it depends on all the others."""
    return Stage(
        "report",
        "Write the report",
        ("-m", "emu3_jax.quickstart.quickstart_report", f"--directory={plan.directory}",
         f"--vision_tokenizer={plan.vision_tokenizer}",
         f"--text_tokenizer={plan.text_tokenizer}", f"--shipped={plan.shipped}"),
        after=tuple(stage.name for stage in stages),
        outputs=(plan.report,),
    )  # fmt: skip


def choose_items(corpus: pathlib.Path, plan: Plan) -> dict[str, list[dict]]:
    """Held-out rows for sampling, spread evenly over both validation splits.

    The choice does not depend on any model's results. All clips have the most common duration,
    since one command has one frame rate.
    """
    rows = [row for split in HELD_OUT for row in read_split(corpus, split)]
    stills = [row for row in rows if "image" in row]
    clips = [row for row in rows if "video" in row]
    seconds = Counter(row["seconds"] for row in clips).most_common(1)
    clips = [row for row in clips if row["seconds"] == seconds[0][0]]
    toned = [row for row in stills if row.get("tone")]
    return {
        "images": evenly_chosen(stills, plan.images),
        "clips": evenly_chosen(clips, plan.clips),
        "captions": evenly_chosen(toned, plan.captions // 2)
        + evenly_chosen([row for row in stills if not row.get("tone")], (plan.captions + 1) // 2),
    }
