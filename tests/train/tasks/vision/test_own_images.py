"""configs/vision_tokenizer_photo.py:DATA trains on own images: a folder, jsonl, tars or TFDS."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from paths import ROOT

from emu3_jax.config import load_config
from emu3_jax.data import media
from emu3_jax.train.run.metrics import read_metrics
from emu3_jax.train.tasks import registry

# So small that compiling takes most of the time.
SMALL = (
    "start.weights=", "loss.perceptual=0.0", "loss.adversarial.weight=0.0", "run.steps=2",
    "model.ch=8", "model.ch_mult=(1,1)", "model.attn_resolutions=(1,)", "model.codebook_size=16",
    "model.embed_dim=4", "model.z_channels=4", "model.norm_groups=4", "run.log.tensorboard=False",
    "data.groups.0.size=8", "data.groups.2.size=8", "data.groups.2.frames=2", "run.log.every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """train.jsonl, validation.jsonl and a.tar with the images of the former."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    rows = {"train": [], "validation": []}
    for split, listed in rows.items():
        for i in range(4):
            media.write_png(folder / f"{split}{i}.png", rng.integers(0, 256, (20, 24, 3), np.uint8))
            listed.append({"id": i, "image": f"{split}{i}.png", "text": "a caption"})
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in listed))
    with tarfile.open(folder / "a.tar", "w") as tar:
        for row in rows["train"]:
            content = (folder / row["image"]).read_bytes()
            info = tarfile.TarInfo(row["image"])
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder


def train(corpus, workdir):
    result = subprocess.run(
        [
            sys.executable, "-m", "emu3_jax.train", f"--config=vision_tokenizer_photo:{corpus}",
            f"--workdir={workdir}", *[f"--config.{override}" for override in SMALL],
        ],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_tars_train_and_the_lines_begin_with_psnr(data, tmp_path):
    printed = train(f"webdataset:{data}/*.tar", tmp_path)
    assert re.search(
        r"^step 2/2 psnr/pans -?\d+\.\d\d dB, psnr/stills -?\d+\.\d\d dB \| "
        r"codebook/dead \d+\.\d % \| codebook/perplexity [\d.]+ \| loss [\d.]+, pans_",
        printed,
        re.MULTILINE,
    ), printed
    assert [row["step"] for row in read_metrics(tmp_path) if np.isfinite(row["loss"])] == [1, 2]


@pytest.mark.slow
def test_a_folder_trains_and_its_evaluation_begins_with_psnr(data, tmp_path):
    """All that is logged is shown too."""
    printed = train(data, tmp_path)
    shown = re.search(r"^step 2 reconstruction: (.*)$", printed, re.MULTILINE)[1]
    assert re.match(r"psnr_images -?\d+\.\d\d dB \| ssim_images -?0\.\d{4} \| codebook_used", shown)
    names = {part.split()[0] for part in re.split(r" \| |, (?=[a-z])", shown)}
    logged = {name for name in read_metrics(tmp_path)[-1] if name.startswith("validation/")}
    assert {f"validation/reconstruction/{name}" for name in names} == logged


@pytest.mark.parametrize(
    ("corpus", "root", "files"),
    [
        ("own", "own", ("train.jsonl",)),
        ("own/mine.jsonl", "own", ("mine.jsonl",)),
        ("webdataset:own/{000..123}.tar", ".", ("webdataset:own/{000..123}.tar",)),
        ("tfds:oxford_flowers102:train", ".", ("tfds:oxford_flowers102:train",)),
    ],
)
def test_the_argument_is_a_corpus_as_in_tokenizing(corpus, root, files):
    resolved = registry.resolve(load_config(f"vision_tokenizer_photo:{corpus}").to_dict())
    assert (resolved.data.root, resolved.data.files) == (root, files)
    assert {group.kind for group in resolved.data.active} == {"stills", "pans"}
    assert resolved.start.weights == "assets/vision_tokenizer_nano" and not resolved.evaluation


def test_held_out_images_of_a_folder_are_measured(data):
    config = load_config(f"vision_tokenizer_photo:{data}")
    assert [entry["data"] for entry in config.evaluation] == [str(data)]
