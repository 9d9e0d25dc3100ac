"""The stages of post-training: each is one public command, with its inputs and outputs.

Two branches from the shipped nano model, as in the paper: one that chats, one that draws. Beside
the first, the same from random weights and with adapters. All are measured alike.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from emu3_jax import shipped
from emu3_jax.data.evenly import evenly_chosen
from emu3_jax.data.fluent_emoji import HELD_OUT, read_split
from emu3_jax.pipeline.stage import Stage, assets

# The settings of the README's images (docs/measurements.md). Models that learnt from guided images
# have guidance in their weights, and need less of it.
_SHARP = ("--temperature=0.7", "--top_k=200")
GUIDED, LESS_GUIDED = ("--guidance=6", *_SHARP), ("--guidance=1.5", *_SHARP)
QUESTION_SPLITS = ("validation", "validation_combination", "test")
NANO = "assets/transformer_nano"
VISION = "assets/vision_tokenizer_nano"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is made, and how long each training is; tests make all of it small.

    Attributes:
      directory: folder for all output.
      corpus_zip: the embedded corpus.
      easy_vqa: data folder of easy-vqa; "" for that of the installed package.
      chat_steps: steps of each of the three trainings on questions.
      qft_steps, dpo_steps: steps of the two stages of drawing.
      prompts: captions for which candidates are drawn.
      candidates: images drawn for each.
      limit: items of a split that the models are evaluated on; 0 for all.
      questions: questions of a split that are asked; 0 for all.
      shown: drawn images of each model on the page.
      options: further options of every training command.
    """

    directory: pathlib.Path = pathlib.Path("runs/post_training")
    corpus_zip: pathlib.Path = pathlib.Path("assets/fluent_emoji.zip")
    easy_vqa: str = ""
    chat_steps: int = 450
    qft_steps: int = 60
    dpo_steps: int = 80
    prompts: int = 160
    candidates: int = 8
    limit: int = 64
    questions: int = 150
    shown: int = 16
    options: tuple[str, ...] = ()

    @property
    def corpus(self) -> pathlib.Path:
        """The unpacked corpus, with its questions."""
        return self.directory / "corpus"

    @property
    def tokens(self) -> pathlib.Path:
        """Captioned images and clips; preferences/ are the pairs."""
        return self.directory / "tokens"

    @property
    def questions_tokens(self) -> pathlib.Path:
        """The chats."""
        return self.directory / "questions"

    @property
    def report(self) -> pathlib.Path:
        """The page."""
        return self.directory / "report.html"

    def run(self, name: str) -> pathlib.Path:
        """The run directory of a model."""
        return self.directory / name

    def model(self, name: str) -> pathlib.Path:
        """Where the weights of a model are."""
        return pathlib.Path(NANO) if name == "pretrained" else self.run(name)

    def evaluation(self, name: str) -> pathlib.Path:
        """Results of a model."""
        return self.directory / "evaluation" / name

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
DRAWN = {"pretrained": GUIDED, "qft": LESS_GUIDED, "dpo": LESS_GUIDED}
# Random weights have nothing that could drift.
DRIFTING = ("pretrained", "chat", "chat_lora", "qft", "dpo")


def all_stages(plan: Plan) -> list[Stage]:
    """Every stage but the report, in order."""
    stages = [*_data(plan), *_chat(plan), *_drawing(plan)]
    stages += [_answers(plan, name) for name in CHATTING]
    stages += [_evaluation(plan, name) for name in DRIFTING]
    return stages


def _data(plan: Plan) -> list[Stage]:
    here, corpus = plan.directory, plan.corpus
    easy = here / "easy_vqa"
    given = (f"--data={plan.easy_vqa}",) if plan.easy_vqa else ()
    return [
        Stage(
            "corpus", "Unpack the corpus: images, clips, captions",
            ("-m", "emu3_jax.data.fluent_emoji", f"--zip={plan.corpus_zip}",
             f"--output={corpus}"),
            inputs=assets(plan.corpus_zip), outputs=(corpus,),
        ),
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
        Stage(
            "tokens", "Tokenize captions, images and clips",
            ("-m", "emu3_jax.tokenize", "--config=tokenize_nano", "--config.corpus_zip=",
             f"--config.corpus={corpus}", f"--config.output={plan.tokens}"),
            after=("corpus",), outputs=(plan.tokens / "train",), resumable=True,
        ),
        Stage(
            "questions", "Tokenize the questions",
            ("-m", "emu3_jax.tokenize", f"--config=post_training/data/tokenize_questions:{here}"),
            after=("emoji_questions", "easy_vqa"),
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
    return Stage(
        name,
        title,
        ("-m", "emu3_jax.train", f"--config=post_training/{config}:nano:{data or plan.tokens}",
         f"--workdir={plan.run(name)}", f"--config.run.steps={steps}",
         *options, *plan.options),
        after=tuple(after),
        inputs=(shipped.config_file(f"post_training/{config}"), *assets(pathlib.Path(NANO))),
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
              f"--config.start.codebook={VISION}"),
    ]  # fmt: skip


def _drawing(plan: Plan) -> list[Stage]:
    prompts, pairs = plan.directory / "prompts.txt", plan.tokens / "preferences"
    write = Stage(
        "prompts", "Recombine captions to new ones, none of them held out",
        ("-m", "emu3_jax.data.emoji_prompts", f"--corpus={plan.corpus}", f"--output={prompts}"),
        after=("corpus",), outputs=(prompts,),
    )  # fmt: skip
    make = Stage(
        "preferences",
        "Draw candidates; keep best and worst by the model's own reading",
        ("-m", "emu3_jax.preferences", "--config=post_training/data/preferences_nano",
         f"--config.output={pairs}", f"--config.prompts={prompts}",
         f"--config.limit={plan.prompts}", f"--config.candidates={plan.candidates}"),
        after=("prompts",),
        inputs=assets(pathlib.Path(NANO)),
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
         f"--vision_tokenizer={VISION}", f"--limit={plan.questions}",
         f"--output={plan.answers(name)}"),
        after=("questions", *_after(name)),
        outputs=(plan.answers(name),),
    )  # fmt: skip


def _evaluation(plan: Plan, name: str) -> Stage:
    return Stage(
        f"evaluate_{name}",
        f"Likelihood, captions, drawn images: {MODELS[name]}",
        ("-m", "emu3_jax.evaluate", "--evaluators=likelihood,emoji_captions,emoji_retrieval",
         f"--model={plan.model(name)}", f"--vision_tokenizer={VISION}", f"--data={plan.corpus}",
         f"--tokens={plan.tokens}", f"--limit={plan.limit}",
         *DRAWN.get(name, GUIDED),
         f"--output={plan.evaluation(name)}"),
        after=_after(name),
        outputs=(plan.evaluation(name),),
    )  # fmt: skip


def sampling(plan: Plan, captions: Sequence[str]) -> list[Stage]:
    """The images for the page: one draw for each of the held-out captions."""
    return [
        Stage(
            f"sample_{name}",
            f"Draw for held-out captions: {MODELS[name]}",
            ("-m", "emu3_jax.generate", f"--model={plan.model(name)}",
             f"--vision_tokenizer={VISION}", "--task=text_to_image", "--size=8x8", *settings,
             f"--output={plan.samples(name)}", *(f"--prompt={c}" for c in captions)),
            after=_after(name),
            outputs=(plan.samples(name),),
        )
        for name, settings in DRAWN.items()
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
