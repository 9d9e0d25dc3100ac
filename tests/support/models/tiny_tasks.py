"""Tasks made of parts, without the files that a config names."""

from token_records import GRAMMAR

from emu3_jax.data.tokens.mixture import MixtureEntry
from emu3_jax.data.tokens.pipeline import DataConfig
from emu3_jax.interop.bundle import Language
from emu3_jax.models.language.transformer import TransformerConfig
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.tasks.language.pretrain import LossConfig, PretrainConfig, PretrainTask
from emu3_jax.train.tasks.language.transformer_start import TransformerStart
from emu3_jax.train.tasks.vision.codebook_maintenance import CodebookConfig
from emu3_jax.train.tasks.vision.vision_objective import VisionLossConfig
from emu3_jax.train.tasks.vision.vision_start import VisionTokenizerStart
from emu3_jax.train.tasks.vision.vision_tokenizer import (
    VisionTokenizerTask,
    VisionTokenizerTrainConfig,
)

ROWS, LENGTH = 8, 32
VOCAB = GRAMMAR.vocab.size


def pretrain_task(
    model, data, loss=None, start=None, grammar=GRAMMAR, vision_fingerprint=None
) -> PretrainTask:
    """A pretraining task with a given grammar, not one read from data."""
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
    """A vision task with defaults for all that a test does not set."""
    config = VisionTokenizerTrainConfig(
        model,
        data,
        RunConfig(steps),
        loss or VisionLossConfig(),
        codebook or CodebookConfig(),
        start or VisionTokenizerStart(),
    )
    return VisionTokenizerTask(config, read_data)


def tiny_pretrain_task(dropout=0.0, dataset="unused", model=None, **loss) -> PretrainTask:
    """A pretraining task of two layers on two tasks of one dataset."""
    model = model or TransformerConfig(
        VOCAB, 16, 32, 2, 4, 2, 4, vocab_multiple=64, dropout=dropout
    )
    mixture = (MixtureEntry(dataset, "text_to_image"), MixtureEntry(dataset, "text"))
    data = DataConfig(mixture, batch_size=ROWS, sequence_length=LENGTH)
    return pretrain_task(model, data, LossConfig(**({"chunk_tokens": 8} | loss)))
