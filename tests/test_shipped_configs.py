"""Every file in configs/ makes what it says, and an ablation changes what its name says."""

import pathlib

import pytest

from emu3_jax.config import ConfigError, load_config, to_dataclass
from emu3_jax.data.pipeline import DataConfig
from emu3_jax.data.pixels import PixelConfig
from emu3_jax.evaluate import registry
from emu3_jax.models.transformer import TransformerConfig
from emu3_jax.models.vision_config import VisionTokenizerConfig
from emu3_jax.tokenize.config import TokenizeConfig
from emu3_jax.train import pretrain, start
from emu3_jax.train.codebook import CodebookConfig
from emu3_jax.train.loop import RunConfig
from emu3_jax.train.vision_objective import VisionLossConfig

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py"))
SECTIONS = {
    "pretrain": {
        "model": TransformerConfig,
        "loss": pretrain.LossConfig,
        "data": DataConfig,
        "start": start.TransformerStart,
    },
    "vision_tokenizer": {
        "model": VisionTokenizerConfig,
        "loss": VisionLossConfig,
        "codebook": CodebookConfig,
        "data": PixelConfig,
        "start": start.VisionTokenizerStart,
    },
}


def resolve(config):
    """Every section as its dataclass: ConfigError for a key or type that does not exist."""
    if "task" not in config:
        return to_dataclass(TokenizeConfig, config)
    sections = SECTIONS[config.task] | {"run": RunConfig}
    for name, cls in sections.items():
        if name in config:
            # The data fixes the number of token ids.
            known = {"vocab_size": 1} if cls is TransformerConfig else {}
            to_dataclass(cls, known | config[name].to_dict(), name)
    registry.make(config.get("evaluation", ()))
    return config


@pytest.mark.parametrize("file", FILES)
def test_a_config_resolves_and_its_docstring_holds_its_command(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    resolve(load_config(file))
    notes = (ROOT / file).read_text().split('"""')[1]
    assert f"--config={file}" in notes, "the docstring names no command that runs this file"


def test_a_wrong_key_of_a_shipped_config_is_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config("configs/transformer_nano.py")
    with config.unlocked():
        config.run.optimizer.learning_rat = 1.0
    with pytest.raises(ConfigError, match="learning_rat"):
        resolve(config)


def flat(tree, where=""):
    if hasattr(tree, "items"):
        return {k: v for n, t in tree.items() for k, v in flat(t, f"{where}.{n}").items()}
    return {where.removeprefix("."): tree}


TOKENIZER_CARE = {"model.quantizer", "codebook.start", "codebook.revive_every"}


@pytest.mark.parametrize(
    ("base", "name", "changed"),
    [
        ("transformer_nano", "no_dropout", {"model.dropout"}),
        (
            "transformer_nano",
            "vision_weight_one",
            {"data.loss_weights.image", "data.loss_weights.video"},
        ),
        ("transformer_nano", "text_to_image_only", {"data.mixture"}),
        ("vision_tokenizer_emu3", "tokenizer_no_gan", {"loss.adversarial.weight"}),
        ("vision_tokenizer_emu3", "tokenizer_no_lpips", {"loss.perceptual"}),
        ("vision_tokenizer_emu3", "tokenizer_half_codebook", {"model.codebook_size"}),
        ("vision_tokenizer_emu3", "tokenizer_ibq", TOKENIZER_CARE),
        ("vision_tokenizer_emu3", "tokenizer_images_only", {"data.groups"}),
    ],
)
@pytest.mark.parametrize("argument", ["", "twin"])
def test_an_ablation_changes_nothing_else(base, name, changed, argument, monkeypatch):
    monkeypatch.chdir(ROOT)
    base = flat(load_config(f"configs/{base}.py:{argument}").to_dict())
    ablation = resolve(load_config(f"configs/ablations/{name}.py:{argument}"))
    ablation = flat(ablation.to_dict())
    assert base.keys() == ablation.keys()
    assert {key for key in base if base[key] != ablation[key]} == changed
