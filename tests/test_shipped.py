"""Names of shipped files, and config files that import a base."""

import functools
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from paths import ROOT

import emu3_jax
from emu3_jax import command_line, shipped
from emu3_jax.config import ConfigError, load_config
from emu3_jax.text import load_text_tokenizer


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The working directory is a folder that is not the project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *(p for p in sys.path if p not in ("", str(ROOT)))])
    return tmp_path


def test_short_names_stand_for_assets():
    assert shipped.language_model("nano") == ROOT / "assets/transformer_nano"
    assert shipped.vision_tokenizer("nano") == ROOT / "assets/vision_tokenizer_nano"
    assert shipped.vision_tokenizer("photo") == ROOT / "assets/vision_tokenizer_photo"
    assert shipped.text_tokenizer("nano") == ROOT / "assets/text_nano.model"


def test_whole_names_are_found_from_every_folder(elsewhere):
    assert shipped.vision_tokenizer("vision_tokenizer_nano").is_dir()
    # An exported model may be of either kind.
    assert shipped.language_model("assets/vision_tokenizer_photo").is_dir()
    assert shipped.asset(pathlib.Path("assets/fluent_emoji.zip")).is_file()
    assert load_text_tokenizer("assets/text_nano.model").size == load_text_tokenizer("nano").size


def test_a_path_that_exists_wins(elsewhere):
    (elsewhere / "nano").mkdir()
    (elsewhere / "assets/transformer_nano").mkdir(parents=True)
    (elsewhere / "transformer_nano").write_text("def get_config(arg=''):\n    return {}")
    assert shipped.language_model("nano") == "nano"
    assert shipped.language_model("assets/transformer_nano") == "assets/transformer_nano"
    assert shipped.config_file("transformer_nano") == pathlib.Path("transformer_nano")


@pytest.mark.parametrize("path", ["gs://bucket/nano", "runs/none", "/none/nano", "words.model", ""])
def test_what_can_only_be_a_path_stays(elsewhere, path):
    assert shipped.text_tokenizer(path) == path


@pytest.mark.parametrize(
    "find, name, message",
    [
        (
            shipped.vision_tokenizer,
            "foto",
            "'foto' is neither a path nor the name of a shipped vision tokenizer; "
            "did you mean photo?",
        ),
        (
            shipped.language_model,
            "xyz",
            "'xyz' is neither a path nor the name of a shipped language model; "
            "shipped: nano, styles",
        ),
        (
            load_config,
            "ablations/no_dropuot",
            "'ablations/no_dropuot' is neither a file nor the name of a shipped config; "
            "did you mean ablations/no_dropout?",
        ),
        (
            load_config,
            "configs/transformer_nan.py",
            "'configs/transformer_nan.py' is neither a file nor the name of a shipped config; "
            "did you mean transformer_nano?",
        ),
        (load_config, "my/nano.py", "config file my/nano.py does not exist"),
    ],
)
def test_an_unknown_name_is_one_sentence(elsewhere, find, name, message):
    with pytest.raises(ValueError) as error:
        find(name)
    assert str(error.value) == message


def test_an_unknown_config_lists_all_of_them():
    with pytest.raises(ConfigError, match="shipped: ablations/no_dropout, .*, transformer_nano, "):
        load_config("xyz")


@pytest.mark.parametrize("name", shipped.config_names())
def test_every_config_loads_by_name_as_by_path(elsewhere, name):
    by_path = load_config(str(ROOT / f"configs/{name}.py"))
    assert load_config(name).to_json_best_effort() == by_path.to_json_best_effort()
    assert "configs" not in sys.modules or sys.modules["configs"].__spec__.origin is None


def test_a_name_takes_an_argument():
    assert load_config("transformer_nano:runs/tokens").evaluation[0]["tokens"] == "runs/tokens"
    assert load_config("ablations/no_dropout:here").evaluation[0]["tokens"] == "here"


OWN = """
from configs import transformer_nano, mine

def get_config(arg=""):
    config = transformer_nano.get_config(arg)
    config.run.steps = mine.STEPS
    return config
"""


@pytest.mark.parametrize("regular", [False, True])
def test_own_configs_come_before_the_shipped_ones(elsewhere, regular):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs/mine.py").write_text("STEPS = 7")
    if regular:
        (elsewhere / "configs/__init__.py").touch()
    (elsewhere / "own.py").write_text(OWN)
    assert load_config("own.py").run.steps == 7
    (elsewhere / "configs/transformer_nano.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg=''): return ConfigDict(dict(run=dict(steps=1), mine=True))"
    )
    assert load_config("own.py").mine
    # A shipped config does not depend on where the command runs.
    shipped_one = load_config("ablations/no_dropout")
    assert shipped_one.model.hidden_size == 256


def test_loading_a_config_leaves_the_imports_as_they_were():
    from configs import transformer_nano

    before = {name for name in sys.modules if name.startswith("configs")}
    load_config("ablations/no_dropout")
    assert {name for name in sys.modules if name.startswith("configs")} == before
    assert sys.modules["configs.transformer_nano"] is transformer_nano
    assert shipped._ShippedConfigs not in sys.meta_path


@pytest.mark.parametrize("name, codes", [("nano", 2048), ("styles", 8192)])
def test_the_face_takes_names(elsewhere, name, codes):
    module, _ = emu3_jax.load_vision_tokenizer(name)
    assert module.config.codebook_size == codes
    bundle = emu3_jax.load_bundle(name, name)  # ValueError if the codes are of another tokenizer
    assert bundle.vision is not None
    assert {"text_to_image", "image_to_text"} <= set(bundle.learnt)


def test_the_face_refuses_other_names(elsewhere):
    with pytest.raises(ValueError, match="did you mean nano"):
        emu3_jax.load_language_model("nanu")


def test_flags_take_names(elsewhere):
    command = [sys.executable, "-m", "emu3_jax.convert", "export", "--model=nano", "--output=here"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "here/model.safetensors").is_file()


def test_a_flag_with_an_unknown_name_is_one_sentence(monkeypatch):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "DEFINE", functools.partial(flags.DEFINE, flag_values=values))
    command_line.define_path("model", shipped.language_model, "")
    command_line.define_path("vision_tokenizer", shipped.vision_tokenizer, "")
    message = "flag --model=photo: 'photo' is neither a path nor the name of a shipped language"
    with pytest.raises(flags.Error, match=message):
        values(["command", "--model=photo"])
    values(["command", "--model=", "--vision_tokenizer=photo"])
    assert values.model == ""
    assert values.vision_tokenizer == str(ROOT / "assets/vision_tokenizer_photo")
