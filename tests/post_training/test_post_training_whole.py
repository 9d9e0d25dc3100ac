"""Post-training from corpus to report: the shipped model, a few rows, a few steps."""

import json
import os
import signal

import numpy as np
import pytest
from paths import ROOT
from small_corpus import write_small_corpus

from emu3_jax.data import media
from emu3_jax.pipeline.runner import Stopped
from emu3_jax.post_training.__main__ import run
from emu3_jax.post_training.stages import Plan

pytestmark = pytest.mark.slow


def write_easy_vqa(folder):
    """The layout of the package's data: two images of a split, two questions each."""
    for split in ("train", "test"):
        asked = (("what color is the shape?", "red"), ("what shape is it?", "circle"))
        listed = [[question, answer, n] for n in range(2) for question, answer in asked]
        (folder / split / "images").mkdir(parents=True)
        (folder / split / "questions.json").write_text(json.dumps(listed))
        for number in range(2):
            pixels = np.full((64, 64, 3), (200, 60 * number, 0), np.uint8)
            media.write_png(folder / split / "images" / f"{number}.png", pixels)


def test_from_corpus_to_report_with_a_stop_on_the_way(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
    write_small_corpus(tmp_path / "corpus.zip")
    write_easy_vqa(tmp_path / "easy_vqa")
    plan = Plan(
        directory=tmp_path / "run",
        corpus_zip=tmp_path / "corpus.zip",
        easy_vqa=str(tmp_path / "easy_vqa"),
        chat_steps=2,
        qft_steps=1,
        dpo_steps=1,
        prompts=4,
        candidates=3,
        limit=4,
        questions=4,
        shown=2,
        options=("--config.data.batch_size=2", "--config.run.log.tensorboard=False"),
    )
    lines = []

    def stop_in_the_first_training(line):
        lines.append(line)
        if "step 1/2" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        run(plan, stop_in_the_first_training)
    assert not plan.report.exists()
    report = run(plan, lines.append)
    page = report.read_text(encoding="utf-8")
    for part in (
        "easy-vqa, its own test questions",
        "python -m emu3_jax.preferences",
        "data:image/",
    ):
        assert part in page
    before = report.stat().st_mtime_ns
    lines.clear()
    run(plan, lines.append)
    assert report.stat().st_mtime_ns == before
    assert all("done before" in line for line in lines)
