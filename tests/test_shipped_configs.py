"""Every file in configs/ resolves to its golden file, and an ablation changes what its name states.

golden/configs/ holds each of them resolved, every field, so that a change of a recipe or of a
default is a visible difference. To rewrite them:

  UPDATE_GOLDEN=1 python -m pytest tests/test_shipped_configs.py
"""

import json
import os
import pathlib

import pytest
from paths import ROOT
from resolved_configs import every_field

from emu3_jax.config import ConfigError, load_config

FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py"))
GOLDEN = ROOT / "tests" / "golden" / "configs"
ARGUMENTS = {
    "vision_tokenizer_emu3": ("", "twin"),
    "rate_folder": ("", "weights"),
    "dpo": ("", "nano"),
    "grpo": ("", "nano"),
    "tokenizer_stabilisers": ("", "no_ramp", "fixed", "penalty", "no_average"),
}
TWINS = ("half_codebook", "ibq", "images_only", "no_gan", "no_lpips")
ARGUMENTS |= {f"tokenizer_{name}": ("", "twin") for name in TWINS}
ARGUMENTS |= {pathlib.Path(f).stem: ("", "nano") for f in FILES if "/post_training/sft_" in f}
ARGUMENTS["sft_easy_vqa"] = ("",)  # there is no large one
SPECS = [f"{f}:{a}".rstrip(":") for f in FILES for a in ARGUMENTS.get(pathlib.Path(f).stem, ("",))]


@pytest.mark.parametrize("spec", SPECS)
def test_a_config_resolves_to_what_it_was(spec, monkeypatch):
    monkeypatch.chdir(ROOT)
    file, _, argument = spec.partition(":")
    name = pathlib.PurePath(file).relative_to("configs").with_suffix("").as_posix()
    golden = GOLDEN / f"{name.replace('/', '.')}{argument and '-'}{argument}.json"
    found = every_field(load_config(spec))
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(golden.read_text())


def test_no_golden_file_is_left_over():
    assert len(list(GOLDEN.glob("*.json"))) == len(SPECS)


@pytest.mark.parametrize("file", FILES)
def test_the_docstring_of_a_config_holds_its_command(file):
    name = pathlib.PurePath(file).relative_to("configs").with_suffix("").as_posix()
    notes = (ROOT / file).read_text().split('"""')[1]
    assert f"--config={file}" in notes or f"--config={name}" in notes


def test_a_wrong_key_of_a_shipped_config_is_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config("configs/transformer_nano.py")
    with config.unlocked():
        config.run.optimizer.learning_rat = 1.0
    with pytest.raises(ConfigError, match="learning_rat"):
        every_field(config)


def flat(tree, where=""):
    if hasattr(tree, "items"):
        return {k: v for n, t in tree.items() for k, v in flat(t, f"{where}.{n}").items()}
    return {where.removeprefix("."): tree}


MAINTENANCE = {"model.quantizer", "codebook.start", "codebook.revive_every"}


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
        ("vision_tokenizer_emu3", "tokenizer_ibq", MAINTENANCE),
        ("vision_tokenizer_emu3", "tokenizer_images_only", {"data.groups"}),
    ],
)
@pytest.mark.parametrize("argument", ["", "twin"])
def test_an_ablation_changes_nothing_else(base, name, changed, argument, monkeypatch):
    monkeypatch.chdir(ROOT)
    base = flat(every_field(load_config(f"configs/{base}.py:{argument}")))
    ablation = flat(every_field(load_config(f"configs/ablations/{name}.py:{argument}")))
    assert base.keys() == ablation.keys()
    assert {key for key in base if base[key] != ablation[key]} == changed
