"""Benchmarks on several processes: real subprocesses, the real command, the same files."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_models
from paths import ROOT

from emu3_jax.data import media

pytestmark = pytest.mark.slow
PROCESSES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """vision/ and language/, models; questions.jsonl with images of some sizes; prompts.csv."""
    folder = tiny_models.save_models(tmp_path_factory.mktemp("processes"))
    rng = np.random.default_rng(0)
    rows = []
    for i in range(9):
        image = rng.integers(0, 256, (8, 8 + 2 * (i % 3), 3), np.uint8)
        media.write_png(folder / f"{i}.png", image)
        rows.append({"question_id": i, "image": f"{i}.png", "text": f"Is {i}?", "answer": "yes"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.csv").write_text("Prompt\na cat\na dog\na cow\n")
    return folder


def run(folder, output, processes, *options):
    """Runs the command as so many processes with eight devices in all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for index in range(processes):
        joining = (
            f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={index}",
        )  # fmt: skip
        command = [
            *(sys.executable, "-m", "emu3_jax.evaluate", f"--model={folder / 'language'}"),
            *(f"--vision_tokenizer={folder / 'vision'}", f"--output={output}", "--mesh=fsdp=-1"),
            *options,
            *(joining if processes > 1 else ()),
        ]
        environment = os.environ | {
            "JAX_NUM_CPU_DEVICES": str(8 // processes),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        }
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    for process in started:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said
    return {
        path.relative_to(output): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name != "results.json"
    }


@pytest.mark.parametrize(
    "options",
    [
        (
            "--benchmark=own_questions",
            "--data={}/questions.jsonl",
            "--batch_size=4",
            "--min_pixels=16",
            "--max_pixels=400",
        ),
        ("--benchmark=coco30k", "--data={}/prompts.csv", "--size=8,8", "--batch_size=2"),
    ],
)
def test_several_processes_write_the_same_files_as_one(folder, tmp_path, options):
    options = [option.format(folder) for option in options]
    one = run(folder, tmp_path / "one", 1, *options)
    several = run(folder, tmp_path / "several", PROCESSES, *options)
    assert len(one) >= 3 and several == one
