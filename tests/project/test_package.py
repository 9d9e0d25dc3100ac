"""The package as pip installs it: its content, and that it works outside the project."""

import os
import re
import shutil
import subprocess
import sys
import venv

import pytest
from paths import ROOT

import emu3_jax
from emu3_jax import shipped

pytest.importorskip("setuptools", "77")  # required by pyproject.toml

PACKAGE = ROOT / "emu3_jax"
EXTRAS = {
    "gpu",
    "tpu",
    "aot",
    "ray",
    "tfds",
    "test",
    "perceptual",
    "scorers",
    "parquet",
    "questions",
    "docs",
    "demo",
}
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in PACKAGE.rglob("*.py")
    if path.name == "__main__.py" or '\nif __name__ == "__main__":' in path.read_text()
)


def setup(*words):
    """Runs setuptools as pip does without build isolation; nothing is written into the project."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *words],
        cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """The folder *.egg-info."""
    folder = tmp_path_factory.mktemp("metadata")
    setup("egg_info", f"--egg-base={folder}")
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the content of a wheel."""
    folder = tmp_path_factory.mktemp("built")
    base = tmp_path_factory.mktemp("base")
    setup("egg_info", f"--egg-base={base}", "build", f"--build-base={base}",
          f"--build-lib={folder}")  # fmt: skip
    return folder


def files(folder, pattern="*"):
    return {
        str(path.relative_to(folder))
        for path in folder.rglob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


def run(where, python, path, *words):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    command = [str(python), *map(str, words)]
    return subprocess.run(
        command, cwd=where, env=env, capture_output=True, text=True, check=False, timeout=600
    )


def test_every_module_config_and_asset_is_in_it(built):
    assert [path.name for path in built.iterdir()] == ["emu3_jax"]
    found = files(built / "emu3_jax")
    inside = {f"_shipped/configs/{file}" for file in files(ROOT / "configs", "*.py")}
    inside |= {f"_shipped/assets/{file}" for file in files(ROOT / "assets")}
    assert found == files(PACKAGE, "*.py") | files(PACKAGE, "*.json") | inside


def test_it_is_small_enough_to_install():
    assert sum((ROOT / "assets" / file).stat().st_size for file in files(ROOT / "assets")) < 64e6


def test_dependencies_are_those_of_the_requirement_files(metadata):
    sections = re.split(r"^\[(.*)\]\n", (metadata / "requires.txt").read_text(), flags=re.M)
    base, extras = sections[0], dict(zip(sections[1::2], sections[2::2], strict=True))

    def stated(text):
        lines = (line.strip() for line in text.splitlines())
        return {
            "".join(sorted(re.split(r"(?<=[\w\]])(?=[<>=])|,", line)))
            for line in lines
            if line and line[0] not in "#-"
        }

    def of(name):
        return stated((ROOT / name).read_text())

    assert stated(base) == of("requirements.txt")
    assert extras.keys() == EXTRAS
    also = of("requirements-tfds.txt") | of("requirements-scorers.txt")
    also |= of("requirements-parquet.txt") | of("requirements-demo.txt")
    for extra in EXTRAS - {"test"}:
        assert stated(extras[extra]) == of(f"requirements-{extra}.txt"), extra
    assert stated(extras["test"]) == of("requirements-test.txt") | also


def test_the_version_has_one_source(metadata):
    text = (metadata / "PKG-INFO").read_text()
    assert f"\nVersion: {emu3_jax.__version__}\n" in text
    assert f"\nversion: {emu3_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert "\n## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_all_licences_go_along(metadata):
    text = (metadata / "PKG-INFO").read_text()
    texts = {f"assets/LICENSES/{file}" for file in files(ROOT / "assets/LICENSES")}
    assert set(re.findall("^License-File: (.*)$", text, re.M)) == {"LICENSE"} | texts


def test_names_are_found_far_from_the_project(built, tmp_path):
    code = """
import pathlib, sys
import emu3_jax
from emu3_jax import shipped
from emu3_jax.config import load_config
from emu3_jax.interop.vision import perceptual_weights
from emu3_jax.data import fluent_emoji
from emu3_jax.quickstart.stages import Plan
from emu3_jax.text import load_text_tokenizer
home = pathlib.Path(emu3_jax.__file__).parent
assert shipped.ROOT == home / "_shipped", shipped.ROOT
for name in shipped.config_names():
    load_config(name)
load_config("configs/transformer_nano.py:runs/tokens")
pathlib.Path("own.py").write_text("from configs import transformer_nano\\n"
    "def get_config(arg=''): return transformer_nano.get_config(arg)")
config = load_config("own.py")
load_text_tokenizer(config.text_tokenizer)
emu3_jax.load_vision_tokenizer(config.start.codebook)
assert perceptual_weights.EMBEDDED_HEADS.is_file() and fluent_emoji.EMBEDDED.is_file()
Plan().check()
assert Plan().has_shipped()
try:
    import configs
except ModuleNotFoundError:
    print(*shipped.config_names())
"""
    done = run(tmp_path, sys.executable, built, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == shipped.config_names()


def test_the_revision_is_not_that_of_a_checkout_around_the_package(built, tmp_path):
    home = tmp_path / "somebody"
    shutil.copytree(built / "emu3_jax", home / "venv/emu3_jax", ignore=lambda *_: ["_shipped"])
    for words in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "x")):
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", str(home), *who, *words], check=True)
    code = "from emu3_jax import provenance; print(provenance.code_revision())"
    assert run(tmp_path, sys.executable, home / "venv", "-c", code).stdout == "None\n"


def test_installed_into_a_fresh_environment(tmp_path):
    """pip installs the wheel; every command prints its --help, and one of each kind works."""
    setup("egg_info", f"--egg-base={tmp_path}", "build", f"--build-base={tmp_path / 'build'}",
          "bdist_wheel", f"--dist-dir={tmp_path}", f"--bdist-dir={tmp_path / 'bdist'}")  # fmt: skip
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    wheel = next(tmp_path.glob("*.whl"))
    done = run(tmp_path, python, None, "-m", "pip", "install", "--no-deps", wheel)
    assert done.returncode == 0, done.stderr
    # Dependencies are those of the tests' own environment.
    site = next((tmp_path / "venv").glob("lib/*/site-packages"))
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))
    where = tmp_path / "elsewhere"
    where.mkdir()
    for command in COMMANDS:
        done = run(where, python, None, "-m", command, "--help")
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert command in done.stdout, command
    for words in (
        ("generate", "--model=nano", "--vision_tokenizer=nano", "--task=text_to_image",
         "--prompt=red apple", "--size=8x8", "--output=drawn"),
        ("tokenize.reconstruct", "--vision_tokenizer=photo", "--output=rebuilt",
         "--input=drawn/image_00000.png"),
        ("aot", "--config=ablations/no_dropout", "--topology=cpu:1", "--noestimate",
         "--config.model.vocab_size=4096", "--config.model.num_layers=1"),
        ("tokenize", "--config=tokenize_nano", "--config.output=tokens",
         "--config.splits.train=('validation.jsonl',)"),
        ("train", "--config=ablations/text_to_image_only:tokens", "--workdir=run",
         "--config.run.steps=2", "--config.model.num_layers=1", "--config.text_tokenizer=nano",
         "--config.start.codebook=nano", "--config.evaluation=()"),
    ):  # fmt: skip
        done = run(where, python, None, "-m", f"emu3_jax.{words[0]}", *words[1:])
        assert done.returncode == 0, f"{words}: {done.stderr}"
    assert (where / "run/checkpoints/2").is_dir()
