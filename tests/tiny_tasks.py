"""Tasks made of parts, without the files that a config names."""

from token_records import GRAMMAR

from emu3_jax.interop.bundle import Language
from emu3_jax.train.codebook import CodebookConfig
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.tasks.pretrain import LossConfig, PretrainConfig, PretrainTask
from emu3_jax.train.tasks.transformer_start import TransformerStart
from emu3_jax.train.tasks.vision_start import VisionTokenizerStart
from emu3_jax.train.tasks.vision_tokenizer import VisionTokenizerTask, VisionTokenizerTrainConfig
from emu3_jax.train.vision_objective import VisionLossConfig


def pretrain_task(
    model, data, loss=None, start=None, grammar=GRAMMAR, vision_fingerprint=None
) -> PretrainTask:
    """Its grammar is given and not read from data."""
    config = PretrainConfig(
        model,
        data,
        RunConfig(steps=1),
        "bytes",
        loss or LossConfig(),
        start or TransformerStart(),
    )
    task = PretrainTask(config, read_data=False)
    task.language = Language(grammar.vocab, grammar, vision_fingerprint, data.sequence_length)
    return task


def vision_task(
    model, data, loss=None, steps=100, codebook=None, start=None, read_data=True
) -> VisionTokenizerTask:
    """With defaults for what a test is not about."""
    config = VisionTokenizerTrainConfig(
        model,
        data,
        RunConfig(steps),
        loss or VisionLossConfig(),
        codebook or CodebookConfig(),
        start or VisionTokenizerStart(),
    )
    return VisionTokenizerTask(config, read_data)
