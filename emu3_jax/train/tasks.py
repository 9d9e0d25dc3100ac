"""From a config to the task it names: the only place that knows all tasks."""

import ml_collections

from emu3_jax.config import ConfigError, to_dataclass, unknown_key
from emu3_jax.train.loop import RunConfig
from emu3_jax.train.state import Task


def _vision_tokenizer(config, run: RunConfig, read_data: bool) -> Task:
    from emu3_jax.data.pixels import PixelConfig
    from emu3_jax.models.vision_config import VisionTokenizerConfig
    from emu3_jax.train.codebook import CodebookConfig
    from emu3_jax.train.vision_objective import VisionLossConfig
    from emu3_jax.train.vision_tokenizer import VisionTokenizerTask

    return VisionTokenizerTask(
        model=to_dataclass(VisionTokenizerConfig, config.model, "model"),
        loss=to_dataclass(VisionLossConfig, config.loss, "loss"),
        data=to_dataclass(PixelConfig, config.data, "data"),
        steps=run.steps,
        care=to_dataclass(CodebookConfig, config.get("codebook", {}), "codebook"),
        read_files=read_data,
    )


def _pretrain(config, run: RunConfig, read_data: bool) -> Task:
    from emu3_jax.data.pipeline import DataConfig
    from emu3_jax.models.transformer import TransformerConfig
    from emu3_jax.train import pretrain as task

    del run
    data = to_dataclass(DataConfig, config.data, "data")
    model, grammar = config.model.to_dict(), None
    if read_data or "vocab_size" not in model:
        # The data fixes the number of token ids, so a config need not repeat it.
        grammar = dataset_grammar(data, config.text_tokenizer)
        model = {"vocab_size": grammar.vocab.size} | model
    return task.PretrainTask(
        model=to_dataclass(TransformerConfig, model, "model"),
        loss=to_dataclass(task.LossConfig, config.loss, "loss"),
        data=data,
        grammar=grammar,
    )


def dataset_grammar(data, text_tokenizer: str):
    """The grammar that the first dataset of the mixture was made with.

    Args:
      data: a data.pipeline.DataConfig.
      text_tokenizer: a SentencePiece *.model, a *.tiktoken rank file, or "bytes".
    """
    from emu3_jax.data.records import open_dataset
    from emu3_jax.sequence import Grammar
    from emu3_jax.text import load_text_tokenizer

    info = open_dataset(data.mixture[0].dataset).info
    return Grammar(info.vocabulary, load_text_tokenizer(text_tokenizer), info.video_format)


# Task → (its maker, what its config must have besides `task` and `run`, what it may have).
TASKS = {
    "pretrain": (_pretrain, ("text_tokenizer", "model", "loss", "data"), ("start", "evaluation")),
    "vision_tokenizer": (
        _vision_tokenizer,
        ("model", "loss", "data"),
        ("codebook", "start", "evaluation"),
    ),
}


def make_task(config: ml_collections.ConfigDict, run: RunConfig, read_data: bool = True) -> Task:
    """Builds the task `config.task` names.

    Args:
      config: the resolved config.
      run: its section `run`.
      read_data: False for a task that is only compiled: its data need not exist, if the config
        states model.vocab_size, which else the data does.

    Raises:
      ConfigError: unknown task, a section too many or too few, or a wrong key or type in one.
    """
    if config.get("task") not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {config.get('task')!r}")
    make, needed, optional = TASKS[config.task]
    known = ("task", "run", *needed)
    for key in config:
        if key not in known + optional:
            raise ConfigError(unknown_key(key, known + optional, "config"))
    for key in known:
        if key not in config:
            raise ConfigError(f"config.{key} is missing; the task {config.task} needs it")
    return make(config, run, read_data)
