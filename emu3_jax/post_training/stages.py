"""The stages of post-training: each is one public command, with its inputs and outputs.

Two branches from the shipped nano model, as in the paper: one that chats, one that draws. Beside
the first, the same from random weights and with adapters. All are measured alike.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from emu3_jax.data.evenly import evenly_chosen
from emu3_jax.data.fluent_emoji import HELD_OUT, read_split
from emu3_jax.pipeline.emoji_plan import DRAWING, EmojiPlan
from emu3_jax.pipeline.stage import Stage, assets, resolved

QUESTION_SPLITS = ("validation", "validation_combination", "test")
NANO = "assets/transformer_nano"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(EmojiPlan):
    """What is made, and how long each training is.

    Attributes:
      easy_vqa: data folder of easy-vqa; "" for that of the installed package.
      chat_steps: steps of each of the three trainings on questions.
      qft_steps, dpo_steps: steps of the two stages of drawing.
      prompts: captions for which candidates are drawn; 0 for all.
      candidates: images drawn for each.
      questions: questions of a split that are asked; 0 for all.
      shown: drawn images of each model on the page.
      options: further options of every training command.

    Raises:
      ValueError: a number that is too small.
    """

    directory: pathlib.Path = pathlib.Path("runs/post_training")
    easy_vqa: str = ""
    chat_steps: int = 300
    qft_steps: int = 60
    dpo_steps: int = 80
    prompts: int = 160
    candidates: int = 8
    questions: int = 150
    shown: int = 16
    options: tuple[str, ...] = ()

    def __post_init__(self):
        least = dict(chat_steps=1, qft_steps=1, dpo_steps=1, prompts=0, limit=0, questions=0)
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, not {getattr(self, name)}")

    @property
    def questions_tokens(self) -> pathlib.Path:
        """The chats."""
        return self.directory / "questions"

    def run(self, name: str) -> pathlib.Path:
        """The run directory of a model."""
        return self.directory / name

    def model(self, name: str) -> pathlib.Path:
        """Where the weights of a model are."""
        return pathlib.Path(NANO) if name == "pretrained" else self.run(name)

    def answers(self, name: str) -> pathlib.Path:
        """Results of a model's answers to questions."""
        return self.directory / "answers" / name

    def samples(self, name: str) -> pathlib.Path:
        """Images that a model drew."""
        return self.directory / "samples" / name


# Name → title, in the order of the page.
MODELS = {
    "pretrained": "pretrained",
    "chat": "chat",
    "chat_lora": "chat, LoRA",
    "chat_scratch": "chat from random weights",
    "qft": "QFT",
    "dpo": "QFT, then DPO",
}
CHATTING = ("pretrained", "chat", "chat_lora", "chat_scratch")
DRAWN = ("pretrained", "qft", "dpo")
# Random weights have nothing that could drift.
DRIFTING = ("pretrained", "chat", "chat_lora", "qft", "dpo")


def all_stages(plan: Plan) -> list[Stage]:
    """Every stage but the report, in order."""
    stages = [*_data(plan), *_chat(plan), *_drawing(plan)]
    stages += [_answers(plan, name) for name in CHATTING]
    stages += [plan.measuring(name, plan.model(name), after=_after(name)) for name in DRIFTING]
    return stages


def _data(plan: Plan) -> list[Stage]:
    here, corpus = plan.directory, plan.corpus
    easy, config = here / "easy_vqa", f"post_training/data/tokenize_questions:{here}"
    given = (f"--data={plan.easy_vqa}",) if plan.easy_vqa else ()
    return [
        plan.unpacking(),
        Stage(
            "emoji_questions", "Ask about the emoji: names, groups, tags, tones",
            ("-m", "emu3_jax.data.questions.emoji", f"--corpus={corpus}"),
            after=("corpus",), outputs=(corpus / "questions_train.jsonl",),
        ),
        Stage(
            "easy_vqa", "Read easy-vqa",
            ("-m", "emu3_jax.data.questions.easy_vqa", f"--output={easy}", *given),
            outputs=(easy,),
        ),
        plan.tokenizing("tokenize_nano"),
        Stage(
            "questions", "Tokenize the questions",
            ("-m", "emu3_jax.tokenize", f"--config={config}"),
            after=("emoji_questions", "easy_vqa"),
            inputs=assets(plan.vision_tokenizer), settings=resolved(config),
            outputs=(plan.questions_tokens,), resumable=True,
        ),
    ]  # fmt: skip


def _train(
    plan: Plan,
    name: str,
    title: str,
    config: str,
    after: Sequence[str],
    steps: int,
    *options: str,
    data: pathlib.Path | None = None,
) -> Stage:
    config = f"post_training/{config}:nano:{data or plan.tokens}"
    return Stage(
        name,
        title,
        ("-m", "emu3_jax.train", f"--config={config}",
         f"--workdir={plan.run(name)}", f"--config.run.steps={steps}",
         *options, *plan.options),
        after=tuple(after),
        inputs=assets(pathlib.Path(NANO)),
        settings=resolved(config),
        outputs=(plan.run(name),),
        resumable=True,
        devices=2,
    )  # fmt: skip


def _chat(plan: Plan) -> list[Stage]:
    def tuned(name: str, title: str, *options: str) -> Stage:
        return _train(
            plan, name, title, "sft_chat", ("tokens", "questions"), plan.chat_steps, *options,
            data=plan.directory,
        )  # fmt: skip

    return [
        tuned("chat", "Tune on chats"),
        tuned("chat_lora", "The same with adapters of rank 32",
              "--config.lora.rank=32", "--config.lora.alpha=64",
              "--config.run.optimizer.learning_rate=2e-3"),
        tuned("chat_scratch", "The same from random weights",
              "--config.start.transformer=", "--config.start.shared_ids=0",
              f"--config.start.codebook={plan.vision_tokenizer}"),
    ]  # fmt: skip


def _drawing(plan: Plan) -> list[Stage]:
    prompts, pairs = plan.directory / "prompts.txt", plan.tokens / "preferences"
    write = Stage(
        "prompts", "Recombine captions to new ones, none of them held out",
        ("-m", "emu3_jax.data.emoji_prompts", f"--corpus={plan.corpus}", f"--output={prompts}"),
        after=("corpus",), outputs=(prompts,),
    )  # fmt: skip
    config = "post_training/data/preferences_nano"
    make = Stage(
        "preferences",
        "Draw candidates; keep best and worst by the model's own reading",
        ("-m", "emu3_jax.preferences", f"--config={config}",
         f"--config.output={pairs}", f"--config.prompts={prompts}",
         f"--config.limit={plan.prompts}", f"--config.candidates={plan.candidates}"),
        after=("tokens", "prompts"),
        inputs=assets(pathlib.Path(NANO)),
        settings=resolved(config),
        outputs=(pairs,),
        resumable=True,
    )  # fmt: skip
    after = ("tokens", "preferences")
    qft = _train(
        plan, "qft", "Quality fine-tuning on the chosen images", "sft_qft", after, plan.qft_steps
    )
    dpo = _train(
        plan, "dpo", "Preference tuning", "dpo", (*after, "qft"), plan.dpo_steps,
        f"--config.start.transformer={plan.run('qft')}",
    )  # fmt: skip
    return [write, make, qft, dpo]


def _after(name: str) -> tuple[str, ...]:
    return ("tokens",) if name == "pretrained" else (name,)


def _answers(plan: Plan, name: str) -> Stage:
    return Stage(
        f"answers_{name}",
        f"Ask the held-out questions: {MODELS[name]}",
        ("-m", "emu3_jax.evaluate", "--evaluators=questions", f"--model={plan.model(name)}",
         f"--tokens={plan.questions_tokens}", f"--splits={','.join(QUESTION_SPLITS)}",
         f"--vision_tokenizer={plan.vision_tokenizer}", f"--limit={plan.questions}",
         f"--output={plan.answers(name)}"),
        after=("questions", *_after(name)),
        outputs=(plan.answers(name),),
    )  # fmt: skip


def sampling(plan: Plan, captions: Sequence[str]) -> list[Stage]:
    """The images for the page: one draw for each of the held-out captions."""
    return [
        Stage(
            f"sample_{name}",
            f"Draw for held-out captions: {MODELS[name]}",
            ("-m", "emu3_jax.generate", f"--model={plan.model(name)}",
             f"--vision_tokenizer={plan.vision_tokenizer}", "--task=text_to_image", "--size=8x8",
             *DRAWING,
             f"--output={plan.samples(name)}", *(f"--prompt={c}" for c in captions)),
            after=_after(name),
            outputs=(plan.samples(name),),
        )
        for name in DRAWN
    ]  # fmt: skip


def held_out_captions(corpus: pathlib.Path, count: int) -> list[str]:
    """Captions of held-out stills at even distances over both splits, whatever a model draws."""
    rows = [row for split in HELD_OUT for row in read_split(corpus, split) if "image" in row]
    return [row["text"] for row in evenly_chosen(rows, count)]


def reporting(plan: Plan, stages: Sequence[Stage]) -> Stage:
    """The last stage; it depends on all the others."""
    return Stage(
        "report",
        "Write the report",
        ("-m", "emu3_jax.post_training.post_training_report", f"--directory={plan.directory}"),
        after=tuple(stage.name for stage in stages),
        outputs=(plan.report,),
    )
